"""`python recipes/score.py experiment=tiny` is `bielik-nemo score experiment=tiny`: importance of every layer, channel and head."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
