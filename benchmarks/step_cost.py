"""What a step costs with per-task gradients: ratio to plain training, in CPU time and wall time.

One process, one table. Every path gets the same Transformer, the same batch of tokens split over
K tasks and the same loss; a step is forward, backward and combination, without optimizer. Rounds
alternate between the paths, so that a busy machine slows all of them; ratios are medians over
rounds of (path / plain of the same round). Memory is the peak resident size of the
second step above that of the built model: gradients and kept buffers count.

    python benchmarks/step_cost.py [--quick] [--json FILE] [--tasks 2 4 8 16] [--tokens 1024]
                                   [--rounds 5] [--paths plain all_layer ...] [--sorted]
                                   [--threads 2]

Without --sorted the sentences stand in no order, which costs the single pass a copy of what it
splits. With more threads than idle cores, CPU time counts threads that wait for each other: say
--threads 1 on a busy machine.

What it needs beside gradvac: torchjd for its row, which is left out if it is not installed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gradvac import GradVac, Method, PCGrad, PerTaskEngine, SinglePassEngine
from gradvac.translation.transformer import Transformer, TransformerConfig

SENTENCE = 32  # tokens of a sentence, on both sides
VOCABULARY = 10_000
LABEL_SMOOTHING = 0.1

Step = Callable[[], None]


@dataclass
class Setting:
    """A model and a batch; ``task`` [B] is in no order unless asked for."""

    model: Transformer
    source: Tensor
    target_in: Tensor
    target_out: Tensor
    task: Tensor
    names: list[str]

    def losses(self, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses [N], divided by the tokens of the step, and the sentence of each."""
        pick = (lambda x: x) if own is None else (lambda x: x[own])
        tensors = (pick(x) for x in (self.source, self.target_in, self.target_out))
        loss, _, rows = self.model.token_losses(*tensors, LABEL_SMOOTHING)
        return loss / self.target_out.numel(), rows

    def task_losses(self) -> list[Tensor]:
        """Loss of each task, from one joint forward pass."""
        loss, rows = self.losses()
        owner = self.task[rows]
        return [loss[owner == k].sum() for k in range(len(self.names))]


def setting(n_tasks: int, tokens: int, quick: bool, in_order: bool = False) -> Setting:
    torch.manual_seed(0)
    layers = 2 if quick else 6
    config = TransformerConfig(
        4000 if quick else VOCABULARY, 256, 1024, 4, layers, layers, dropout=0.1
    )
    n = tokens // SENTENCE
    words = torch.randint(4, config.vocabulary_size, (3, n, SENTENCE))
    task = torch.arange(n_tasks).repeat(-(-n // n_tasks))[:n][torch.randperm(n)]
    task = task.sort().values if in_order else task
    names = [f"t{k}" for k in range(n_tasks)]
    return Setting(Transformer(config), *words.unbind(0), task, names)


# -- the paths -----------------------------------------------------------------------------------


def plain(s: Setting) -> Step:
    def step() -> None:
        s.model.zero_grad()
        s.losses()[0].sum().backward()

    return step


def single_pass(method: Callable[[], Method], granularity: str) -> Callable[[Setting], Step]:
    def build(s: Setting) -> Step:
        engine = SinglePassEngine(s.model, method(), granularity)

        def step() -> None:
            s.model.zero_grad()
            with engine.tasks((s.task, s.names)):
                engine.backward(*s.losses())

        return step

    return build


def per_task(s: Setting) -> Step:
    engine = PerTaskEngine(s.model, GradVac(), "all_layer")

    def step() -> None:
        for k, name in enumerate(s.names):
            engine.accumulate(name, s.losses(s.task == k)[0].sum())
        engine.combine()

    return step


def torchjd_autojac(s: Setting) -> Step:
    from torchjd.aggregation import GradVac as TheirGradVac
    from torchjd.autojac import backward, jac_to_grad

    aggregator = TheirGradVac(beta=1e-2)
    parameters = list(s.model.parameters())

    def step() -> None:
        s.model.zero_grad()
        backward(s.task_losses(), parallel_chunk_size=1)
        jac_to_grad(parameters, aggregator)

    return step


def libmtl_way(s: Setting) -> Step:
    """LibMTL 1.1: one backward per task through the joint graph, then projections of vectors.

    Written here from the description of its code: gradients go one by one into a K x P matrix;
    for every task a copy is edited against every other task in random order (whole model).
    """
    parameters = list(s.model.parameters())
    sizes = [p.numel() for p in parameters]
    phi = torch.zeros(len(s.names), len(s.names))

    def step() -> None:
        losses = s.task_losses()
        grads = torch.zeros(len(losses), sum(sizes))
        for k, loss in enumerate(losses):
            s.model.zero_grad()
            loss.backward(retain_graph=k < len(losses) - 1)
            grads[k] = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        edited = grads.clone()
        for i in range(len(losses)):
            for j in torch.randperm(len(losses)).tolist():
                if i == j:
                    continue
                norms = edited[i].norm() * grads[j].norm()
                cosine = edited[i] @ grads[j] / (norms + 1e-8)
                if cosine < phi[i, j]:
                    sine = (1 - cosine**2).sqrt()
                    a = phi[i, j] * sine - cosine * (1 - phi[i, j] ** 2).sqrt()
                    a = (
                        edited[i].norm()
                        * a
                        / (grads[j].norm() * (1 - phi[i, j] ** 2).sqrt() + 1e-8)
                    )
                    edited[i] += a * grads[j]
                phi[i, j] = 0.99 * phi[i, j] + 0.01 * cosine
        for p, piece in zip(parameters, edited.sum(0).split(sizes), strict=True):
            p.grad = piece.view_as(p)

    return step


PATHS: dict[str, Callable[[Setting], Step]] = {
    "plain": plain,
    "single_pass all_layer GradVac": single_pass(GradVac, "all_layer"),
    "single_pass all_layer PCGrad": single_pass(PCGrad, "all_layer"),
    "single_pass all_matrix GradVac": single_pass(GradVac, "all_matrix"),
    "single_pass enc_dec GradVac": single_pass(GradVac, "enc_dec"),
    "single_pass whole_model GradVac": single_pass(GradVac, "whole_model"),
    "per_task all_layer GradVac": per_task,
    "TorchJD autojac whole_model GradVac": torchjd_autojac,
    "LibMTL's way whole_model GradVac": libmtl_way,
}
QUICK = [
    "plain",
    "single_pass all_layer GradVac",
    "single_pass all_layer PCGrad",
    "single_pass all_matrix GradVac",
    "per_task all_layer GradVac",
    "TorchJD autojac whole_model GradVac",
    "LibMTL's way whole_model GradVac",
]  # fmt: skip


# -- measuring -----------------------------------------------------------------------------------


def resident_mib(peak: bool = False) -> float:
    """Resident memory now, or its peak since :func:`forget_peak`; NaN where it cannot be read."""
    try:
        return _status("VmHWM" if peak else "VmRSS") / 1024
    except OSError:
        return float("nan")


def forget_peak() -> None:
    """Give freed memory back and begin to watch the peak anew."""
    gc.collect()
    with suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(key)).split()[1])


