"""The stage `grpo` by NeMo-RL: a Ray cluster on Slurm trains, and what it leaves becomes the stage's result.

What it takes stands in `grpo/nemo_rl`: `model/hf`, the model so far; `config.yaml`, NeMo-RL's; `code`, this package;
`job.sh`, which runs in the container; and NeMo-Run's `<name>/ray.sub`, which is submitted. It leaves `checkpoints`,
`rollouts`, `logs`, and at its end `hf`. The command ends when the job is submitted; started again, it takes `hf`, or
submits a job that goes on from the newest checkpoint, unless one is queued or running.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bielik_nemo import artifacts, ui
from bielik_nemo.align.nemo_rl.render import Job, render
from bielik_nemo.align.nemo_rl.schema import schema
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config, Parallel
from bielik_nemo.errors import CheckpointError, ConfigError, Stopped, UserError
from bielik_nemo.launch import slurm
from bielik_nemo.stages import model_stage
from bielik_nemo.validation.shapes import other_shape

if TYPE_CHECKING:
    from nemo_run import SlurmExecutor

HOME = "/opt/nemo-rl"
"""Where NeMo-RL is in its container."""


BUSY = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
"""States of a job that has not ended."""


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Take what NeMo-RL has left, or submit it.

    Raises:
        ConfigError: NeMo-RL cannot do what is configured, or `cluster` does not say where to.
        CheckpointError: what it has left is another model.
        UserError: Slurm refuses.
        Stopped: the job is submitted, or runs already, or with `launch.dry_run` is shown.
    """
    run_dir = run_dir.absolute()
    here, name = run_dir / "grpo" / "nemo_rl", f"{config.run.name}-grpo"
    if (here / "hf").is_dir():
        return take(config, run_dir)
    executor = slurm.executor(config, here, environment(here))
    if config.launch.dry_run:
        prepare(config, run_dir, here)
        text = script(config, executor, here)
        artifacts.write_text(here / name / "ray.sub", text)
        ui.say(text)
        raise Stopped(f"grpo: launch.dry_run: nothing is submitted; it is in {here / name / 'ray.sub'}")
    if shutil.which("sbatch") is None:
        raise ConfigError("grpo.engine=nemo_rl: there is no sbatch on the path; launch.dry_run=true writes its script")
    again = f"logs are in {here / name / 'logs'}; start the same command again when it has ended"
    from nemo_run.run.ray.slurm import SlurmRayCluster

    cluster = SlurmRayCluster(name=name, executor=executor)
    with _slurm():
        found = cluster.status()
    if found["state"] in BUSY:
        raise Stopped(f"grpo: job {found['job_id']} is {found['state'].lower()}, {again}")
    prepare(config, run_dir, here)
    with _slurm():
        job = cluster.create(command=f"bash {here / 'job.sh'}", workdir=str(here))
    raise Stopped(f"grpo: job {job} is submitted, {again}")


@contextlib.contextmanager
def _slurm() -> Iterator[None]:
    """Tell what Slurm says in one line."""
    from invoke import UnexpectedExit

    try:
        yield
    except UnexpectedExit as error:
        said = " ".join(error.result.stderr.split())
        raise UserError(f"grpo.engine=nemo_rl: {error.result.command.split()[0]}: {said}") from None


def environment(here: Path) -> dict[str, str]:
    """What is set in the job: where this package is, and where NeMo-RL keeps the model that it has converted."""
    return {"PYTHONPATH": str(here / "code"), "NRL_MEGATRON_CHECKPOINT_DIR": str(here / "converted")}


def script(config: Config, executor: SlurmExecutor, here: Path) -> str:
    """The text that sbatch gets."""
    from nemo_run.run.ray.slurm import SlurmRayRequest

    name = f"{config.run.name}-grpo"
    return SlurmRayRequest(
        name=name,
        cluster_dir=str(here / name),
        template_name="ray.sub.j2",
        executor=executor,
        command=f"bash {here / 'job.sh'}",
        workdir=str(here),
        launch_cmd=["sbatch"],
    ).materialize()


