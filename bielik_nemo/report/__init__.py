"""The report of a run: report.json, report.html and a terminal table, all of the same numbers.

    collect(run_dir)  the numbers, as a dict              (numbers.py)
    write(run_dir)    report.json and report.html         (page.py, with plots.py and style.py)
    table(numbers)    what the terminal shows             (terminal.py)
    candidates(found) the search alone, for the terminal  (search.py)

Nothing here imports torch; matplotlib is loaded only when a plot is drawn.
"""

from __future__ import annotations

import json
from pathlib import Path

from bielik_nemo import artifacts
from bielik_nemo.errors import DataError
from bielik_nemo.report.numbers import collect
from bielik_nemo.report.page import page
from bielik_nemo.report.search import candidates
from bielik_nemo.report.terminal import table

__all__ = ["candidates", "collect", "table", "write"]


def write(run_dir: str | Path) -> Path:
    """Write `report.json` and `report.html` into the run directory, each atomically; return the page's path.

    Raises DataError when a file of the run is damaged (nothing is written) or a report cannot be written.
    """
    run_dir = Path(run_dir)
    numbers = collect(run_dir)
    html = page(numbers)
    text = json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False)
    for name, content in (("report.json", text + "\n"), ("report.html", html)):
        try:
            artifacts.write_text(run_dir / name, content)
        except OSError as error:
            raise DataError(f"{run_dir / name}: cannot be written: {error.strerror}") from None
    return run_dir / "report.html"
