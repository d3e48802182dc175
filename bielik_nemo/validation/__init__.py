"""What is impossible in a composed configuration, as far as it can be seen without weights or text.

Types and key names are the schema's; here are ranges and allowed words (ranges.py), and what must fit together in
training (training.py), in the pipeline (stages.py), in what is asked of a cluster (launch.py) and in the models' shapes
(shapes.py). What only a job that is submitted needs is in submission.py.
"""

from __future__ import annotations

from bielik_nemo.config import Config
from bielik_nemo.validation import launch, ranges, shapes, stages, training


def problems(config: Config) -> list[str]:
    """Every problem as `key: found ..., allowed: ...`; empty when there is none."""
    found = list(ranges.problems(config))
    # What must fit together is worth asking only of numbers that can be.
    return found or [
        *training.problems(config),
        *stages.problems(config),
        *launch.problems(config),
        *shapes.problems(config),
    ]
