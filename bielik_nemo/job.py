"""The program of a job: one stage, on every rank that Slurm or torchrun has started."""
