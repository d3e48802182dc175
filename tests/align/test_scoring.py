"""Rewards in processes of their own: what comes back, and that nothing a reward does stops, fills or outlives the run.

One `Scorer` serves all that go well or wrong; starting one takes a second. `reward_functions.py` beside this file is
the user's own module: named by a path that only this process's `sys.path` has.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bielik_nemo.align import scoring
from bielik_nemo.align.reward import Completion, Task, Verdict
from bielik_nemo.align.scoring import Scored, Scorer, load
from bielik_nemo.config_grpo import Rewards, RewardTerm
from bielik_nemo.errors import ConfigError

HERE = str(Path(__file__).parent)
LIMITS = Rewards(timeout_s=4.0, memory_gib=0.5, workers=2)
MATHS = "bielik_nemo.align.rewards.maths"
OWN = "length raises leaves dies sleeps computes fills recurses nothing not_finite heavy process".split()
SOURCES = {name: [RewardTerm(f"reward_functions.{name}")] for name in OWN} | {
    "sum": [
        RewardTerm(MATHS, weight=2.0),
        RewardTerm("reward_functions.length", weight=0.5, options={"scale": 0.1}),
        RewardTerm("reward_functions.length", weight=0.25),
    ],
    "half": [RewardTerm(MATHS), RewardTerm("reward_functions.raises")],
}
NUMBER = {name: number for number, name in enumerate(SOURCES)}
GOOD = Completion(r"So \boxed{2}", tokens=5)
TASK = Task("1 + 1?", "2")


@pytest.fixture(scope="module")
def scorer():
    sys.path.insert(0, HERE)
    try:
        with Scorer(list(SOURCES.values()), LIMITS) as scorer:
            yield scorer
    finally:
        sys.path.remove(HERE)


@pytest.fixture
def own_module(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def score(scorer: Scorer, source: str, completion: Completion = GOOD, task: Task = TASK) -> Scored:
    return scorer.submit(completion, task, NUMBER[source]).result(timeout=30)


def test_weights_verdicts_and_parts_are_the_terms(scorer):
    """2 * 1 (maths) + 0.5 * 0.1 * 12 characters + 0.25 * 12 = 5.6; the verdict is the first term's."""
    found = score(scorer, "sum")
    assert found.value == pytest.approx(5.6) and found.verdict is Verdict.CORRECT and not found.error
    assert found.parts == {
        "maths": 1.0, "maths.boxed": 1.0, "maths.unit": 1.0,
        "length": pytest.approx(1.2), "length.tokens": 5.0, "length_2": 12.0, "length_2.tokens": 5.0,
    }  # fmt: skip
    assert score(scorer, "sum", Completion("2", 1)).verdict is Verdict.WRONG


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raises", "raised ValueError: no xxx"),
        ("leaves", "raised SystemExit: 3"),
        ("recurses", "raised RecursionError"),
        ("fills", "raised MemoryError"),
        ("dies", "ended its process with status 7"),
        ("nothing", "returned NoneType, not a Reward"),
        ("not_finite", "returned a number that is not finite"),
        ("sleeps", "took longer than grpo.rewards.timeout_s=4"),
        ("computes", "took longer than grpo.rewards.timeout_s=4"),
    ],
)
def test_what_fails_is_an_error_with_the_functions_name(scorer, source, told):
    began = time.monotonic()
    found = score(scorer, source)
    assert found.error.startswith(f"reward_functions.{source} {told}") and len(found.error) < 400
    assert (found.value, found.verdict) == (0.0, Verdict.UNVERIFIABLE)
    assert time.monotonic() - began < LIMITS.timeout_s + 4  # a worker may have to be started
    assert score(scorer, "length").value == 12  # and the next answer is scored


def test_parts_of_what_did_not_fail_are_told(scorer):
    found = score(scorer, "half")
    assert found.parts == {"maths": 1.0, "maths.boxed": 1.0, "maths.unit": 1.0}
    assert found.verdict is Verdict.UNVERIFIABLE and "reward_functions.raises raised" in found.error


def test_an_answer_that_hangs_does_not_hold_up_the_others(scorer):
    """Two workers: while one waits 4 s for the end of its time, the other scores forty answers."""
    slow = scorer.submit(GOOD, TASK, NUMBER["sleeps"])
    began = time.monotonic()
    futures = [scorer.submit(GOOD, TASK, NUMBER["sum"]) for _ in range(40)]
    assert all(future.result(timeout=30).value == pytest.approx(5.6) for future in futures)
    assert time.monotonic() - began < LIMITS.timeout_s + 4
    assert slow.result(timeout=30).error


