"""The same as `bielik-nemo data`, from a clone: `python recipes/data.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
