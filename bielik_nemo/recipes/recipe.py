"""An experiment as functions that return NeMo-Run tasks.

Annotations are types and not text here: NeMo-Run's command line (0.11.1) reads arguments of factories by them.
"""

from collections.abc import Callable
from functools import partial
from typing import Optional

import nemo_run as run

from bielik_nemo.config import Config, compose
from bielik_nemo.recipes import task
from bielik_nemo.stages import GRAPH


class Recipe:
    """The tasks of an experiment, each registered with NeMo-Run's command line as `<experiment>_<task>`.

    All of its functions take the same arguments, and all tasks of a run must be given the same ones:

        run_dir: where the run lives; "": where the experiment has it.
        num_nodes: of stages that train; None: the experiment's.
        num_gpus_per_node: of the same; None: the experiment's.
        overrides: Hydra's, such as `optim.lr=1e-4` or `cluster=helios_gh200`; paths in them absolute; None: none.

    They raise ConfigError: one line for each key that is unknown, mistyped or impossible.
    """

    def __init__(self, experiment: str):
        self.experiment = experiment
        # What each needs must be done in the run's directory.
        self.swap_tokenizer = self._tasks("swap_tokenizer", "Give the model another tokenizer; needs `import_hf`.")
        self.adapt = self._tasks("adapt", "Train embeddings and outermost layers; needs `data`.")
        self.pretrain = self._tasks("pretrain", "Train the source further; needs `data`.")
        self.prune = self._tasks("prune", "Remove the least important layers and channels; needs `data` and `score`.")
        self.distill = self._tasks("distill", "Train the pruned model on the source's logits; needs `prune`.")
        self.sft = self._tasks("sft", "Train on the answers of conversations; needs `chat`.")
        self.dpo = self._tasks("dpo", "Train on preferences; needs `preferences` and `reference`.")
        self.grpo = self._tasks("grpo", "Train on verifiable rewards; needs `tasks`.")
        self.export = self._tasks("export", "Write the newest model of the pipeline as a Hugging Face checkpoint.")
        self.pipeline = self._tasks("pipeline", "Run all stages of `pipeline.stages` on one machine.")

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

    def _tasks(self, name: str, does: str) -> Callable[..., run.Partial]:
        """The function that makes one kind of task, known to NeMo-Run."""
        if name == "pipeline":
            target, make = task.run_pipeline, task.whole
        elif GRAPH[name].trains:
            target, make = task.train, partial(task.training, stage=name)
        else:
            target, make = task.run_stage, partial(task.computing, stage=name)

        def factory(
            run_dir: str = "",
            num_nodes: Optional[int] = None,
            num_gpus_per_node: Optional[int] = None,
            overrides: Optional[list[str]] = None,
        ) -> run.Partial:
            return make(self.config(run_dir, num_nodes, num_gpus_per_node, overrides))

        factory.__name__, factory.__doc__ = name, does
        run.cli.factory(factory, target, name=f"{self.experiment}_{name}")
        return factory
