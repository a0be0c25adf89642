"""What several ranks send and how long a step takes, beside plain data parallel training.

    python benchmarks/scaling_ranks.py [--quick] [--json FILE] [--picture FILE] [--steps 8]

Two processes of one thread each train the same model on this machine, over gloo: plain training
under DistributedDataParallel, then GradVac with the samples of all tasks on both ranks (spread)
and with each task on one rank (placed). Steps alternate between the three. Bytes are counted by
the engine and, where the kernel tells, at the network interface, and compared with the cost model
of gradvac.engine.distributed. The rest is arithmetic: the time of a step and of a byte as measured
here, carried to 8 to 1,024 ranks that send the bytes of the model one after the other with the
work, so an upper bound of what overlap leaves.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from measuring import setting
from torch import nn

from gradvac import GradVac
from gradvac.engine import Engine
from gradvac.engine.distributed import cost
from gradvac.engine.ranks import Ranks

RANKS = 2
SIMULATED = [8, 16, 32, 64, 128, 256, 512, 1024]


def interface_bytes() -> int | None:
    """Bytes sent over all interfaces so far; None where the kernel does not tell."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    except OSError:
        return None
    return sum(int(line.split(":")[1].split()[8]) for line in lines)


def worker(rank: int, folder: Path, size: str, tokens: int, n_tasks: int, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    whole = setting(n_tasks, tokens, size, in_order=True)
    n = len(whole.task)
    parts = {"spread": torch.arange(rank, n, RANKS), "placed": torch.arange(n).chunk(RANKS)[rank]}

    class Losses(nn.Module):
        """DistributedDataParallel sees a forward pass only through the module that it wraps."""

        def __init__(self) -> None:
            super().__init__()
            self.model = whole.model

        def forward(self, own: torch.Tensor) -> torch.Tensor:
            return whole.losses(own)[0].sum()

    parallel = nn.parallel.DistributedDataParallel(Losses())
    ranks = Ranks(dist.distributed_c10d._get_default_group())
    engine = Engine(whole.model, GradVac(), "all_layer", verify_steps=0, process_group=ranks)

    def plain() -> None:
        whole.model.zero_grad()
        parallel(parts["spread"]).backward()

    def gradvac(part: torch.Tensor) -> None:
        whole.model.zero_grad()
        with engine.tasks((whole.task[part], whole.names)):
            engine.backward(*whole.losses(part))

    paths = {
        "plain": plain,
        "spread": lambda: gradvac(parts["spread"]),
        "placed": lambda: gradvac(parts["placed"]),
    }
    times: dict[str, list[float]] = {path: [] for path in paths}
    sent: dict[str, int] = {}
    wire: dict[str, int | None] = {}
    for step in range(steps + 2):
        for path, run in paths.items():
            dist.barrier()
            before, at = dict(ranks.sent), interface_bytes()
            started = time.perf_counter()
            run()
            dist.barrier()
            if step >= 2:  # the first ones ask for memory
                times[path].append(time.perf_counter() - started)
            sent[path] = sum(ranks.sent.values()) - sum(before.values())
            after = interface_bytes()
            wire[path] = None if at is None or after is None else (after - at) // RANKS
    result = {
        "parameters": sum(p.numel() for p in whole.model.parameters()),
        "groups": len(engine.groups),
        "tasks_per_rank": {k: len(whole.task[part].unique()) for k, part in parts.items()},
        "seconds": {path: statistics.median(own) for path, own in times.items()},
        "sent": sent,
        "wire": wire,
    }
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def simulate(result: dict, n_tasks: int) -> list[dict]:
    """Time of a step over ranks, plain, spread and placed, relative to that without sending."""
    p, groups, seconds = result["parameters"], result["groups"], result["seconds"]
    here = {
        path: cost(p, RANKS, n_tasks, k, groups).sent
        for path, k in result["tasks_per_rank"].items()
    } | {"plain": cost(p, RANKS, n_tasks, 1, groups).plain}
    # Two equations, work + bytes x rate: that of plain and that of spread, as the work of a step
    # is the same but for what task gradients cost, which the rate then holds too.
    rate = max(0.0, (seconds["spread"] - seconds["plain"]) / (here["spread"] - here["plain"]))
    work = max(0.0, seconds["plain"] - rate * here["plain"])
    rows = []
    for size in SIMULATED:
        row = {"ranks": size, "bytes_per_second": 1 / rate if rate else None}
        for path, k in (("spread", n_tasks), ("placed", max(1.0, n_tasks / size))):
            row[path] = work + rate * cost(p, size, n_tasks, k, groups).sent
        row["plain"] = work + rate * cost(p, size, n_tasks, 1, groups).plain
        rows.append(row)
    return rows


def draw(rows: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for path, marker in (("spread", "o"), ("placed", "s")):
        ratios = [row[path] / row["plain"] for row in rows]
        axes.plot([row["ranks"] for row in rows], ratios, marker=marker, label=path)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("ranks")
    axes.set_ylabel("time of a step / plain data parallel")
    axes.legend()
    figure.savefig(file, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--picture", type=Path, help="also draw the simulation to this file")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size, tokens = ("quick", 1024) if args.quick else ("13M", 4096)
    steps = 3 if args.quick else args.steps
    if args.rank is not None:
        worker(args.rank, args.folder, size, tokens, args.tasks, steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *sys.argv, "--folder", folder, "--rank"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ranks = [subprocess.Popen([*command, str(r)], env=environment) for r in range(RANKS)]
        if any([rank.wait() for rank in ranks]):
            raise SystemExit("a rank failed; see above")
        found = [json.loads((Path(folder) / f"{r}.json").read_text()) for r in range(RANKS)]
    result, n_tasks = found[0], args.tasks
    p, groups = result["parameters"], result["groups"]
    print(f"{p:,} parameters, {n_tasks} tasks, {RANKS} ranks, {tokens} tokens a batch")
    print(f"{'':8}{'s/step':>8}{'ratio':>7}{'counted MB':>12}{'model MB':>10}{'wire MB':>9}")
    for path in ("plain", "spread", "placed"):
        k = result["tasks_per_rank"].get(path, 1)
        model = cost(p, RANKS, n_tasks, k, groups)
        expected = model.plain if path == "plain" else model.sent
        seconds, wire = result["seconds"][path], result["wire"][path]
        counted = "" if path == "plain" else f"{result['sent'][path] / 1e6:.2f}"
        print(
            f"{path:8}{seconds:8.3f}{seconds / result['seconds']['plain']:7.2f}{counted:>12}"
            f"{expected / 1e6:10.2f}" + ("" if wire is None else f"{wire / 1e6:9.2f}")
        )
    rows = simulate(result, n_tasks)
    print(f"\nsimulated from these: {'ranks':>6}{'spread / plain':>16}{'placed / plain':>16}")
    for row in rows:
        ratios = [row[path] / row["plain"] for path in ("spread", "placed")]
        print(f"{'':21}{row['ranks']:7}{ratios[0]:16.2f}{ratios[1]:16.2f}")
    if args.json:
        args.json.write_text(json.dumps({"measured": result, "simulated": rows}, indent=1) + "\n")
    if args.picture:
        draw(rows, args.picture)


if __name__ == "__main__":
    main()
