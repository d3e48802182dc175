"""The same as `bielik-nemo chat`, from a clone: `python recipes/chat.py experiment=tiny`."""

import sys

from bielik_nemo.cli import main

if __name__ == "__main__":
    sys.exit(main(["chat", *sys.argv[1:]]))
