"""The same as `bielik-nemo sft`, from a clone: `python recipes/sft.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