def measure(
    n_tasks: int,
    tokens: int,
    paths: Mapping[str, Callable[[Setting], Step]],
    rounds: int,
    quick: bool,
    in_order: bool,
) -> list[dict]:
    """Rows of the table for one number of tasks and tokens; ``paths`` holds "plain"."""
    memory: dict[str, float] = {}
    steps: dict[str, Step] = {}
    for path, build in paths.items():
        s = setting(n_tasks, tokens, quick, in_order)
        forget_peak()
        before = resident_mib()
        try:
            steps[path] = build(s)
        except ImportError:
            continue
        steps[path]()  # the first step of the single pass checks itself, which is not its cost
        forget_peak()
        steps[path]()
        memory[path] = resident_mib(peak=True) - before
    times: dict[str, list[tuple[float, float]]] = {path: [] for path in steps}
    for _ in range(rounds):
        for path, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            step()
            times[path].append((time.process_time() - cpu, time.perf_counter() - wall))
    rows = []
    for path, pairs in times.items():
        ratio = [
            statistics.median(
                own[n] / base[n] for own, base in zip(pairs, times["plain"], strict=True)
            )
            for n in (0, 1)
        ]
        rows.append(
            {
                "path": path,
                "K": n_tasks,
                "tokens": tokens,
                "ratio_cpu": round(ratio[0], 3),
                "ratio_wall": round(ratio[1], 3),
                "peak_extra_mib": round(memory[path], 1),
                "seconds_cpu": round(statistics.median(pair[0] for pair in pairs), 4),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, about a minute")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--tasks", type=int, nargs="+", help="numbers of tasks K")
    parser.add_argument("--tokens", type=int, nargs="+", help="target tokens of a batch")
    parser.add_argument("--rounds", type=int, help="rounds that alternate between the paths")
    parser.add_argument("--paths", nargs="+", help="only paths whose name contains one of these")
    parser.add_argument("--sorted", action="store_true", help="sentences sorted by task")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = QUICK if args.quick else list(PATHS)
    if args.paths:
        chosen = [p for p in PATHS if p == "plain" or any(word in p for word in args.paths)]
    rounds = args.rounds or (2 if args.quick else 5)
    rows: list[dict] = []
    print(f"{'path':38}{'K':>4}{'tokens':>8}{'cpu':>8}{'wall':>8}{'MiB':>9}{'cpu s':>9}")
    for tokens in args.tokens or ([512] if args.quick else [1024, 4096]):
        for n_tasks in args.tasks or ([4, 8] if args.quick else [2, 4, 8, 16, 32]):
            paths = {path: PATHS[path] for path in chosen}
            for row in measure(n_tasks, tokens, paths, rounds, args.quick, args.sorted):
                rows.append(row)
                print(
                    f"{row['path']:38}{row['K']:4}{row['tokens']:8}{row['ratio_cpu']:8.2f}"
                    f"{row['ratio_wall']:8.2f}{row['peak_extra_mib']:9.0f}{row['seconds_cpu']:9.3f}",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
