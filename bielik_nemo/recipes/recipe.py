"""An experiment as functions that return NeMo-Run tasks.

Annotations are types and not text here: NeMo-Run's command line (0.11.1) reads arguments of factories by them.
"""

from typing import Optional

import nemo_run as run

from bielik_nemo.config import Config, compose
from bielik_nemo.recipes import task


class Recipe:
    """The tasks of an experiment, each registered with NeMo-Run's command line as `<experiment>_<task>`.

    All methods take the same arguments, and all tasks of a run must be given the same ones:

        run_dir: where the run lives; "": where the experiment has it.
        num_nodes: of stages that train; None: the experiment's.
        num_gpus_per_node: of the same; None: the experiment's.
        overrides: Hydra's, such as `optim.lr=1e-4` or `cluster=helios_gh200`; paths in them absolute; None: none.

    They raise ConfigError: one line for each key that is unknown, mistyped or impossible.
    """

    def __init__(self, experiment: str):
        self.experiment = experiment
        made_by = {task.train: (self.distill, self.sft, self.dpo, self.grpo)}
        made_by |= {task.run_stage: (self.prune, self.export), task.run_pipeline: (self.pipeline,)}
        for target, methods in made_by.items():
            for method in methods:
                run.cli.factory(method, target, name=f"{experiment}_{method.__name__}")

    def config(
        self,
        run_dir: str = "",
        num_nodes: Optional[int] = None,
        num_gpus_per_node: Optional[int] = None,
        overrides: Optional[list[str]] = None,
    ) -> Config:
        """What all tasks are made of."""
        given = {"run.dir": f"'{run_dir}'" if run_dir else None}
        given |= {"cluster.nodes": num_nodes, "cluster.devices_per_node": num_gpus_per_node}
        named = [f"{key}={value}" for key, value in given.items() if value is not None]
        return compose(self.experiment, [*(overrides or []), *named])

    def prune(
        self,
        run_dir: str = "",
        num_nodes: Optional[int] = None,
        num_gpus_per_node: Optional[int] = None,
        overrides: Optional[list[str]] = None,
    ) -> run.Partial:
        """Remove the least important layers and channels; needs `import_hf`, `data` and `score`."""
        return task.computing(self.config(run_dir, num_nodes, num_gpus_per_node, overrides), "prune")

    def distill(
        self,
        run_dir: str = "",
        num_nodes: Optional[int] = None,
        num_gpus_per_node: Optional[int] = None,
        overrides: Optional[list[str]] = None,
    ) -> task.Task:
        """Train the pruned model on the source's logits; needs `prune`."""
        return task.training(self.config(run_dir, num_nodes, num_gpus_per_node, overrides), "distill")

    def sft(
        self,
        run_dir: str = "",
        num_nodes: Optional[int] = None,
        num_gpus_per_node: Optional[int] = None,
        overrides: Optional[list[str]] = None,
    ) -> task.Task:
        """Train on the answers of conversations; needs `chat`."""
        return task.training(self.config(run_dir, num_nodes, num_gpus_per_node, overrides), "sft")

    def dpo(
        self,
        run_dir: str = "",
        num_nodes: Optional[int] = None,
        num_gpus_per_node: Optional[int] = None,
        overrides: Optional[list[str]] = None,
    ) -> task.Task:
        """Train on preferences; needs `preferences` and `reference`."""
        return task.training(self.config(run_dir, num_nodes, num_gpus_per_node, overrides), "dpo")

    def grpo(
        self,
        run_dir: str = "",
        num_nodes: Optional[int] = None,
        num_gpus_per_node: Optional[int] = None,
        overrides: Optional[list[str]] = None,
    ) -> task.Task:
        """Train on verifiable rewards; needs `tasks`."""
        return task.training(self.config(run_dir, num_nodes, num_gpus_per_node, overrides), "grpo")

    def export(
        self,
        run_dir: str = "",
        num_nodes: Optional[int] = None,
        num_gpus_per_node: Optional[int] = None,
        overrides: Optional[list[str]] = None,
    ) -> run.Partial:
        """Write the newest model of the pipeline as a Hugging Face checkpoint."""
        return task.computing(self.config(run_dir, num_nodes, num_gpus_per_node, overrides), "export")

    def pipeline(
        self,
        run_dir: str = "",
        num_nodes: Optional[int] = None,
        num_gpus_per_node: Optional[int] = None,
        overrides: Optional[list[str]] = None,
    ) -> run.Partial:
        """Run all stages of `pipeline.stages` on one machine."""
        return task.whole(self.config(run_dir, num_nodes, num_gpus_per_node, overrides))
