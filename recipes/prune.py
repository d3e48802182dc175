"""`python recipes/prune.py experiment=tiny` is `bielik-nemo prune experiment=tiny`: remove the least important layers and channels."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["prune", *sys.argv[1:]]))
