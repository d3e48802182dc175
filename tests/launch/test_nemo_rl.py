"""The stage `grpo` by NeMo-RL: what is written, submitted to stand-ins of Slurm's commands, and taken back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from bielik_nemo import pipeline, preflight, stages
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config, compose
from bielik_nemo.errors import CheckpointError, ConfigError, Stopped, UserError
from bielik_nemo.launch import nemo_rl
from bielik_nemo.stages import GRAPH

GOLDEN = Path(__file__).with_name("nemo_rl.sub")
SHAPE = Architecture(2, 64, 128, 4, 2, 16, 300, False, 10000.0, 512, 1e-5)


def minitron(run_dir: Path) -> Config:
    """Bielik-Minitron-7B on two nodes of eight H200."""
    source = "{path: /tasks, rewards: [{function: bielik_nemo.align.rewards.maths}]}"
    cluster = ["account=plg-llm", "partition=plgrid-gpu-h200", "container_image=/images/nemo_rl.sqsh"]
    cluster += ["mounts=[/models:/models:ro]", "env={CPUS_PER_WORKER: '96'}"]
    overrides = ["grpo.engine=nemo_rl", "grpo.rollouts=vllm", "model.source=/models/bielik", f"grpo.sources=[{source}]"]
    overrides += [f"cluster.{each}" for each in cluster] + [f"run.dir={run_dir}", "grpo.prompts_per_rollout=2"]
    return compose("bielik_minitron_7b", [*overrides, "grpo.global_batch_size=2"])


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run up to `tasks`: three of them, one of which is too long, and one that is held out; the model is exported."""
    path = tmp_path / "run"
    (path / "tasks").mkdir(parents=True)
    lines = [json.dumps({"ids": [0] * n}) + "\n" for n in (3, 5000, 4, 2)]
    (path / "tasks" / "train.jsonl").write_text("".join(lines[:3]))
    (path / "tasks" / "held_out.jsonl").write_text(lines[3])
    (path / "tasks" / "summary.json").write_text(json.dumps({"stop_ids": [7]}))
    (path / "grpo" / "nemo_rl" / "model" / "hf").mkdir(parents=True)
    return path


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Stand-ins of sbatch, squeue and sacct on the path: `submitted` is what sbatch got, `queue` what squeue says."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "queue").write_text("")
    texts = {
        "sbatch": f'cat "${{@: -1}}" >> {commands}/submitted; echo 4711',
        "squeue": f"cat {commands}/queue",
        "sacct": "echo COMPLETED",
    }
    for name, text in texts.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # which NeMo-Run's tunnel hands on, and pytest does not
    return commands


def job_script() -> str:
    """Of Bielik-Minitron-7B, as sbatch gets it."""
    config, here = minitron(Path("/runs/minitron")), Path("/runs/minitron/grpo/nemo_rl")
    return nemo_rl.script(config, nemo_rl.slurm.executor(config, here, nemo_rl.environment(here)), here)


def test_job_script():
    """All lines of it that are not NeMo-Run's template's; written anew by `UPDATE=1 pytest tests/launch`."""
    from nemo_run.run.ray import slurm as upstream

    text = job_script()
    template = (Path(upstream.__file__).parent / "templates" / "ray.sub.j2").read_text().splitlines()
    own = "".join(f"{line}\n" for line in text.splitlines() if line not in template)
    if os.environ.get("UPDATE"):
        GOLDEN.write_text(own)
    assert own == GOLDEN.read_text()
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_job_script_asks_for_what_is_configured():
    text = job_script()
    for line in (
        "#SBATCH --account=plg-llm",
        "#SBATCH --partition=plgrid-gpu-h200",
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --time=24:00:00",
        "export CPUS_PER_WORKER=96",
        "export PYTHONPATH=/runs/minitron/grpo/nemo_rl/code",
        'COMMAND="${COMMAND:-bash /runs/minitron/grpo/nemo_rl/job.sh}"',
    ):
        assert line in text.splitlines(), line
    assert "--container-image=/images/nemo_rl.sqsh" in text
    assert "/models:/models:ro,/runs/minitron:/runs/minitron," in text


