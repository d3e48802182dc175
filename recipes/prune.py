"""The same as `bielik-nemo prune`, from a clone: `python recipes/prune.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["prune", *sys.argv[1:]]))
