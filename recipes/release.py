"""The same as `bielik-nemo release`, from a clone: `python recipes/release.py experiment=tiny release.licence=MIT`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["release", *sys.argv[1:]]))
