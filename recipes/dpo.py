"""The same as `bielik-nemo dpo`, from a clone: `python recipes/dpo.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["dpo", *sys.argv[1:]]))
