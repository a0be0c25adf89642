"""What each method costs: one step of every registered method, relative to plain joint training.

One process, one table, with the model, the batch and the care of step_cost.py: every method gets
the same Transformer and the same tokens split over K tasks; a step is forward, backward and
combination, without optimizer; rounds alternate between the methods, and a ratio is the median
over rounds of (method / plain of the same round), in CPU time. Memory is the peak resident size of
a step above that of the built model.

    python benchmarks/method_cost.py [--quick] [--json FILE] [--tasks 8] [--tokens 1024]
                                     [--rounds 5] [--methods gradvac mgda] [--threads 1]

All run in the single-pass engine per Transformer layer (all_layer); gradnorm and cats learn one
weight per task for all layers. `joint` is the engine with nothing to decide: what the rows above it
add is the method itself. TorchJD's rows are left out if it is not installed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.measuring import Setting, Step, measure, plain, single_pass
from gradvac import GradientError
from gradvac.methods import METHODS

OPTIONS: dict[str, dict[str, dict]] = {
    "torchjd": {
        "torchjd UPGrad": {"weighting": "UPGrad"},
        "torchjd CAGrad": {"weighting": "CAGrad", "options": {"c": 0.4}},
    }
}


def paths(words: list[str] | None) -> dict[str, Callable[[Setting], Step]]:
    """Plain training, and every method whose name begins with one of the words."""
    found: dict[str, Callable[[Setting], Step]] = {"plain": plain}
    for name, kind in METHODS.items():
        for title, options in OPTIONS.get(name, {name: {}}).items():
            if words and not any(title.startswith(word) for word in words):
                continue
            try:
                kind(**options)
            except GradientError as e:  # TorchJD, or what its weighting needs, is not installed
                print(f"{title} is left out: {e}")
                continue
            found[title] = single_pass(partial(kind, **options), "all_layer")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, about a minute")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--tasks", type=int, default=8, help="number of tasks K")
    parser.add_argument("--tokens", type=int, help="target tokens of a batch")
    parser.add_argument("--rounds", type=int, help="rounds that alternate between the methods")
    parser.add_argument("--methods", nargs="+", help="only methods that begin with one of these")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(
        args.tasks,
        args.tokens or (512 if args.quick else 1024),
        paths(args.methods),
        args.rounds or (3 if args.quick else 5),
        "quick" if args.quick else "13M",
    )
    print(f"{'method':18}{'K':>4}{'tokens':>8}{'cpu':>8}{'wall':>8}{'MiB':>9}{'cpu s':>9}")
    for row in rows:
        print(
            f"{row['path']:18}{row['K']:4}{row['tokens']:8}{row['ratio_cpu']:8.2f}"
            f"{row['ratio_wall']:8.2f}{row['peak_extra_mib']:9.0f}{row['seconds_cpu']:9.3f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