def test_megabytes_pass(scorer):
    """A megabyte of brackets before the answer; one of 3 million characters is read to its end as well."""
    text = r"\boxed{" * 140_000
    assert score(scorer, "sum", Completion(text + GOOD.text, 5)).verdict is Verdict.CORRECT
    assert score(scorer, "length", Completion("x" * 3_000_000, 5)).value == 3_000_000


def test_workers_are_light(scorer):
    assert score(scorer, "heavy").value == 0


def test_a_worker_that_is_killed_from_outside_is_replaced(scorer):
    """As the kernel does when a machine runs out of memory, and Slurm's SIGTERM to every process does not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        worker = int(score(scorer, "process").value)
        os.kill(worker, number)
        time.sleep(0.5)
        assert score(scorer, "length").value == 12


def test_nobody_waits_for_what_is_left_at_the_end(own_module):
    """One worker, which is at the first of three answers when the block ends."""
    with Scorer([[RewardTerm("reward_functions.sleeps")]], Rewards(workers=1)) as scorer:
        futures = [scorer.submit(GOOD, TASK, 0) for _ in range(3)]
        time.sleep(0.5)
    for future in futures:
        assert future.result(timeout=1).error.endswith("was not computed: its process was ended")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("maths", "allowed: the dotted path of a function"),
        ("", "allowed: the dotted path of a function"),
        ("bielik_nemo.align.rewards.math", "cannot be imported: ModuleNotFoundError"),
        ("no_such_package.maths", "cannot be imported: ModuleNotFoundError"),
        ("reward_functions.no_such", "there is no function"),
        ("reward_functions.NUMBER", "there is no function"),
        ("bielik_nemo.align", "there is no function"),
    ],
)
def test_paths_that_name_no_function(own_module, path, told):
    with pytest.raises(ConfigError, match=told):
        load(path)


@pytest.mark.parametrize("path", [MATHS, f"{MATHS}.maths"])
def test_a_module_stands_for_its_function(path):
    assert load(path)(GOOD, Task("", "2")).verdict is Verdict.CORRECT


def test_a_broken_module_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text("raise RuntimeError('half a module')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"'broken_rewards.mine', .* RuntimeError: half a module"):
        load("broken_rewards.mine")


def test_options_are_checked_before_anything_runs(own_module):
    terms = [[], [RewardTerm(MATHS, options={"weights": 1.0}), RewardTerm("reward_functions.needs")]]
    assert list(scoring.problems(terms)) == [
        f"grpo.sources[1].rewards[0].options.weights: found an option that {MATHS} does not have, allowed: none",
        "grpo.sources[1].rewards[1].options: found no limit, which reward_functions.needs cannot do without",
    ]
    with pytest.raises(ConfigError, match=r"rewards\[0\]\.options\.weights"):
        Scorer(terms, LIMITS)


PROGRAM = """
import os, sys, time
sys.path.insert(0, {here!r})
from bielik_nemo.align.reward import Completion, Task
from bielik_nemo.align.scoring import Scorer
from bielik_nemo.config_grpo import Rewards, RewardTerm
if __name__ == "__main__":
    heavy = [m for m in ("torch", "nemo", "megatron", "transformers") if m in sys.modules]
    scorer = Scorer([[RewardTerm("reward_functions.process")], [RewardTerm("reward_functions.computes")]], Rewards())
    pids = {{int(scorer.submit(Completion("", 1), Task(""), 0).result().value) for _ in range(20)}}
    slow = scorer.submit(Completion("", 1), Task(""), 1)
    time.sleep(0.5)
    print(heavy, *pids, flush=True)
    {end}
"""


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(1)", "os.kill(os.getpid(), 9)", "scorer.__exit__(None)"])
def test_workers_end_with_the_process_however_it_ends(tmp_path, end):
    """Left without closing, by an exit, by the end of a rank that failed, by a kill: each while a worker computes."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(here=HERE, end=end))
    began = time.monotonic()
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("[] "), done.stderr
    workers = [int(word) for word in done.stdout.split()[1:]]
    until = time.monotonic() + 5
    while left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < until, left
        time.sleep(0.1)
    assert time.monotonic() - began < 30


def test_workers_that_cannot_start_are_an_error(tmp_path: Path):
    """Of a script without a guard: each worker imports it, and so begins where it began, and dies."""
    script = tmp_path / "train.py"
    script.write_text(
        "from bielik_nemo.align.scoring import Scorer\n"
        "from bielik_nemo.config_grpo import Rewards, RewardTerm\n"
        "term = RewardTerm('bielik_nemo.align.rewards.length', options={'limit': 1, 'most': 2})\n"
        "with Scorer([[term]], Rewards()) as one:\n"
        "    one.start(8)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "no process that computes rewards has started within 8 s" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr
