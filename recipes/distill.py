"""`python recipes/distill.py experiment=tiny` is `bielik-nemo distill experiment=tiny`: train the pruned model on the source's logits."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
