"""Hydra configuration groups, installed as `bielik_nemo.conf` and reachable as `pkg://bielik_nemo.conf`."""
