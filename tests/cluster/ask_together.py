"""Does the store hold on this file system? Several nodes ask for the same entries at once.

What :mod:`corea.store` needs of a file system that several nodes share: a lock that one of them
holds keeps out the others, and what was made under it is seen by whoever holds it next. On a
cluster, from the root of the repository::

    srun --nodes=2 --ntasks=2 python tests/cluster/ask_together.py

Every task prints how many entries it made and how many it found. It fails if an entry was made
twice or is not whole.
"""

import os
import socket
import sys
import time
from pathlib import Path

from corea import store

N_ENTRIES = 40
SECONDS = 0.05  # that making one takes


def main(name: str) -> int:
    """Ask for all entries of a trial; the trial's name is the Slurm job's, or given."""
    me = f"{socket.gethostname()}-{os.getpid()}"
    root = Path("build", "ask_together", name)
    made = 0

    def build(folder: Path) -> None:
        nonlocal made
        with (folder / "makers").open("a") as makers:
            makers.write(me + "\n")
        time.sleep(SECONDS)
        made += 1

    twice = []
    for number in range(N_ENTRIES):
        entry = store.make("trial", {"number": number}, build, root=root)
        makers = (entry / "makers").read_text().split()
        if len(makers) != 1:
            twice.append(f"entry {number} by {', '.join(makers)}")
    print(f"{me}: made {made}, found {N_ENTRIES - made}", *twice, sep="\n  made twice: ")
    return 1 if twice else 0


if __name__ == "__main__":
    sys.exit(main(os.environ.get("SLURM_JOB_ID", "") or sys.argv[1]))
