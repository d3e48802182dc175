"""A real Slurm on this machine: launch/local_slurm brings it up and takes it away, and jobs run there."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "local_slurm"
here = shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
slurm = [pytest.mark.slurm, pytest.mark.skipif(here is None, reason="no slurmctld: apt-get install slurm-wlm munge")]


def local_slurm(*arguments: str, configuration: str = "") -> subprocess.CompletedProcess:
    environment = os.environ | {"SLURM_CONF": configuration}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., str]]:
    """`ask("squeue", "--noheader")` of a cluster of two machines, which leaves nothing behind."""
    brought_up = local_slurm("up", "--nodes", "2", "--cpus", "4")
    assert brought_up.returncode == 0, brought_up.stderr
    name, _, configuration = brought_up.stdout.removeprefix("export ").strip().partition("=")
    assert name == "SLURM_CONF"
    environment = os.environ | {"SLURM_CONF": configuration}

    def command(*words: str) -> str:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    pids = [int(path.read_text()) for path in Path(configuration).parent.glob("*.pid")]
    assert len(pids) == 4, "munged, slurmctld and two slurmd"
    yield command
    taken_down = local_slurm("down", configuration=configuration)
    assert taken_down.returncode == 0, taken_down.stderr
    assert not Path(configuration).parent.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


class TestCluster:
    pytestmark = slurm

    def test_a_job_runs_on_both_machines(self, ask, tmp_path):
        """Slurm's names of the machines are addresses of this one, which a program can connect to."""
        ask("sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path / 'out'}", "--wrap",
            "scontrol show hostnames; srun -l printenv SLURMD_NODENAME")  # fmt: skip
        until = time.monotonic() + 5
        while len((tmp_path / "out").read_text().split()) < 6 and time.monotonic() < until:
            time.sleep(0.1)
        assert sorted((tmp_path / "out").read_text().splitlines()) == [
            "0: 127.0.0.1", "127.0.0.1", "127.0.0.2", "1: 127.0.0.2",
        ]  # fmt: skip


class TestRefused:
    @pytest.mark.parametrize("configuration", ["", "/etc/slurm/slurm.conf"])
    def test_a_cluster_that_it_did_not_bring_up_is_left_alone(self, configuration):
        done = local_slurm("down", configuration=configuration)
        assert (done.returncode, done.stderr) == (
            2,
            f"error: SLURM_CONF={configuration}: allowed is what `local_slurm up` has printed\n",
        )

    def test_programs_that_are_missing_are_named(self, monkeypatch):
        from importlib.machinery import SourceFileLoader
        from importlib.util import module_from_spec, spec_from_loader

        loader = SourceFileLoader("local_slurm", str(SCRIPT))
        module = module_from_spec(spec_from_loader("local_slurm", loader))
        loader.exec_module(module)
        monkeypatch.setattr(module, "find", lambda program: None if program == "munged" else program)
        with pytest.raises(RuntimeError, match=r"^munged: not found; Debian has them in slurm-wlm and munge$"):
            module.up(nodes=1, cpus=1, gpus=0)
