"""The same as `bielik-nemo pretrain`, from a clone: `python recipes/pretrain.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
