from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from bielik_nemo import ui


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the person sees, which is not a terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(ui, "_terminal", stream)
    monkeypatch.delenv("RANK", raising=False)
    return stream


def own_streams(monkeypatch: pytest.MonkeyPatch) -> tuple[io.StringIO, io.StringIO]:
    """New stdout and stderr of this process; to be called in the test, since pytest sets its own before that."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return out, err


def test_only_the_first_rank_speaks(said: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    ui.say("alone")
    monkeypatch.setenv("RANK", "0")
    ui.say("first")
    ui.show("table")
    monkeypatch.setenv("RANK", "1")
    ui.say("second")
    ui.show("table of the second")
    with ui.progress("working", 1) as advance:
        advance()
    assert said.getvalue() == "alone\nfirst\ntable\n"


def test_library_output_goes_to_the_log_and_ours_does_not(said, monkeypatch, tmp_path: Path):
    out, err = own_streams(monkeypatch)
    log = tmp_path / "log.txt"
    with ui.library_output_to(log):
        print("library")
        print("warning", file=sys.stderr)
        ui.say("ours")
        assert log.read_text() == "library\nwarning\n"  # line by line, so that a kill loses nothing
    print("after")
    with ui.library_output_to(log):
        print("again")
    assert log.read_text() == "library\nwarning\nagain\n"
    assert (out.getvalue(), err.getvalue(), said.getvalue()) == ("after\n", "", "ours\n")


def test_output_comes_back_when_the_block_raises(monkeypatch, tmp_path: Path):
    out, _ = own_streams(monkeypatch)
    with pytest.raises(RuntimeError), ui.library_output_to(tmp_path / "log.txt"):
        raise RuntimeError
    print("after")
    assert out.getvalue() == "after\n"


def test_a_logger_made_inside_one_block_writes_to_the_log_of_the_next(monkeypatch, tmp_path: Path):
    """Libraries hold on to sys.stderr of the time when they were imported, which is inside the first stage."""
    _, err = own_streams(monkeypatch)
    logger = logging.Logger("library")
    with ui.library_output_to(tmp_path / "one"):
        logger.addHandler(logging.StreamHandler())
        logger.warning("first")
    logger.warning("between")
    with ui.library_output_to(tmp_path / "two"):
        logger.warning("second")
    assert (tmp_path / "one").read_text() == "first\n" and (tmp_path / "two").read_text() == "second\n"
    assert err.getvalue() == "between\n"


def test_what_is_said_can_go_to_a_pipe(said, monkeypatch: pytest.MonkeyPatch):
    pipe = io.StringIO()
    ui.speak_to(pipe)
    ui.say("through")
    assert (said.getvalue(), pipe.getvalue()) == ("", "through\n")


def test_progress_without_a_terminal_is_a_line_every_ten_seconds(said, monkeypatch: pytest.MonkeyPatch):
    """Four seconds a piece: lines after the 3rd (12 s), the 6th (24 s) and the 9th (36 s) of ten, 4 s for each left."""
    now = 100.0
    monkeypatch.setattr(ui.time, "monotonic", lambda: now)
    with ui.progress("working", 10) as advance:
        for piece in range(1, 11):
            now += 4.0
            advance(f"piece {piece}")
    assert said.getvalue().splitlines() == [
        "  working: 3/10  28 s left  piece 3",
        "  working: 6/10  16 s left  piece 6",
        "  working: 9/10  4 s left  piece 9",
    ]


def test_progress_goes_on_from_what_was_done(said, monkeypatch: pytest.MonkeyPatch):
    """Six of ten done before; the seventh takes 11 s, so three more take 33."""
    now = 0.0
    monkeypatch.setattr(ui.time, "monotonic", lambda: now)
    with ui.progress("training", 10, done=6) as advance:
        now = 11.0
        advance()
    assert said.getvalue() == "  training: 7/10  33 s left\n"


def test_progress_without_a_total(said, monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(ui.time, "monotonic", lambda: now)
    with ui.progress("documents") as advance:
        now = 11.0
        advance()
    assert said.getvalue() == "  documents: 1\n"


def test_short_work_says_nothing(said: io.StringIO):
    with ui.progress("working", 3) as advance:
        for _ in range(3):
            advance()
    assert said.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(ui, "_terminal", terminal := Terminal())
    with ui.progress("working", 4, done=1) as advance:
        advance("half")
    assert "working" in terminal.getvalue() and "2/4" in terminal.getvalue() and "half" in terminal.getvalue()
