"""``python -m corea`` is the command ``corea`` (:mod:`corea.cli`)."""

import sys

from corea.cli import main

if __name__ == "__main__":
    sys.exit(main())
