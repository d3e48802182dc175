"""`python recipes/export.py experiment=tiny` is `bielik-nemo export experiment=tiny`: Megatron checkpoint -> Hugging Face checkpoint."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
