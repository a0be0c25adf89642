"""What several ranks send and how long a step takes, beside plain data parallel training.

    python benchmarks/scaling_ranks.py [--quick] [--json FILE] [--picture FILE] [--steps 8]

Two processes of one thread each train the same model on this machine, over gloo: plain training
under DistributedDataParallel; GradVac with the samples of all tasks on both ranks (spread) and with
each task on one rank (placed); and the last once more with parameters in shards, one for each layer
(sharded). Steps alternate between them. Bytes are counted by the engine and, where the kernel
tells, at the network interface, and compared with the cost model of gradvac.engine.ranks.cost.

The rest is arithmetic with four constants of the same run: the CPU time of a plain step and of a
step with task gradients on a rank that exchanges nothing, which other work on the machine does not
change, the time of a byte in the fastest of the exchanges, and the time of the fastest exchange of
a single number, a message's latency. From them comes the time of a step on 8 to 1,024 ranks, if
bytes travel while the backward pass computes (the longer of the two counts) and if they do not (the
sum). --rate and --latency do it for another network.
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
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from benchmarks.measuring import Setting, setting
from gradvac import GradVac
from gradvac.engine import Engine
from gradvac.engine.ranks.cost import cost
from gradvac.engine.ranks.group import Ranks

RANKS = 2
SIMULATED = [8, 16, 32, 64, 128, 256, 512, 1024]
PATHS = ("plain", "spread", "placed", "sharded")
PROBE = 2**22  # numbers exchanged to learn the time of a byte
PINGS = 200  # exchanges of one number, to learn the latency


def interface_bytes() -> int | None:
    """Bytes sent over all interfaces so far; None where the kernel does not tell."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    except OSError:
        return None
    return sum(int(line.split(":")[1].split()[8]) for line in lines)


class Losses(nn.Module):
    """DistributedDataParallel sees a forward pass only through the module that it wraps."""

    def __init__(self, of: Setting) -> None:
        super().__init__()
        self.model, self.of = of.model, of

    def forward(self, own: torch.Tensor) -> torch.Tensor:
        return self.of.losses(own)[0].sum()


