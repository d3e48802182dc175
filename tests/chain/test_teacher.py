"""Distillation from the stage `teacher`: near a live teacher's, not disturbed by kills, refused when it cannot fit.

Six steps of four samples of 128 tokens, 20 draws a token; a shard holds five samples, so that there are five of them.
A token takes 42.5 + 2 bytes at most: 20 ids of two, 20 bits, half precision; and a sample 8 more.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bielik_nemo import cli
from bielik_nemo.config import CHAIN
from bielik_nemo.errors import CheckpointError, ConfigError

STAGES = [*CHAIN[:4], "teacher", "distill"]
SHARD_BYTES = 5 * (128 * 89 // 2 + 8)
# Which operation is the last before which, and at how many shards and steps the restart must begin.
MOMENTS = {
    "never": (None, 5, 6),
    "teacher: third shard": (["os.rename", "teacher/shards/000000010.safetensors", 1], 3, 6),
    "teacher: before its record": (["os.rename", "teacher/teacher.json", 1], 0, 6),
    "distill: between two checkpoints": (["open", "distill/metrics.jsonl", 5], 0, 4),
}


@pytest.fixture(scope="module")
def outcomes(chain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict, dict]]:
    """Each moment's run directory, with what happened in the killed and in the restarted process."""
    folder = tmp_path_factory.mktemp("taught")
    jobs = []
    for kill, *_ in MOMENTS.values():
        job = {
            "run_dir": str(chain.copy("taught", before="distill")),
            "overrides": [*chain.overrides, f"pipeline.stages=[{','.join(STAGES)}]"],
            "stages": STAGES,
            "shard_bytes": SHARD_BYTES,
        }
        jobs += [{**job, "kill": kill}, {**job, "kill": None}]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    killer = [sys.executable, str(Path(__file__).with_name("killer.py"))]
    with open(folder / "killer.log", "w") as log:
        command = [*killer, str(folder / "jobs.json"), str(folder / "results.json")]
        assert subprocess.run(command, stdout=log, stderr=log).returncode == 0, folder / "killer.log"
    results = json.loads((folder / "results.json").read_text())
    pairs = zip(results[::2], results[1::2], strict=True)
    return {name: (Path(job["run_dir"]), *both) for name, job, both in zip(MOMENTS, jobs[::2], pairs, strict=True)}


def test_a_pass_leaves_its_shards_and_a_manifest(chain, outcomes):
    run_dir, first, again = outcomes["never"]
    assert first["ended"] == again["ended"] == 0, f"see {run_dir}.out"
    assert not {path.split("/")[0] for _, path in again["operations"]} & set(STAGES), "done before, and done again"
    manifest = chain.manifest(run_dir, "teacher")
    names = [f"shards/{number:09d}.safetensors" for number in (0, 5, 10, 15, 20)]
    assert sorted(manifest.outputs) == [*names, "teacher.json"]
    assert set(manifest.inputs) == {"import_hf", "data", "score"}
    assert manifest.metrics["tokens"] == 6 * 4 * 128
    assert 2 + 4.5 < manifest.metrics["bytes_per_token"] < 44.5  # one id at least
    assert manifest.metrics["teacher_loss"] == pytest.approx(
        chain.manifest(run_dir, "score").metrics["source_loss"], rel=1e-5
    )
    assert "teacher" in chain.manifest(run_dir, "distill").inputs


def test_the_student_learns_as_from_a_live_teacher(chain, outcomes):
    """Same records; the same untrained student; six noisy steps later held-out losses are within 1 %."""
    run_dir, *_ = outcomes["never"]
    cached, live = (chain.result(d, "distill")["metrics.jsonl"] for d in (run_dir, chain.finished))
    assert [record.keys() for record in cached] == [record.keys() for record in live]
    assert cached[0] == live[0]
    assert cached[1]["loss"] != live[1]["loss"]
    assert cached[-1]["held_out_loss"] == pytest.approx(live[-1]["held_out_loss"], rel=0.01)


