"""A report of runs in progress, rewritten at intervals until all have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gradvac.experiment.report.page import write_report
from gradvac.experiment.run.below import all_runs


def watch_report(
    out: Path,
    runs: Sequence[Path],
    *,
    title: str,
    seconds: int,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the report of ``runs`` every ``seconds``; the page reloads as often.

    Returns once every run has its ``done.json``, after writing a last page that does not reload.
    """
    said = False
    while not all((run / "done.json").exists() for run in all_runs(runs)):
        write_report(out, runs, title=title, refresh=seconds)
        if not said:
            say(f"report: {out}, written again every {seconds} s; Ctrl-C ends it")
            said = True
        sleep(seconds)
    write_report(out, runs, title=title)
    say(f"report: {out}")
