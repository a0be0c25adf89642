"""A report of runs in progress: written again every so often, until all have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gradvac.experiment.report.page import write_report


def watch_report(
    out: Path,
    runs: Sequence[Path],
    *,
    title: str,
    seconds: int,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the report of ``runs`` every ``seconds``; the page loads itself again as often.

    Returns after the last page, which does not, once every run has its ``done.json``.
    """
    said = False
    while not all((run / "done.json").exists() for run in runs):
        write_report(out, runs, title=title, refresh=seconds)
        if not said:
            say(f"report: {out}, written again every {seconds} s; Ctrl-C ends it")
            said = True
        sleep(seconds)
    write_report(out, runs, title=title)
    say(f"report: {out}")
