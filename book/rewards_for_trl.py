"""GRPO with a confidence reward by TRL's own trainer: a minute on two cores."""

import sys
from pathlib import Path

import datasets
from trl import GRPOConfig, GRPOTrainer

from corea.rlcc.reward_functions import confidence, correctness, form
from corea.tasks import microworld
from corea.training.alarm_callback import AlarmCallback
from corea.training.settings import SFTSettings
from corea.training.sft import train_sft

folder = Path(sys.argv[1] if sys.argv[1:] else "build/rewards_for_trl")
steps = int(sys.argv[2]) if sys.argv[2:] else 40

# In place of your model: a tiny one that knows the form, and is too sure
world = microworld.World()
tokenizer = microworld.build_tokenizer(world)
config = microworld.model_config("qwen2", 16, 2, 1, len(tokenizer))
model = microworld.new_model(config, seed=0)
corpus = microworld.corpus(world, 400 * 32, seed=0)
settings = SFTSettings(steps=400, batch=32, micro_batch=8, learning_rate=0.005)
train_sft(model, tokenizer, corpus, settings, folder / "base")

# In place of your data: a prompt, the right answer, and how it is compared
asked = microworld.questions(world, "chains", "train", 1000)
rows = [{"prompt": q.prompt, "gold": q.gold, "kind": q.kind} for q in asked]

trainer = GRPOTrainer(
    model=str(folder / "base" / "model"),
    processing_class=tokenizer,
    reward_funcs=[correctness, confidence("l1"), form],
    train_dataset=datasets.Dataset.from_list(rows),
    args=GRPOConfig(
        output_dir=str(folder / "trained"), max_steps=steps, save_steps=10,
        per_device_train_batch_size=64, gradient_accumulation_steps=1,
        num_generations=8, max_completion_length=48, learning_rate=1e-3,
        logging_steps=1, report_to=[], use_cpu=True,
    ),
    callbacks=[AlarmCallback("tell")],  # or "stop", or "roll back"
)  # fmt: skip
trainer.train()
