"""Rewards of answers, computed in processes of their own, so that no answer can stop, slow or fill the one that trains.

Each reward of each answer is one call in a worker: bounded in time (the worker is killed) and in memory (RLIMIT_AS).
A call that raises, takes too long, or takes its worker along is told as an error; the answer is kept. Workers import
the rewards' modules and what those import, nothing else of this package, and end with the process that made them.
"""

from __future__ import annotations

import importlib
import inspect
import math
import multiprocessing
import os
import resource
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future, TimeoutError
from dataclasses import dataclass, field
from types import ModuleType

from pebble import CONSTS, ProcessExpired, ProcessPool

from bielik_nemo import stopping
from bielik_nemo.align.reward import Completion, Reward, RewardFunction, Task, Verdict
from bielik_nemo.config_grpo import Rewards, RewardTerm
from bielik_nemo.errors import ConfigError, UserError

_CALLS = 2000
"""After which a worker makes room for a new one, whatever its libraries have kept by then."""
_KILL_AFTER = 0.1
"""Seconds from asking a worker to end, which it ignores, until it is killed."""
_WORDS = 300
"""Characters of an exception's text that are told."""

_functions: dict[str, RewardFunction] = {}
"""By dotted path, in a worker."""


@dataclass(frozen=True)
class Scored:
    """What all rewards of an answer come to.

    Attributes:
        value: sum over the source's rewards of weight times value; 0 where one of them failed.
        verdict: of the first of them; unverifiable where one of them failed.
        parts: each one's value under its short name, such as `maths`, and its parts, such as `language.share`; of a
            reward that is named again, `maths_2`.
        error: which failed, and of what; empty: none.
    """

    value: float
    verdict: Verdict
    parts: dict[str, float] = field(default_factory=dict)
    error: str = ""


def load(path: str) -> RewardFunction:
    """The function of a dotted path; a module stands for the function of its own name.

    Raises:
        ConfigError: there is none, or its module cannot be imported.
    """
    module, _, name = path.rpartition(".")
    if not module or not name:
        raise ConfigError(f"found {path!r}, allowed: the dotted path of a function, such as my_rewards.maths")
    try:
        holder = importlib.import_module(module)
        if not hasattr(holder, name) and hasattr(holder, "__path__"):
            holder = importlib.import_module(path)
    except Exception as error:  # whatever the user's own module may raise
        raise ConfigError(f"found {path!r}, which cannot be imported: {_words(error)}") from None
    found = holder if holder.__name__ == path else getattr(holder, name, None)
    if isinstance(found, ModuleType):
        found = getattr(found, name, None)
    if not callable(found):
        raise ConfigError(f"found {path!r}, where there is no function, allowed: the dotted path of one")
    return found


def problems(terms: Sequence[Sequence[RewardTerm]]) -> Iterator[str]:
    """What is wrong with the rewards of each source, as `key: found ..., allowed: ...`; imports their modules."""
    for i, of_source in enumerate(terms):
        for j, term in enumerate(of_source):
            key = f"grpo.sources[{i}].rewards[{j}]"
            try:
                function = load(term.function)
            except ConfigError as error:
                yield f"{key}.function: {error}"
            else:
                yield from _options(f"{key}.options", term, function)


