"""The same as `bielik-nemo quantize`, from a clone: `python recipes/merge.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["quantize", *sys.argv[1:]]))
