"""Two processes train on decisions to their first optimizer step, for test_decision_trainer.py.

``decide_in_process.py BASE FOLDER SETTINGS`` writes what each process had at that step to FOLDER:
the tensors of its batch (``RANK.safetensors``) and the gradients they share (``gradients``).
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from corea.decisions.settings import DecisionSettings
from corea.decisions.trainer import DecisionTrainer, train_decisions
from corea.engines.models import load_model
from corea.tasks import microworld
from corea.tasks.decision_world import DecisionWorld, questions
from corea.training import loop

OWN = DecisionWorld(microworld.World(names=12), direct=0.0, mixture=(1.0, 0.0, 0.0, 0.0))
TRAINING = questions(OWN, "choices", "train", 40)
VALIDATION = questions(OWN, "choices", "validation", 4)


class Stop(Exception):
    """The first optimizer step was reached."""


def child(base, folder, settings, rank, port):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip

    torch.set_num_threads(1)

    class AtFirstStep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            if rank == 0:
                found = {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}
                save_file(found, folder / "gradients.safetensors")
            raise Stop

    def run(trainer, directory, **_):
        trainer.args.max_grad_norm = 0.0  # gradients as they are
        trainer.add_callback(AtFirstStep())
        trainer.train()

    annotate = DecisionTrainer.annotate

    def keep(self, inputs, batch):
        made = annotate(self, inputs, batch)
        tensors = {k: v.contiguous() for k, v in made.items() if hasattr(v, "contiguous")}
        save_file(tensors, folder / f"{rank}.safetensors")
        return made

    loop.run = run
    DecisionTrainer.annotate = keep
    _, tokenizer = load_model(base, device="cpu")
    chosen = DecisionSettings(**settings)
    try:
        train_decisions(base, tokenizer, TRAINING, VALIDATION, chosen, folder / "run")
    except Stop:
        return 0
    return 1


def main():
    base, folder, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    children = []
    for rank in range(2):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                status = child(base, folder, settings, rank, port)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)


if __name__ == "__main__":
    sys.exit(main())
