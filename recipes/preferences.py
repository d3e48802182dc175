"""The same as `bielik-nemo preferences`, from a clone: `python recipes/preferences.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["preferences", *sys.argv[1:]]))
