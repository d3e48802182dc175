"""The same as `bielik-nemo adapt`, from a clone: `python recipes/adapt.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["adapt", *sys.argv[1:]]))