@pytest.mark.parametrize("moment", list(MOMENTS)[1:])
def test_a_kill_changes_nothing(moment: str, chain, outcomes):
    plain, *_ = outcomes["never"]
    run_dir, killed, restarted = outcomes[moment]
    _, shards, steps = MOMENTS[moment]
    assert killed["ended"] == signal.SIGKILL, f"never came to it; see {run_dir}.out"
    assert restarted["ended"] == 0, f"see {run_dir}.out"
    for stage in ("teacher", "distill"):
        assert chain.result(run_dir, stage) == chain.result(plain, stage), stage
    written = [path for name, path in restarted["operations"] if name == "os.rename" and "teacher/shards/" in path]
    assert len(written) == shards
    records = [operation for operation in restarted["operations"] if operation == ["open", "distill/metrics.jsonl"]]
    assert len(records) == steps + {6: 3, 4: 2}[steps]
    assert not [path for path in run_dir.rglob("*") if ".partial" in path.name or path.name == "index_cache"]


def test_a_cache_of_another_teacher_is_refused(chain, outcomes, tmp_path):
    """The stage itself, before its first step; the pipeline would have made the cache again."""
    from bielik_nemo.stages import distill

    run_dir, *_ = outcomes["never"]
    config = chain.config(run_dir, f"pipeline.stages=[{','.join(STAGES)}]")
    distill.check_cache(config, run_dir)
    config.run.seed = 2
    config.trainer.max_steps = 7
    message = r"samples: the cache has 24, this run wants 28; seed: the cache has 1234, this run wants 2"
    with pytest.raises(CheckpointError, match=message):
        distill.check_cache(config, run_dir)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("kind", "top_k"),
        ("temperature", 2.0),
        ("teacher", "0" * 64),
        ("tokenizer", "0" * 64),
        ("data", "0" * 64),
        ("seed", 4321),
    ],
)
def test_a_cache_of_another_run_is_refused_on_the_command_line(field: str, other, chain, outcomes, tmp_path, capfd):
    """Put in the place of the run's own, with as many bytes, so that the pipeline takes the stage for done."""
    run_dir = Path(shutil.copytree(outcomes["never"][0], tmp_path / "run"))
    shutil.rmtree(run_dir / "distill")
    path = run_dir / "teacher" / "teacher.json"
    size, record = path.stat().st_size, json.loads(path.read_text())
    text = json.dumps(record | {field: other}, indent=1)
    path.write_text(text + " " * (size - len(text)))
    command = ["distill", "experiment=tiny", *chain.overrides, f"run.dir={run_dir}"]
    assert cli.main([*command, f"pipeline.stages=[{','.join(STAGES)}]"]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line == (
        f"error: {run_dir}/teacher: cache of another run; {field}: the cache has {other}, "
        f"this run wants {record[field]}"
    )
    assert not list(run_dir.glob("distill/*.jsonl")) and not (run_dir / "distill" / "checkpoints").exists()


@pytest.mark.parametrize("override", ["teacher.kind=top_k", "teacher.samples_per_token=10", "run.seed=2"])
def test_a_cache_of_another_configuration_is_not_used(override: str, chain, outcomes, tmp_path, capfd):
    run_dir = Path(shutil.copytree(outcomes["never"][0], tmp_path / "run"))
    command = ["distill", "experiment=tiny", *chain.overrides, f"run.dir={run_dir}"]
    assert cli.main([*command, f"pipeline.stages=[{','.join(STAGES)}]", override]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "which has not finished under this configuration" in line


def test_another_temperature_is_refused(chain):
    with pytest.raises(ConfigError, match=r"distill\.temperature: found 2\.0, allowed: 1 with teacher in pipeline"):
        chain.config(Path("run"), f"pipeline.stages=[{','.join(STAGES)}]", "distill.temperature=2.0")
