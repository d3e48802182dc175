"""A model that is timed, in a process of its own: its memory is its own, and others can take turns with it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from bielik_nemo.config_outcome import Point
from bielik_nemo.errors import UserError

ENGINES = {"transformers": ("transformers_speed", "TransformersEngine"), "vllm": ("vllm_speed", "VLLMEngine")}
Load = tuple[int, int]
PATIENCE = 10.0
"""Seconds that a process has to end by itself."""


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Attributes:
        first: seconds from the request until every answer has its first token.
        total: seconds until it has all.
        memory: bytes at most since the model began to be loaded, above what its libraries take.
    """

    first: float
    total: float
    memory: int


class Process:
    """A model in a process of its own; a context, whose end is the process's.

    Args:
        name: of the model.
        engine: one of `ENGINES`.
        directory: Hugging Face directory.
        dtype: of weights and cache.
        loads: that it will get: tokens of prompt and answer together, and how many side by side.
        log: file that takes what the libraries print.
    """

    def __init__(self, name: str, engine: str, directory: Path, dtype: str, loads: Sequence[Load], log: Path):
        self.name, self.log = name, log
        spawned = multiprocessing.get_context("spawn")  # a fork would not have CUDA
        self.connection, other = spawned.Pipe()
        arguments = (other, engine, directory, dtype, loads, log)
        self.process = spawned.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        other.close()
        self._answer("loading")

    def measure(self, point: Point, prompts: Sequence[Sequence[int]]) -> Timing:
        """Answers to these prompts, timed.

        Raises:
            UserError: the process has ended: out of memory, as a rule.
        """
        self.connection.send((prompts, point.output_tokens))
        load = f"{point.input_tokens} + {point.output_tokens} tokens, concurrency {point.concurrency}"
        return Timing(*self._answer(load))

    def _answer(self, what: str) -> tuple:
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join(PATIENCE)
            status = self.process.exitcode
            reason = f"exit status {status}" if status is None or status >= 0 else f"signal {-status}"
            raise UserError(
                f"benchmark: the process of {self.name} ended ({reason}) at {what}: out of memory, or see {self.log}"
            ) from None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.connection.close()
        self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, engine: str, directory: Path, dtype: str, loads: Sequence[Load], log: Path) -> None:
    """Load the model, say so, and answer until nobody asks."""
    with open(log, "ab") as output:
        for stream in (1, 2):  # all that is printed, by libraries that are not Python's and at the end too
            os.dup2(output.fileno(), stream)
    from bielik_nemo.engine import bandwidth, memory  # torch, whose warnings are for the log

    module, name = ENGINES[engine]
    made = getattr(import_module(f"bielik_nemo.engine.{module}"), name)
    bandwidth.wait()  # before CUDA is up nobody knows its memory
    memory.start()
    before = memory.peak()
    model = made(directory, dtype, loads)
    connection.send(())
    while True:
        try:
            prompts, tokens = connection.recv()
        except EOFError:
            return
        memory.start()
        times = model.generate(prompts, tokens)
        connection.send((*times, memory.peak() - before))
