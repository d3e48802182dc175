"""The same as `bielik-nemo benchmark`, from a clone: `python recipes/benchmark.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
