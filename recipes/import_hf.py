"""The same as `bielik-nemo import_hf`, from a clone: `python recipes/import_hf.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["import_hf", *sys.argv[1:]]))
