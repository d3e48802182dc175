"""The same as `bielik-nemo evaluate`, from a clone: `python recipes/evaluate.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
