"""The same as `bielik-nemo pipeline`, from a clone: `python recipes/pipeline.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["pipeline", *sys.argv[1:]]))
