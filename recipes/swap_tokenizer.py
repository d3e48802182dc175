"""The same as `bielik-nemo swap_tokenizer`, from a clone: `python recipes/swap_tokenizer.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["swap_tokenizer", *sys.argv[1:]]))
