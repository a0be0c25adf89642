"""What recording the geometry costs: ratio of one record to one training step, in CPU time.

The Gram matrices are there anyway; a record copies them into a frame and appends it to two files.
Each round takes one step of GradVac (forward, backward, combination, no optimizer) and a few
records of its report, and the ratio is the median over rounds of (record / step of the same round).
A difference of two steps, with and without, would be noise: the record is thousands of times
smaller. "every 10" is the recipe's default, method.record_every.

    python benchmarks/record_cost.py [--quick] [--json FILE] [--tasks 4 8 16] [--tokens 1024]
                                     [--granularity all_layer] [--rounds 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measuring import setting
from gradvac import GradVac
from gradvac.engine import SinglePassEngine
from gradvac.experiment.training.updates import frame
from gradvac.geometry.record import GramRecord

RECORDS = 20  # of every step: one alone is shorter than the clock's grain
DEFAULT_EVERY = 10


def measure(n_tasks: int, tokens: int, size: str, granularity: str, rounds: int) -> dict:
    """A row of the table."""
    s = setting(n_tasks, tokens, size)
    method = GradVac(compare_pcgrad=True)
    engine = SinglePassEngine(s.model, method, granularity, verify_steps=0)
    with tempfile.TemporaryDirectory() as folder:
        record = GramRecord(Path(folder))
        steps, records = [], []
        for n in range(rounds + 1):
            start = time.process_time()
            s.model.zero_grad()
            with engine.tasks((s.task, s.names)):
                report = engine.backward(*s.losses())
            between = time.process_time()
            for m in range(RECORDS):
                record.append(replace(frame(report), step=n * RECORDS + m))
            end = time.process_time()
            if n:  # the first warms caches up
                steps.append(between - start)
                records.append((end - between) / RECORDS)
        count = (rounds + 1) * RECORDS
        size_on_disk = sum(f.stat().st_size for f in Path(folder).iterdir()) / count
    ratio = statistics.median(r / s for r, s in zip(records, steps, strict=True))
    return {
        "tasks": n_tasks,
        "tokens": tokens,
        "parameters": sum(p.numel() for p in s.model.parameters()),
        "groups": len(report.groups),
        "record_per_step": ratio,
        "record_per_step_at_default": ratio / DEFAULT_EVERY,
        "bytes_per_record": round(size_on_disk),
    }


def main(say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model, one setting")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tasks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--granularity", default="all_layer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    size = "quick" if flags.quick else "13M"
    tasks = [8] if flags.quick else flags.tasks
    rounds = min(3, flags.rounds) if flags.quick else flags.rounds
    rows = []
    say(f"{'tasks':>5} {'groups':>6} {'every step':>11} {'every 10':>9} {'KB/record':>10}")
    for k in tasks:
        row = measure(k, flags.tokens, size, flags.granularity, rounds)
        rows.append(row)
        say(
            f"{row['tasks']:>5} {row['groups']:>6} {row['record_per_step']:>11.3%} "
            f"{row['record_per_step_at_default']:>9.3%} {row['bytes_per_record'] / 1000:>10.1f}"
        )
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
