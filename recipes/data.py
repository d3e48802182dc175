"""`python recipes/data.py experiment=tiny` is `bielik-nemo data experiment=tiny`: text -> tokenised training and held-out sets."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
