"""A Hydra application of its own: bielik_nemo's groups are part of its configuration."""

import hydra
from omegaconf import DictConfig

from bielik_nemo import config, preflight
from bielik_nemo.composition import register_schema

register_schema()


@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(composed: DictConfig) -> None:
    """Say what would be run, and what would stop it."""
    ours = config.from_hydra(composed.model)
    layers, steps = ours.prune.target.num_layers, ours.trainer.max_steps
    print(f"{composed.purpose}: {layers} layers, {steps} steps at {ours.optim.lr}")
    for finding in preflight.findings(ours):
        print(f"{finding.level}: {finding.message}")


if __name__ == "__main__":
    main()
