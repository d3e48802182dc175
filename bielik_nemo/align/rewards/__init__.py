"""The rewards that come with the package, one file each; see reward.py for what a reward is."""
