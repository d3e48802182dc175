"""`python recipes/pipeline.py experiment=tiny` is `bielik-nemo pipeline experiment=tiny`: all stages, then the report."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["pipeline", *sys.argv[1:]]))