def worker(rank: int, folder: Path, size: str, tokens: int, n_tasks: int, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    alone = [dist.new_group([r]) for r in range(RANKS)][rank]
    whole, shards = (setting(n_tasks, tokens, size, in_order=True) for _ in range(2))
    for layer in [*shards.model.encoder.layers, *shards.model.decoder.layers]:
        fully_shard(layer)
    fully_shard(shards.model)
    n = len(whole.task)
    spread, placed = torch.arange(rank, n, RANKS), torch.arange(n).chunk(RANKS)[rank]
    parallel = nn.parallel.DistributedDataParallel(Losses(whole))
    ranks = Ranks(dist.distributed_c10d._get_default_group())
    options = {"granularity": "all_layer", "verify_steps": 0}
    engine = Engine(whole.model, GradVac(), **options, process_group=ranks)
    by_itself = Engine(whole.model, GradVac(), **options, process_group=alone)
    of_shards = Engine(shards.model, GradVac(), **options, process_group=ranks)

    def plain(forward: Callable[[], torch.Tensor]) -> None:
        whole.model.zero_grad()
        forward().backward()

    def gradvac(engine: Engine, s: Setting, part: torch.Tensor) -> None:
        s.model.zero_grad()
        with engine.tasks((s.task[part], s.names)):
            engine.backward(*s.losses(part))

    runs: dict[str, Callable[[], object]] = {
        "plain": lambda: plain(lambda: parallel(spread)),
        "spread": lambda: gradvac(engine, whole, spread),
        "placed": lambda: gradvac(engine, whole, placed),
        "sharded": lambda: gradvac(of_shards, shards, placed),
        "plain, nothing sent": lambda: plain(lambda: whole.losses(spread)[0].sum()),
        "spread, nothing sent": lambda: gradvac(by_itself, whole, spread),
        "placed, nothing sent": lambda: gradvac(by_itself, whole, placed),
        "exchange": lambda: ranks.exchange(torch.ones(RANKS, 1, PROBE), [1] * RANKS, PROBE)[1](),
    }
    times: dict[str, list[float]] = {path: [] for path in runs}
    cpu: dict[str, list[float]] = {path: [] for path in runs}
    sent: dict[str, int] = {}
    wire: dict[str, int | None] = {}
    for step in range(steps + 2):
        for path, run in runs.items():
            dist.barrier()
            before, at = sum(ranks.sent.values()), interface_bytes()
            started, worked = time.perf_counter(), time.process_time()
            run()
            worked = time.process_time() - worked
            dist.barrier()
            if step >= 2:  # the first ones ask for memory
                times[path].append(time.perf_counter() - started)
                cpu[path].append(worked)
            sent[path], after = sum(ranks.sent.values()) - before, interface_bytes()
            wire[path] = None if at is None or after is None else (after - at) // RANKS
    one = torch.ones(RANKS, 1, 1)
    latencies = []
    for _ in range(PINGS):
        started = time.perf_counter()
        ranks.exchange(one, [1] * RANKS, 1)[1]()
        latencies.append(time.perf_counter() - started)
    result = {
        "parameters": sum(p.numel() for p in whole.model.parameters()),
        "groups": len(engine.groups),
        "tasks_per_rank": {
            "plain": 1,
            "spread": len(whole.task[spread].unique()),
            "placed": len(whole.task[placed].unique()),
            "sharded": len(whole.task[placed].unique()),
        },
        "seconds": {path: statistics.median(own) for path, own in times.items()},
        "cpu": {path: statistics.median(own) for path, own in cpu.items()},
        "rate": PROBE * 4 * (RANKS - 1) / min(times["exchange"]),
        "latency": min(latencies),
        "sent": {path: sent[path] for path in PATHS},
        "wire": {path: wire[path] for path in PATHS},
    }
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def model_bytes(result: dict, n_tasks: int, path: str) -> tuple[float, float]:
    """What a rank sends by the cost model: all of it, and what the engine counts of it."""
    k, p = result["tasks_per_rank"][path], result["parameters"]
    found = cost(p, RANKS, n_tasks, k, result["groups"], sharded=path == "sharded")
    if path == "plain":
        return found.plain, 0.0
    return found.sent, found.sent - (found.gathered if path == "sharded" else 0)


def simulate(result: dict, n_tasks: int, rate: float, latency: float = 0.0) -> list[dict]:
    """Time of a step on more ranks, each with as many samples as here, relative to plain.

    ``rate`` is bytes a second, ``latency`` seconds of a message.

    Spread, all tasks are on each rank; placed, 1 + K / R of them, never more than here.
    """
    p, groups, seconds = result["parameters"], result["groups"], result["cpu"]
    base = seconds["plain, nothing sent"]
    extra = {path: max(0.0, seconds[f"{path}, nothing sent"] - base) for path in PATHS[1:3]}
    rows = []
    for size in SIMULATED:
        on_each = {"spread": n_tasks, "placed": min(n_tasks, 1 + n_tasks / size)}
        times: dict[str, tuple[float, float]] = {}
        for path in ("plain", *on_each):
            found = cost(p, size, n_tasks, on_each.get(path, 1), groups)
            travel = (found.plain if path == "plain" else found.sent) / rate
            travel += latency * (found.plain_messages if path == "plain" else found.messages)
            work = base
            if path != "plain":  # what task gradients cost goes with their number
                work += extra[path] * on_each[path] / result["tasks_per_rank"][path]
            times[path] = (max(work, travel), work + travel)
        ratios = {
            f"{path}, {how}": times[path][n] / times["plain"][n]
            for path in on_each
            for n, how in enumerate(("hidden", "in turn"))
        }
        rows.append({"ranks": size, "bytes_per_second": rate, "latency": latency, **ratios})
    return rows


def draw(rows: list[dict], title: str, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for (path, marker), color in zip((("spread", "o"), ("placed", "s")), ("C3", "C0"), strict=True):
        for how, line in (("in turn", "-"), ("hidden", "--")):
            ratios = [row[f"{path}, {how}"] for row in rows]
            label = f"{path}, bytes {'after the work' if how == 'in turn' else 'behind the work'}"
            axes.plot([row["ranks"] for row in rows], ratios, line, marker=marker, color=color,
                      label=label)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIMULATED, [f"{n:,}" for n in SIMULATED])
    axes.set_xlabel("ranks")
    axes.set_ylabel("time of a step / plain data parallel")
    axes.set_ylim(0)
    axes.axhline(1, color="0.7", zorder=0)
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    figure.savefig(file, bbox_inches="tight", dpi=120)


def show(result: dict, n_tasks: int) -> None:
    print(f"{'':8}{'s/step':>8}{'ratio':>7}{'CPU s':>7}{'ratio':>7}", end="")
    print(f"{'counted MB':>12}{'model MB':>10}{'wire MB':>9}{'model MB':>10}")
    for path in PATHS:
        total, of_engine = model_bytes(result, n_tasks, path)
        seconds, cpu, wire = (result[key][path] for key in ("seconds", "cpu", "wire"))
        counted = "" if path == "plain" else f"{result['sent'][path] / 1e6:.2f}"
        expected = "" if path == "plain" else f"{of_engine / 1e6:.2f}"
        print(
            f"{path:8}{seconds:8.3f}{seconds / result['seconds']['plain']:7.2f}"
            f"{cpu:7.3f}{cpu / result['cpu']['plain']:7.2f}{counted:>12}"
            f"{expected:>10}{'' if wire is None else f'{wire / 1e6:.2f}':>9}{total / 1e6:10.2f}"
        )
    for path in ("plain", "spread", "placed"):
        found = [result[key][f"{path}, nothing sent"] for key in ("seconds", "cpu")]
        print(f"{path}, nothing sent: {found[0]:.3f} s/step, {found[1]:.3f} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--picture", type=Path, help="also draw the simulation to this file")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rate", type=float, help="GB/s a rank sends, in place of that measured")
    parser.add_argument("--latency", type=float, help="microseconds of a message, likewise")
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
        result = json.loads((Path(folder) / "0.json").read_text())
    p = result["parameters"]
    print(f"{p:,} parameters, {args.tasks} tasks, {RANKS} ranks, {tokens} tokens a batch")
    show(result, args.tasks)
    measured = result["rate"]
    rate = args.rate * 1e9 if args.rate else measured
    latency = result["latency"] if args.latency is None else args.latency / 1e6
    print(
        f"an exchange sends {measured / 1e9:.2f} GB/s here, a message takes "
        f"{result['latency'] * 1e6:.0f} us; taken for them: {rate / 1e9:.2f} GB/s, "
        f"{latency * 1e6:.0f} us"
    )
    rows = simulate(result, args.tasks, rate, latency)
    heads = [key for key in rows[0] if ", " in key]
    print("\ntime of a step / plain, simulated from these")
    print(f"{'ranks':>7}" + "".join(f"{head:>18}" for head in heads))
    for row in rows:
        print(f"{row['ranks']:7,}" + "".join(f"{row[head]:18.2f}" for head in heads))
    if args.json:
        args.json.write_text(json.dumps({"measured": result, "simulated": rows}, indent=1) + "\n")
    if args.picture:
        network = f"{rate / 1e9:.2f} GB/s, {latency * 1e6:.0f} us a message"
        title = f"{p / 1e6:.0f}M parameters, {args.tasks} tasks, {network}"
        draw(rows, title, args.picture)


if __name__ == "__main__":
    main()
