"""`python recipes/evaluate.py experiment=tiny` is `bielik-nemo evaluate experiment=tiny`: held-out loss and samples of the three models."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
