"""The same as `bielik-nemo export`, from a clone: `python recipes/export.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
