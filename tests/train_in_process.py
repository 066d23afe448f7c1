"""Small trainings in processes that can be killed, for test_trainers.py.

``train_in_process.py reference FOLDER`` makes the base model and one uninterrupted run of each
kind. ``train_in_process.py serve FOLDER`` imports everything once, reads one request a line from
standard input (JSON), forks its processes, and answers with a line when they have ended:

- ``task``, ``directory``, ``settings``: what to train, and where;
- ``processes``: how many, joined by gloo; each writes what it prints to ``directory.RANK.out``
  and ``.err``;
- ``kill``: a marker of :func:`mark_events`, which of its occurrences, and the seconds after it;
- ``at``: a marker at which a process kills itself, at once;
- ``constants``: values of ``corea.rlcc.trainer`` that are set;
- ``spoil``: a rank and a step at which its loss is not a number;
- ``slow``: a rank that takes its time to save;
- ``record``: whether every call for rewards and the final weights are written down.
"""

import gc
import hashlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from corea.rlcc import trainer
from corea.rlcc.reward_functions import rollout_metrics
from corea.rlcc.settings import GRPOSettings
from corea.rlcc.trainer import RLCCTrainer, train_grpo
from corea.tasks import microworld
from corea.tasks.questions import Question
from corea.training import checkpoints, grpo, loop, sft
from corea.training.quiet import quiet
from corea.training.settings import SFTSettings
from corea.training.sft import train_sft

PAIRS = [(a, b) for a in range(10) for b in range(10)]
QUESTIONS = [
    Question("pairs", f"{i:03d}", f"{a}{b}", str(min(a, b)), "choice")
    for i, (a, b) in enumerate(PAIRS[k] for k in np.random.default_rng(0).permutation(100))
]
TRAINING, VALIDATION = QUESTIONS[:80], QUESTIONS[80:84]
SFT = {
    "steps": 60, "batch": 32, "micro_batch": 16, "learning_rate": 1e-2, "lr_schedule": "cosine",
    "weight_decay": 0.01,
    "checkpoint_every": 6,
}  # fmt: skip
GRPO = {
    "group_size": 4, "steps": 16, "batch": 16, "micro_batch": 8, "steps_per_rollout": 2,
    "learning_rate": 3e-3, "max_completion_tokens": 12, "checkpoint_every": 2,
    "entropy_coef": 0.005, "kl_coef": 0.01,
}  # fmt: skip


def rows_to_learn():
    """Short completions, often wrong, that state a random confidence."""
    rng = np.random.default_rng(1)
    rows = []
    for question in TRAINING * 4:
        answer = question.gold if rng.random() < 0.6 else rng.integers(10)
        text = rf" \boxed{{{answer}}} \confidence{{{rng.integers(11) / 10}}}"
        rows.append({"prompt": question.prompt, "completion": text})
    return rows


def new_model(tokenizer):
    return microworld.new_model(microworld.model_config("qwen2", 32, 1, 1, len(tokenizer)), 0)


def train(task, reference, directory, settings):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(reference / "tokenizer")
    base = reference / "sft" / "model"
    if task == "sft":
        settings = SFTSettings(**settings)
        model = base if settings.lora_rank else new_model(tokenizer)
        train_sft(model, tokenizer, rows_to_learn(), settings, directory)
    else:
        settings = GRPOSettings(**settings)
        train_grpo(base, tokenizer, TRAINING, VALIDATION, settings, directory)


def make_reference(folder):
    microworld.build_tokenizer().save_pretrained(folder / "tokenizer")
    train("sft", folder, folder / "sft", SFT)
    train("grpo", folder, folder / "grpo", GRPO)


# --- what a child does differently ------------------------------------------------------------


def wrapped(owner, name, before=None, after=None):
    original = getattr(owner, name)

    def wrapper(*arguments, **named):
        if before:
            before(*arguments)
        result = original(*arguments, **named)
        if after:
            after(result, *arguments)
        return result

    setattr(owner, name, wrapper)


