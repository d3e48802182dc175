"""The same as `bielik-nemo distill_long`, from a clone: `python recipes/distill_long.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["distill_long", *sys.argv[1:]]))
