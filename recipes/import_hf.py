"""`python recipes/import_hf.py experiment=tiny` is `bielik-nemo import_hf experiment=tiny`: Hugging Face checkpoint -> Megatron checkpoint."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["import_hf", *sys.argv[1:]]))
