"""How the cost of task gradients grows with tasks, parameters and tokens, and why.

Three sweeps around one setting, each the ratio of a single-pass step (all_layer GradVac) to plain
joint training of the same model on the same batch, in CPU time, in rounds that alternate. Two
constants are fitted to all points at once:

    plain step = FLOPs of forward and backward / rate, FLOPs = 6 x P x tokens
    task gradients add 3 x K x P x 4 bytes (written once, read twice) / bandwidth

    python benchmarks/scaling.py [--quick] [--json FILE] [--picture FILE.svg] [--rounds 3]
                                 [--keep-memory]

The table shows what was measured beside what the two lines say; the picture draws both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.measuring import keep_freed_memory, measure, plain, single_pass, transformer
from gradvac import GradVac
from gradvac.translation.transformer import Transformer

Point = tuple[str, int, int]  # size of the model, K, tokens


def sweeps(quick: bool) -> dict[str, list[Point]]:
    """The points of each sweep."""
    if quick:
        return {
            "K": [("d=64", k, 512) for k in (2, 8)],
            "parameters": [(f"d={d}", 4, 512) for d in (64, 128)],
            "tokens": [("d=64", 4, tokens) for tokens in (256, 1024)],
        }
    return {
        "K": [("d=256", k, 2048) for k in (2, 4, 8, 16, 32, 64)],
        "parameters": [(f"d={d}", 8, 1024) for d in (64, 128, 256, 512, 1024)],
        "tokens": [("d=256", 8, tokens) for tokens in (512, 1024, 2048, 4096, 8192)],
    }


def parameters(size: str) -> int:
    """Number of parameters of a model, none of them in memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(transformer(size)).parameters())


def run(points: list[Point], rounds: int) -> list[dict]:
    """Measure each point once."""
    paths = {"plain": plain, "single_pass": single_pass(GradVac, "all_layer")}
    rows = []
    for size, n_tasks, tokens in dict.fromkeys(points):
        base, row = measure(n_tasks, tokens, paths, rounds, size)
        row |= {"parameters": parameters(size), "plain_seconds_cpu": base["seconds_cpu"]}
        rows.append(row)
        print(
            f"{row['parameters'] / 1e6:10.1f}M{n_tasks:6}{tokens:8}{base['seconds_cpu']:10.3f} s"
            f"{row['ratio_cpu']:8.2f}{row['peak_extra_mib'] - base['peak_extra_mib']:9.0f} MiB",
            flush=True,
        )
    return rows


def fit(rows: list[dict]) -> tuple[float, float]:
    """Return FLOPs a second (geometric mean) and bytes a second (least squares of the ratios)."""
    flops = np.array([6.0 * row["parameters"] * row["tokens"] for row in rows])
    copies = np.array([12.0 * row["K"] * row["parameters"] for row in rows])
    base = np.array([row["plain_seconds_cpu"] for row in rows])
    rate = 1 / float(np.exp(np.mean(np.log(base / flops))))
    extra = np.array([row["ratio_cpu"] - 1 for row in rows])
    (per_byte,), _ = nnls((copies / (flops / rate))[:, None], extra)
    return rate, 1 / per_byte if per_byte else float("inf")


def predicted(row: dict, rate: float, bandwidth: float) -> float:
    """The ratio by the two lines."""
    plain_seconds = 6 * row["parameters"] * row["tokens"] / rate
    return 1 + 12 * row["K"] * row["parameters"] / bandwidth / plain_seconds


def draw(found: dict[str, list[dict]], rate: float, bandwidth: float, file: Path) -> None:
    """Draw a panel for each sweep: points measured, a line of what the model says."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
    labels = {"K": "tasks K", "parameters": "parameters", "tokens": "tokens of the batch"}
    for axis, (name, rows) in zip(axes, found.items(), strict=True):
        x = [row[name] for row in rows]
        axis.plot(x, [predicted(row, rate, bandwidth) for row in rows], color="#0072B2", lw=1.5)
        axis.plot(x, [row["ratio_cpu"] for row in rows], "o", color="#D55E00", ms=5)
        axis.set_xscale("log", base=2 if name != "parameters" else 10)
        axis.set_xlabel(labels[name])
        fixed = {k: v for k, v in rows[0].items() if k in labels and k != name}
        axis.set_title(
            ", ".join(
                f"{v / 1e6:.1f}M parameters" if k == "parameters" else f"{k} = {v}"
                for k, v in fixed.items()
            ),
            fontsize=9,
        )
        axis.grid(alpha=0.3)
        axis.axhline(1, color="0.5", lw=0.8)
    axes[0].set_ylabel("step, relative to plain training")
    axes[0].legend(
        ["1 + time of 3 x K x P numbers / plain step", "measured (CPU time)"], fontsize=8
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few small points, about a minute")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--picture", type=Path, help="also draw the sweeps to this file")
    parser.add_argument("--rounds", type=int, help="rounds that alternate between the paths")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep-memory", action="store_true", help="freed memory is kept")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.keep_memory:
        keep_freed_memory()
    plan = sweeps(args.quick)
    print(f"{'parameters':>11}{'K':>6}{'tokens':>8}{'plain':>12}{'ratio':>8}{'extra':>13}")
    points = [point for sweep in plan.values() for point in sweep]
    rows = run(points, args.rounds or (1 if args.quick else 3))
    by_point = dict(zip(dict.fromkeys(points), rows, strict=True))
    found = {name: [by_point[point] for point in sweep] for name, sweep in plan.items()}
    rate, bandwidth = fit(rows)
    print(f"plain step: {rate / 1e9:.1f} GFLOP/s; K x P: {bandwidth / 1e9:.1f} GB/s")
    print(f"{'':11}{'K':>6}{'tokens':>8}{'measured':>12}{'model':>8}")
    for row in rows:
        print(
            f"{row['parameters'] / 1e6:10.1f}M{row['K']:6}{row['tokens']:8}"
            f"{row['ratio_cpu']:12.2f}{predicted(row, rate, bandwidth):8.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.picture:
        draw(found, rate, bandwidth, args.picture)


if __name__ == "__main__":
    main()
