"""What is asked of a cluster: time limits, nodes of single stages, memory, words and numbers."""

from __future__ import annotations

import pytest

from bielik_nemo.config import Config, compose
from bielik_nemo.errors import ConfigError
from bielik_nemo.validation import launch


def problems(**settings: object) -> list[str]:
    """Of a default configuration on two nodes of four devices, with dotted keys set."""
    config = Config()
    config.cluster.nodes, config.cluster.devices_per_node = 2, 4
    for key, value in settings.items():
        section, name = key.split("__")
        setattr(getattr(config, section), name, value)
    return list(launch.problems(config))


def test_seconds():
    """1-12:00:00 is 86,400 + 43,200 s."""
    assert launch.seconds("1-12:00:00") == 129_600
    assert launch.seconds("00:05:30") == 330
    assert [launch.seconds(time) for time in ("4h", "04:00", "00:60:00", "", "1:2:3")] == [None] * 5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"cluster__time": "4h"}, "cluster.time: found '4h', allowed: hours:minutes:seconds"),
        ({"cluster__time": "00:05:00"}, "cluster.time: found 00:05:00, allowed: more than the 300 s of launch.save"),
        ({"launch__time": {"data": "2"}}, "launch.time.data: found '2', allowed: hours:minutes:seconds"),
        ({"launch__time": {"distil": "02:00:00"}}, "launch.time.distil: found 'distil', allowed: import_hf"),
        ({"launch__nodes": {"score": 2}}, "launch.nodes.score: found 'score', allowed: adapt, pretrain"),
        ({"launch__nodes": {"distill": 0}}, "launch.nodes.distill: found 0, allowed: a positive number"),
        ({"cluster__mem": "lots"}, "cluster.mem: found 'lots', allowed: 0 (all of a node), or M or G such as 480G"),
    ],
)
def test_refuses(settings, expected):
    (found,) = problems(**settings)
    assert found.startswith(expected)


def test_batches_must_divide_on_the_nodes_of_a_stage():
    """768 samples on 5 nodes of 4 devices are 38.4 for each."""
    assert problems(launch__nodes={"distill": 3}) == []
    assert problems(launch__nodes={"distill": 5}) == [
        "launch.nodes.distill: found 5, with which data.global_batch_size: found 768, allowed: multiples of 20 = "
        "data.micro_batch_size 1 * data-parallel size 20"
    ]
    assert problems(launch__nodes={"sft": 5}) == []  # it is not in the pipeline


def test_gpus_that_are_not_asked_for_are_those_of_a_whole_node():
    settings = {"cluster__gpus": "none", "cluster__gpu_memory_gib": 80.0}
    assert problems(**settings) == []
    (found,) = problems(**settings, cluster__exclusive=False)
    assert found.startswith("cluster.exclusive: found False, allowed: True with cluster.gpus=none")


def test_words_and_numbers():
    """All of it is told at once, when the configuration is composed."""
    wrong = ["cluster.container=pyxsi", "cluster.architecture=arm64", "cluster.gpus=gpu", "launch.executor=slrum"]
    wrong += ["launch.changes=drop", "cluster.cpus_per_task=0", "launch.save_before=0", "launch.retries=-1"]
    with pytest.raises(ConfigError) as error:
        compose("tiny", wrong)
    lines = str(error.value).splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == sorted(each.partition("=")[0] for each in wrong)
    assert "cluster.container: found 'pyxsi', allowed: none, pyxis, apptainer; did you mean pyxis?" in lines
    assert "launch.executor: found 'slrum', allowed: local, torchrun, slurm; did you mean slurm?" in lines
