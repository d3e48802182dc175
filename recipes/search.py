"""The same as `bielik-nemo search`, from a clone: `python recipes/search.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
