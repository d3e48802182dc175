"""The same as `bielik-nemo tasks`, from a clone: `python recipes/tasks.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["tasks", *sys.argv[1:]]))
