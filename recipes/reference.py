"""The same as `bielik-nemo reference`, from a clone: `python recipes/reference.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["reference", *sys.argv[1:]]))
