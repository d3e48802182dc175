"""Reinforcement learning at cluster scale by NeMo-RL: the same recipe in its configuration, tasks, rewards and loss.

render.py turns a configuration into NeMo-RL's, checked against schema.json, which launch/nemo_rl_schema.py has read
from the release that it names. run.py, environment.py and loss.py run inside NeMo-RL's container and import it where
they use it, so that everything here is imported, and tested, without it.
"""