def test_dry_run_writes_everything_and_submits_nothing(run_dir, slurm, capfd, monkeypatch):
    config = minitron(run_dir)
    config.launch.dry_run = True
    said = []
    monkeypatch.setattr(nemo_rl.ui, "say", said.append)
    with pytest.raises(Stopped, match=r"nothing is submitted; it is in .*/bielik_minitron_7b-grpo/ray\.sub"):
        nemo_rl.run(config, run_dir)
    here = run_dir / "grpo" / "nemo_rl"
    script = here / "bielik_minitron_7b-grpo" / "ray.sub"
    assert said == [script.read_text()]
    assert not (slurm / "submitted").exists()
    for file in (script, here / "job.sh"):
        assert subprocess.run(["bash", "-n", file]).returncode == 0
    found = yaml.safe_load((here / "config.yaml").read_text())
    assert found["policy"]["model_name"] == str(here / "model" / "hf")
    assert found["policy"]["generation"]["stop_token_ids"] == [7]
    assert (found["grpo"]["max_num_steps"], found["grpo"]["max_val_samples"]) == (1, 1)  # two tasks, two to a rollout
    assert (here / "config.yaml").read_text().startswith("# For NeMo-RL 0.7.0 (81aa43dda476)")
    assert (here / "code" / "bielik_nemo" / "align" / "nemo_rl" / "schema.json").is_file()
    assert not list((here / "code").rglob("__pycache__"))


def test_submits_once(run_dir, slurm):
    config = minitron(run_dir)
    with pytest.raises(Stopped, match=r"job 4711 is submitted, logs are in .*/logs; start the same command again"):
        nemo_rl.run(config, run_dir)
    here = run_dir / "grpo" / "nemo_rl"
    written = here / "bielik_minitron_7b-grpo" / "ray.sub"
    assert (slurm / "submitted").read_text() == written.read_text()
    (slurm / "queue").write_text("RUNNING\n")  # what squeue says of its number as well
    (here / "code" / "of the running job").touch()
    with pytest.raises(
        Stopped, match=r"is running, logs are in .*/logs; start the same command again when it has ended"
    ):
        nemo_rl.run(config, run_dir)
    assert (slurm / "submitted").read_text() == written.read_text()
    assert (here / "code" / "of the running job").exists()


def test_goes_on_after_a_job_that_ended(run_dir, slurm):
    config = minitron(run_dir)
    for times in (1, 2):
        with pytest.raises(Stopped, match=r"job 4711 is submitted"):
            nemo_rl.run(config, run_dir)
        assert (slurm / "submitted").read_text().count("#SBATCH --account=plg-llm") == times
        jobs = run_dir / "grpo" / "nemo_rl" / "bielik_minitron_7b-grpo" / "job_ids.json"
        jobs.write_text('["4711"]')  # as the job leaves it


def test_what_slurm_refuses_is_one_line(run_dir, slurm):
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: Invalid account' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"^grpo\.engine=nemo_rl: sbatch: sbatch: error: Invalid account$"):
        nemo_rl.run(minitron(run_dir), run_dir)


def test_without_slurm_it_says_so(run_dir, monkeypatch):
    monkeypatch.setattr(nemo_rl.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"there is no sbatch on the path; launch.dry_run=true writes its script"):
        nemo_rl.run(minitron(run_dir), run_dir)


def test_what_nemo_rl_cannot_do_is_said_before_the_model_is_exported(run_dir, slurm):
    shutil.rmtree(run_dir / "grpo")
    config = minitron(run_dir)
    config.grpo.passes_per_rollout = 2
    with pytest.raises(ConfigError, match=r"grpo.passes_per_rollout: found 2, allowed: 1 with grpo.engine=nemo_rl"):
        nemo_rl.run(config, run_dir)


def test_the_model_so_far_is_exported(run_dir, slurm, monkeypatch):
    """Of the stage before, by one process, whatever the layout of the job."""
    from bielik_nemo.stages import export

    asked = []
    monkeypatch.setattr(export, "write", lambda *given: asked.append(given))
    shutil.rmtree(run_dir / "grpo" / "nemo_rl" / "model")
    config = minitron(run_dir)
    config.parallel.tp = 2
    with pytest.raises(Stopped):
        nemo_rl.run(config, run_dir)
    ((given, *paths),) = asked
    assert (given.parallel.tp, config.parallel.tp) == (1, 2)
    assert paths == [run_dir, run_dir / stages.model_stage(config, "grpo"), run_dir / "grpo" / "nemo_rl" / "model"]