def _options(key: str, term: RewardTerm, function: RewardFunction) -> Iterator[str]:
    """Options that the function does not take, and those that it cannot do without."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[2:]
    except (TypeError, ValueError):  # it does not say
        return
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    names = [each.name for each in named]
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        allowed = ", ".join(names) or "none"
        for name in term.options.keys() - set(names):
            yield f"{key}.{name}: found an option that {term.function} does not have, allowed: {allowed}"
    for each in named:
        if each.default is each.empty and each.name not in term.options:
            yield f"{key}: found no {each.name}, which {term.function} cannot do without"


class Scorer:
    """Computes rewards in worker processes; a context manager.

    Workers start with the first answer. Leaving the block ends them at once, with what they are at.

    Args:
        terms: the rewards of each source, by its number.
        rewards: how many workers, and what a call may take.

    Raises:
        ConfigError: a reward cannot be imported or does not have an option that it is given.
    """

    def __init__(self, terms: Sequence[Sequence[RewardTerm]], rewards: Rewards) -> None:
        if wrong := list(problems(terms)):
            raise ConfigError("\n".join(wrong))
        self._terms = [[*of_source] for of_source in terms]
        self._names = [_short_names(of_source) for of_source in terms]
        self._rewards = rewards
        self._lock = threading.Lock()
        self._calls: set[Future] = set()  # that have no outcome yet
        self._pool = self._new_pool()

    def __enter__(self) -> Scorer:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers; what has not been computed is an error."""
        self._give_up()

    def start(self, seconds: float = 300.0) -> None:
        """Wait until a worker answers.

        Raises:
            UserError: none does. Nothing that is submitted would ever be computed.
        """
        try:
            self._pool.schedule(os.getpid).result(seconds)
        except Exception as error:
            raise UserError(
                f"grpo.rewards: no process that computes rewards has started within {seconds:g} s ({_words(error)}); "
                "a script that trains must do so behind `if __name__ == '__main__':`, since each of them imports it"
            ) from None

    def submit(self, completion: Completion, task: Task, source: int) -> Future[Scored]:
        """Have an answer's rewards computed, those of the source of this number; does not wait.

        The future has a `Scored` when all of them are there, and raises nothing.
        """
        terms = self._terms[source]
        found: list[Reward | str] = [""] * len(terms)
        left, done = threading.Semaphore(len(terms) - 1), Future()

        def collect(number: int, future: Future) -> None:
            found[number] = _outcome(terms[number].function, future, self._rewards.timeout_s)
            if not left.acquire(blocking=False):  # the last one
                done.set_result(_total(terms, self._names[source], found))

        for number, term in enumerate(terms):
            future = self._schedule(term, completion, task)
            future.add_done_callback(lambda future, number=number: collect(number, future))
        return done

    def _schedule(self, term: RewardTerm, completion: Completion, task: Task) -> Future:
        call = {"args": (term.function, completion, task, dict(term.options)), "timeout": self._rewards.timeout_s}
        with self._lock:
            try:
                future = self._pool.schedule(_call, **call)
            except RuntimeError:  # pebble gives its pool up when somebody else kills a worker that has nothing to do
                self._give_up()
                self._pool = self._new_pool()
                future = self._pool.schedule(_call, **call)
            self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        return future

    def _give_up(self) -> None:
        """End the workers, and the wait for what they have not done: pebble leaves it as it is."""
        self._pool.stop()
        self._pool.join()
        for future in tuple(self._calls):
            future.cancel()

    def _new_pool(self) -> ProcessPool:
        CONSTS.term_timeout = _KILL_AFTER
        paths = sorted({term.function for of_source in self._terms for term in of_source})
        return ProcessPool(
            max_workers=self._rewards.workers,
            max_tasks=_CALLS,
            initializer=_prepare,
            initargs=(os.getpid(), paths, self._rewards.memory_gib),
            context=multiprocessing.get_context("spawn"),
        )


def _prepare(parent: int, paths: Sequence[str], memory_gib: float) -> None:
    """Make a new process a worker: it ends with its parent, is ended by nothing else, and can have so much memory."""
    stopping.end_with(parent)
    stopping.ignore()
    for library in ("OMP", "OPENBLAS", "MKL"):  # each thread takes address space
        os.environ[f"{library}_NUM_THREADS"] = "1"
    for path in paths:
        _functions[path] = load(path)
    with open("/proc/self/statm") as numbers:
        libraries = int(numbers.read().split()[0]) * resource.getpagesize()
    limit = libraries + int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _call(path: str, completion: Completion, task: Task, options: Mapping[str, float]) -> Reward | str:
    """A reward, or why there is none; of plain types, which any process can read."""
    try:
        found = _functions[path](completion, task, **options)
        if not isinstance(found, Reward):
            return f"returned {type(found).__name__}, not a Reward"
        parts = {str(name): float(part) for name, part in found.parts.items()}
        if not all(map(math.isfinite, (value := float(found.value), *parts.values()))):
            return f"returned a number that is not finite: value {value}, parts {parts}"[:_WORDS]
        return Reward(value, Verdict(found.verdict), parts)
    except BaseException as error:  # SystemExit as well: the worker goes on
        return f"raised {_words(error)}"


def _outcome(path: str, future: Future, timeout: float) -> Reward | str:
    """What came of a call: its reward, or one line that names the function and what went wrong."""
    try:
        found = future.result()
    except TimeoutError:
        found = f"took longer than grpo.rewards.timeout_s={timeout:g}"
    except ProcessExpired as error:
        found = f"ended its process with status {error.exitcode}"
    except (CancelledError, BrokenExecutor):
        found = "was not computed: its process was ended"
    except Exception as error:
        found = f"could not be computed: {_words(error)}"
    return f"{path} {found}" if isinstance(found, str) else found


def _total(terms: Sequence[RewardTerm], names: Sequence[str], found: Sequence[Reward | str]) -> Scored:
    parts: dict[str, float] = {}
    for name, reward in zip(names, found, strict=True):
        if isinstance(reward, Reward):
            parts[name] = reward.value
            parts |= {f"{name}.{part}": value for part, value in reward.parts.items()}
    errors = [each for each in found if isinstance(each, str)]
    if errors:
        return Scored(0.0, Verdict.UNVERIFIABLE, parts, "; ".join(errors))
    value = math.fsum(term.weight * reward.value for term, reward in zip(terms, found, strict=True))
    return Scored(value, found[0].verdict, parts)


def _short_names(terms: Sequence[RewardTerm]) -> list[str]:
    """The last word of each path, numbered from the second time on."""
    seen: Counter[str] = Counter()
    names = []
    for term in terms:
        name = term.function.rpartition(".")[2]
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names


def _words(error: BaseException) -> str:
    """Name and beginning of the text of what was raised, which may be of any length, or fail itself."""
    try:
        text = str(error)[:_WORDS]
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
