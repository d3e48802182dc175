"""The same as `bielik-nemo distill`, from a clone: `python recipes/distill.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