def commands(here: Path, tmp_path: Path, result: str) -> subprocess.CompletedProcess[str]:
    """Run job.sh with a stand-in for uv, in whose training `result` comes to be named."""
    home = tmp_path / "home"
    home.mkdir()
    training = f"echo {result} > {here}/result" if result else ":"
    text = f'echo "$@" >> {home}/asked\n[[ "$2" == --extra ]] && mkdir {here}/hf.partial || {training}\n'
    (home / "uv").write_text(f"#!/bin/bash\n{text}")
    (home / "uv").chmod(0o755)
    script = nemo_rl.commands(here).replace(f"cd {nemo_rl.HOME}", f"cd {home}; PATH={home}:$PATH")
    return subprocess.run(["bash"], input=script, text=True, capture_output=True)


def test_the_job_trains_and_then_converts_the_result(run_dir, tmp_path):
    here = run_dir / "grpo" / "nemo_rl"
    found = commands(here, tmp_path, "/checkpoints/step_3")
    assert found.returncode == 0, found.stderr
    train, convert = (tmp_path / "home" / "asked").read_text().splitlines()
    assert train == f"run python -m bielik_nemo.align.nemo_rl.run {here}/config.yaml"
    assert convert == (
        "run --extra mcore python examples/converters/convert_megatron_to_hf.py "
        "--config /checkpoints/step_3/config.yaml "
        f"--megatron-ckpt-path /checkpoints/step_3/policy/weights/iter_0000000 --hf-ckpt-path {here}/hf.partial"
    )
    assert (here / "hf").is_dir()


def test_a_job_that_was_stopped_in_time_converts_nothing(run_dir, tmp_path):
    here = run_dir / "grpo" / "nemo_rl"
    found = commands(here, tmp_path, "")
    assert found.returncode == 0
    assert "stopped in time" in found.stdout
    assert not (here / "hf").exists()


def test_takes_what_nemo_rl_has_left(run_dir, tmp_path):
    config = minitron(run_dir)
    before = run_dir / stages.model_stage(config, "grpo")
    before.mkdir()
    SHAPE.to_json(before / "architecture.json")
    here = run_dir / "grpo" / "nemo_rl"
    (here / "hf").mkdir()
    (here / "hf" / "config.json").write_text(json.dumps(SHAPE.to_hf()))
    (here / "hf" / "model.safetensors").write_text("weights")
    (here / "rollouts").mkdir()
    (here / "rollouts" / "00000.jsonl").write_text("{}\n")
    assert nemo_rl.run(config, run_dir) == {"engine": "nemo_rl 0.7.0"}
    for name in GRAPH["grpo"].results(config):
        assert (run_dir / "grpo" / name).exists(), name
    assert (run_dir / "grpo" / "hf" / "model.safetensors").read_text() == "weights"
    assert (run_dir / "grpo" / "rollouts" / "00000.jsonl").is_file()

    Architecture(**{**vars(SHAPE), "num_layers": 3}).to_json(before / "architecture.json")
    with pytest.raises(CheckpointError, match=r"found another shape than the pipeline's model: .*layers"):
        nemo_rl.run(config, run_dir)


def test_what_is_missing_is_said_before_the_first_stage(run_dir):
    config = minitron(run_dir)
    config.pipeline.stages = ["import_hf", "tasks", "grpo", "export"]
    config.cluster.account, config.grpo.rollouts = "", "megatron"
    found = [finding.message for finding in preflight.findings(config) if finding.level == "error"]
    for told in ("cluster.account: found ''", "grpo.rollouts: found megatron, allowed: vllm with grpo.engine=nemo_rl"):
        assert any(message.startswith(told) for message in found), told


def test_the_pipeline_hands_over(run_dir, monkeypatch):
    """Also where `cluster` has several machines, on which it starts nothing itself."""
    monkeypatch.setattr(nemo_rl, "run", lambda config, path: {"engine": path.name})
    assert pipeline._execute(minitron(run_dir), GRAPH["grpo"], run_dir, 0) == {"engine": "run"}
