"""The same as `bielik-nemo teacher`, from a clone: `python recipes/teacher.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["teacher", *sys.argv[1:]]))
