"""The same as `bielik-nemo tokenizers`, from a clone: `python recipes/tokenizers.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["tokenizers", *sys.argv[1:]]))
