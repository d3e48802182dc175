"""The same as `bielik-nemo grpo`, from a clone: `python recipes/grpo.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["grpo", *sys.argv[1:]]))