def mark_events(pipe, at):
    """Tell the parent: b training begins, s a save begins, S it is sealed, k the end begins."""

    def mark(letter):
        def tell(*_):
            os.write(pipe, letter.encode())
            if letter == at:
                os.kill(os.getpid(), signal.SIGKILL)

        return tell

    wrapped(loop, "run", before=mark("b"))
    wrapped(transformers.Trainer, "_save_checkpoint", before=mark("s"))
    wrapped(checkpoints.SealCheckpoints, "on_save", after=mark("S"))
    wrapped(grpo, "keep_model", before=mark("k"))
    wrapped(sft, "keep_model", before=mark("k"))


def record_rewards(directory, rank):
    """Write every call for rewards with its result, and a digest of the weights at the end."""
    calls = []

    def note(result, trainer, inputs, prompts, completions, ids):
        calls.append(
            {
                "training": trainer.model.training,
                "inputs": [{k: row[k] for k in ("prompt", "gold", "kind")} for row in inputs],
                "prompts": prompts,
                "completions": completions,
                "rewards": result.tolist(),
            }
        )

    def write(_, trainer, *__):
        state = trainer.model.state_dict()
        weights = b"".join(state[name].numpy().tobytes() for name in sorted(state))
        content = {"calls": calls, "weights": hashlib.sha256(weights).hexdigest()}
        directory.with_name(f"{directory.name}.{rank}.json").write_text(json.dumps(content))

    wrapped(RLCCTrainer, "_calculate_rewards", after=note)
    wrapped(loop, "run", after=write)


def spoil_loss(step):
    """Make the loss not a number at one step."""
    original = RLCCTrainer.compute_loss

    def compute_loss(self, *arguments, **named):
        loss = original(self, *arguments, **named)
        spoiled = self.model.training and self.state.global_step == step
        return loss * float("nan") if spoiled else loss

    RLCCTrainer.compute_loss = compute_loss


def run_child(request, reference, rank, port, pipe):
    directory = Path(request["directory"])
    for stream, ending in ((1, "out"), (2, "err")):
        path = directory.with_name(f"{directory.name}.{rank}.{ending}")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    world = request.get("processes", 1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    for name, value in request.get("constants", {}).items():
        setattr(trainer, name, value)
    mark_events(pipe, request.get("at"))
    if request.get("record"):
        record_rewards(directory, rank)
    if request.get("spoil", [None])[0] == rank:
        spoil_loss(request["spoil"][1])
    if request.get("slow") == rank:
        wrapped(transformers.Trainer, "_save_rng_state", before=lambda *_: time.sleep(0.5))
    train(request["task"], reference, directory, request["settings"])


# --- the parent -------------------------------------------------------------------------------


def fork(request, reference):
    """Start the processes of a request; their ids, and the reading end of their pipe."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    reading, writing = os.pipe()
    children = []
    for rank in range(request.get("processes", 1)):
        child = os.fork()
        if not child:
            status = 1
            try:
                run_child(request, reference, rank, port, writing)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    os.close(writing)
    return children, reading


def attend(request, reference):
    """Run a request to its end, or to the moment at which it is to be killed."""
    kill = request.get("kill")
    started, deadline = time.monotonic(), None
    children, pipe = fork(request, reference)
    events = []
    while True:
        if kill and deadline is None and sum(e == kill[0] for e, _ in events) >= kill[1]:
            deadline = time.monotonic() + kill[2]
        left = None if deadline is None else deadline - time.monotonic()
        ready = select.select([pipe], [], [], left if left is None else max(left, 0))[0]
        if not ready:
            for child in children:
                os.kill(child, signal.SIGKILL)
            deadline, kill = None, None
        elif letters := os.read(pipe, 64).decode():
            events += [(letter, time.monotonic() - started) for letter in letters]
        else:  # all have closed it: they ended
            break
    os.close(pipe)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"statuses": statuses, "events": events, "seconds": time.monotonic() - started}


def serve(reference):
    rollout_metrics(np.array([0.0, 1.0]), np.array([0.5, 0.5]), np.array([0.5]))  # imports more
    with quiet():
        AutoModelForCausalLM.from_pretrained(reference / "sft" / "model")  # so does this
    gc.collect()
    gc.freeze()  # the children have less to go through
    for line in sys.stdin:
        print(json.dumps(attend(json.loads(line), reference)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "reference":
        make_reference(Path(sys.argv[2]))
    else:
        serve(Path(sys.argv[2]))