def prepare(config: Config, run_dir: Path, here: Path) -> None:
    """Write what the job reads.

    Raises:
        ConfigError: NeMo-RL cannot do what is configured.
        CheckpointError: the model so far cannot be exported.
    """
    import yaml

    job = inputs(config, run_dir, here)
    rendered = render(config, job)
    if not job.model.is_dir():
        from bielik_nemo.stages import export

        one = replace(config, parallel=Parallel())  # this process, whatever the job's layout
        job.model.parent.mkdir(parents=True, exist_ok=True)
        export.write(one, run_dir, run_dir / model_stage(config, "grpo"), job.model.parent)
    shutil.rmtree(here / "code", ignore_errors=True)
    package = Path(__file__).parents[1]
    shutil.copytree(package, here / "code" / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    text = yaml.safe_dump(rendered, sort_keys=False, allow_unicode=True)
    known = schema()
    head = f"# For NeMo-RL {known['version']} ({known['commit'][:12]}); job.sh beside it is the command.\n"
    artifacts.write_text(here / "config.yaml", head + text)
    artifacts.write_text(here / "job.sh", commands(here))


def commands(here: Path) -> str:
    """What runs in the container: training, and when all of it is done the model as a Hugging Face directory."""
    return f"""\
#!/bin/bash
# In NeMo-RL's container, on the head of the Ray cluster.
set -euo pipefail
cd {HOME}
uv run python -m bielik_nemo.align.nemo_rl.run {here}/config.yaml
if [[ ! -f {here}/result ]]; then
    echo "stopped in time; the next job goes on"
    exit
fi
result=$(<{here}/result)
uv run --extra mcore python examples/converters/convert_megatron_to_hf.py --config "$result/config.yaml" \\
    --megatron-ckpt-path "$result/policy/weights/iter_0000000" --hf-ckpt-path {here}/hf.partial
mv {here}/hf.partial {here}/hf
"""


def inputs(config: Config, run_dir: Path, here: Path) -> Job:
    """The tasks that are there, and where the rest will be."""
    tasks = run_dir / "tasks"
    stop_ids = artifacts.read_json(tasks / "summary.json")["stop_ids"]
    train, held_out = (
        usable(tasks / name, config.grpo.max_prompt_tokens) for name in ("train.jsonl", "held_out.jsonl")
    )
    return Job(
        directory=here,
        model=here / "model" / "hf",
        tasks=tasks,
        train=train,
        held_out=min(held_out, config.chat.held_out_tasks),
        stop_ids=tuple(stop_ids),
    )


def usable(path: Path, longest: int) -> int:
    """Tasks of a file with no more than `longest` tokens."""
    with path.open(encoding="utf-8") as lines:
        return sum(len(json.loads(line)["ids"]) <= longest for line in lines)


def take(config: Config, run_dir: Path) -> dict[str, Any]:
    """Make NeMo-RL's model the stage's result.

    Raises:
        CheckpointError: it is another model than the one that it began with.
    """
    here, stage = run_dir / "grpo" / "nemo_rl", run_dir / "grpo"
    began = Architecture.from_json(run_dir / model_stage(config, "grpo") / "architecture.json")
    if differing := other_shape(Architecture.from_hf(here / "hf"), began):
        raise CheckpointError(f"{here / 'hf'}: found another shape than the pipeline's model: {differing}")
    # Both are there, and take the space of one.
    shutil.copytree(here / "hf", stage / "hf", copy_function=os.link)
    (here / "rollouts").mkdir(exist_ok=True)
    shutil.copytree(here / "rollouts", stage / "rollouts", copy_function=os.link)
    began.to_json(stage / "architecture.json")
    ui.say(f"  {stage / 'hf'}: by NeMo-RL")
    return {"engine": f"nemo_rl {schema()['version']}"}
