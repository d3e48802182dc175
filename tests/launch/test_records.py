"""NeMo-Run's home is the run's own, and only while it is asked for."""

from __future__ import annotations

from pathlib import Path

from nemo_run import Experiment, LocalExecutor, Script, config
from nemo_run.run.torchx_backend.schedulers import local, slurm

from bielik_nemo.launch import records


def test_home_is_set_and_set_back(tmp_path):
    before = config.get_nemorun_home(), slurm.SLURM_JOB_DIRS, local.LOCAL_JOB_DIRS
    with records.home(records.directory(tmp_path)) as home:
        assert home == tmp_path / "launch" / "records" and home.is_dir()
        assert config.get_nemorun_home() == str(home)
        assert Path(slurm.SLURM_JOB_DIRS).parent == Path(local.LOCAL_JOB_DIRS).parent == home
    assert (config.get_nemorun_home(), slurm.SLURM_JOB_DIRS, local.LOCAL_JOB_DIRS) == before


def test_submissions_are_known_by_number(tmp_path):
    assert records.identifiers(tmp_path) == []
    with records.home(records.directory(tmp_path)):
        for number in (1, 2, 10):
            with Experiment("my_run", id=f"my_run_{number}", clean_mode=True) as made:
                made.add(Script("true"), LocalExecutor(), name="a")
                made.dryrun(log=False, delete_exp_dir=False)
    assert records.identifiers(tmp_path) == ["my_run_1", "my_run_2", "my_run_10"]


def test_nemo_run_still_asks_for_its_home_once(tmp_path, monkeypatch):
    """When this fails, `records.home` need no longer set the lists of its schedulers."""
    monkeypatch.setattr(config, "_NEMORUN_HOME", config.get_nemorun_home())
    config.set_nemorun_home(str(tmp_path))
    assert not slurm.SLURM_JOB_DIRS.startswith(str(tmp_path)) and not local.LOCAL_JOB_DIRS.startswith(str(tmp_path))
