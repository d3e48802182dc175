"""The same as `bielik-nemo score`, from a clone: `python recipes/score.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
