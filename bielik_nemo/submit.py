"""Hand stages to a cluster: check, send the code, and let NeMo-Run submit a job for each."""
