"""What a step costs with per-task gradients: ratio to plain training, in CPU time and wall time.

One process, one table. Every path gets the same Transformer, the same batch of tokens split over
K tasks and the same loss; a step is forward, backward and combination, without optimizer. Rounds
alternate between the paths, so that a busy machine slows all of them; ratios are medians over
rounds of (path / plain of the same round). Memory is the peak of the second step above that of the
built model: gradients and kept buffers count.

    python benchmarks/step_cost.py [--quick] [--json FILE] [--tasks 2 4 8 16 32]
                                   [--tokens 1024 4096] [--rounds 5] [--paths plain all_layer ...]
                                   [--sorted] [--threads 1] [--keep-memory]
    python benchmarks/step_cost.py --gpu [--models big 7B] [--profile FILE]

--gpu is the rows of docs/prediction.md on a CUDA device: Transformer-Big with 64,000 tokens of
vocabulary, 32,768 tokens a batch, and LoRA on a Llama of 7B (benchmarks/adapters.py), both under
autocast to bf16; each path is measured beside plain training alone, so that it has the memory to
itself. --profile also writes a table of what the single pass spends beside plain training.

Without --sorted the sentences stand in no order, which costs the single pass a copy of what it
splits. With more threads than idle cores, CPU time counts threads that wait for each other, so the
default is one. --keep-memory asks the C library not to give freed memory back between steps, for
all paths alike: how many fresh pages a step asks for is otherwise a matter of chance.

"arithmetic" is what any way of computing in memory takes at least: plain training without the
products for gradients of weights, then K products of contiguous rows for each of them, the Gram
matrices of these and their weighted sums. Nothing is followed, sorted or checked.

"chosen" is the cheaper of the single pass and a pass for each task, measured before the rounds as
in a run with `method.engine: measured`; --paths chosen measures it beside plain training alone.

What it needs beside gradvac: torchjd for its rows, which are left out if it is not installed;
transformers and peft for --gpu with 7B.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.adapters import adapted
from benchmarks.measuring import (
    HEADER,
    LABEL_SMOOTHING,
    Setting,
    Step,
    Workload,
    keep_freed_memory,
    line,
    measure,
    plain,
    setting,
    single_pass,
    timed,
)
from gradvac import MGDA, GradVac, PCGrad
from gradvac.engine import Engine, PerTaskEngine
from gradvac.engine.gradients.gram import gram
from gradvac.engine.groups import parameter_groups

# -- the paths -----------------------------------------------------------------------------------


def in_order(build: Callable[[Workload], Step]) -> Callable[[Workload], Step]:
    """The same with the samples of a task side by side."""
    return lambda s: build(replace(s, task=s.task.sort().values))


def per_task(s: Workload) -> Step:
    engine = PerTaskEngine(s.model, GradVac(), "all_layer")

    def step() -> None:
        s.model.zero_grad()
        for k, name in enumerate(s.names):
            engine.accumulate(name, s.losses(s.task == k)[0].sum())
        engine.combine()

    return step


def one_graph(s: Workload) -> Step:
    """A backward pass for each task through the graph of one forward pass."""
    engine = Engine(s.model, GradVac(), "all_layer", engine="per_task")

    def step() -> None:
        s.model.zero_grad()
        with engine.tasks((s.task, s.names)):
            engine.backward(*s.losses())

    return step


def chosen(s: Workload) -> Step:
    """The cheaper of both ways, as ``method.engine: measured`` finds it in a run's first steps."""
    device = next(s.model.parameters()).device.type
    ways = {"single pass": single_pass(GradVac, "all_layer")(s), "per task": per_task(s)}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(5):  # the first two of each are not counted, as in a run
        for way, step in ways.items():
            times[way].append(timed(step, device)[1])
    way = min(ways, key=lambda way: statistics.median(times[way][2:]))
    print(f"chosen: {way}", flush=True)
    return ways[way]


def arithmetic(s: Setting) -> Step:
    """K gradients of each weight, their Gram matrices and sums by layer, and nothing else."""
    k, rows = len(s.names), s.target_out.numel() // len(s.names)
    found = parameter_groups(s.model, "all_layer")
    groups = [own for g in found if (own := [p for p in g.parameters if p.ndim == 2])]
    weights = [p for group in groups for p in group]
    factors = {d: torch.randn(k, rows, d) for p in weights for d in p.shape}
    held = torch.empty(k * max(sum(p.numel() for p in group) for group in groups))
    mix = torch.rand(1, k)

    def combined(group: Sequence[nn.Parameter]) -> None:
        sizes = [p.numel() for p in group]
        matrix = held[: k * sum(sizes)].view(k, -1)
        for p, piece in zip(group, matrix.split(sizes, dim=1), strict=True):
            left, right = (factors[d] for d in p.shape)
            for a, b, out in zip(left, right, piece.view(k, *p.shape), strict=True):
                torch.mm(a.T, b, out=out)
        gram([[matrix]])
        for p, piece in zip(group, (mix @ matrix).view(-1).split(sizes), strict=True):
            p.grad = piece.view_as(p)

    def step() -> None:
        s.model.zero_grad()
        for p in weights:
            p.requires_grad_(False)
        s.losses()[0].sum().backward()
        for p in weights:
            p.requires_grad_(True)
        for group in groups:
            combined(group)

    return step


def torchjd_autojac(s: Workload) -> Step:
    from torchjd.aggregation import GradVac as TheirGradVac
    from torchjd.autojac import backward, jac_to_grad

    aggregator = TheirGradVac(beta=1e-2)
    parameters = [p for p in s.model.parameters() if p.requires_grad]

    def step() -> None:
        s.model.zero_grad()
        backward(s.task_losses(), parallel_chunk_size=1)
        jac_to_grad(parameters, aggregator)

    return step


def torchjd_autogram(s: Setting) -> Step:
    """The Gram matrix without the Jacobian, then one weighted backward.

    Its hooks see modules, so the softmax that shares the embedding is missing from its Gram matrix:
    the row tells what it costs, not what it gets right. It cannot batch our loss function, so this
    path computes torch's.
    """
    from torchjd.aggregation import GradVacWeighting
    from torchjd.autogram import Engine

    engine = Engine(s.model, batch_dim=None)
    weighting = GradVacWeighting(beta=1e-2)
    owner = s.task.repeat_interleave(s.target_out.shape[1])

    def step() -> None:
        s.model.zero_grad()
        logits = s.model.logits(s.model(s.source, s.target_in).flatten(0, 1))
        loss = F.cross_entropy(
            logits, s.target_out.flatten(), reduction="none", label_smoothing=LABEL_SMOOTHING
        )
        loss = loss / s.target_out.numel()
        losses = torch.stack([loss[owner == k].sum() for k in range(len(s.names))])
        losses.backward(weighting(engine.compute_gramian(losses)))

    return step


def libmtl_way(s: Workload) -> Step:
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
    "single_pass all_layer GradVac, in order": in_order(single_pass(GradVac, "all_layer")),
    "single_pass all_layer GradVac, unchecked": single_pass(GradVac, "all_layer", verify_steps=0),
    "single_pass all_layer PCGrad": single_pass(PCGrad, "all_layer"),
    "single_pass all_layer MGDA": single_pass(MGDA, "all_layer"),
    "single_pass all_matrix GradVac": single_pass(GradVac, "all_matrix"),
    "single_pass enc_dec GradVac": single_pass(GradVac, "enc_dec"),
    "single_pass whole_model GradVac": single_pass(GradVac, "whole_model"),
    "two passes whole_model GradVac": single_pass(GradVac, "whole_model", passes=2),
    "per_task all_layer GradVac": per_task,
    "one graph all_layer GradVac": one_graph,
    "chosen all_layer GradVac": chosen,
    "arithmetic of all_layer": arithmetic,
    "TorchJD autojac whole_model GradVac": torchjd_autojac,
    "TorchJD autogram whole_model GradVac": torchjd_autogram,
    "LibMTL's way whole_model GradVac": libmtl_way,
}
QUICK = [
    "plain",
    "single_pass all_layer GradVac",
    "single_pass all_layer GradVac, unchecked",
    "single_pass all_layer PCGrad",
    "single_pass all_matrix GradVac",
    "per_task all_layer GradVac",
    "TorchJD autojac whole_model GradVac",
    "TorchJD autogram whole_model GradVac",
    "LibMTL's way whole_model GradVac",
]  # fmt: skip

# The rows that docs/prediction.md predicts and --gpu measures, and their numbers of tasks.
PREDICTED = [
    "plain",
    "single_pass all_layer GradVac",
    "single_pass all_layer GradVac, in order",
    "one graph all_layer GradVac",
    "per_task all_layer GradVac",
    "TorchJD autojac whole_model GradVac",
]
TASKS = {"big": [2, 4, 8, 16, 32, 64], "7B": [2, 4, 8, 16]}
TOKENS = {"big": 32_768, "7B": 8_192}


# -- the table -----------------------------------------------------------------------------------


def profile(path: str, n_tasks: int, tokens: int, size: str, device: str, file: Path) -> None:
    """Write what a step spends its time on, for plain training and one path."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.startswith("cuda"):
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    by = "self_cuda_time_total" if len(kinds) > 1 else "self_cpu_time_total"
    with file.open("w") as out:
        for name in ("plain", path):
            step = PATHS[name](setting(n_tasks, tokens, size, device=device))
            step(), step()
            with torch.profiler.profile(activities=kinds) as found:
                step()
            table = found.key_averages().table(sort_by=by, row_limit=25)
            out.write(f"{name}\n{table}\n")


def on_gpu(
    args: argparse.Namespace, device: str = "cuda", sizes: Mapping[str, str] | None = None
) -> list[dict]:
    """Measure the rows of docs/prediction.md; other devices and sizes by model are for tests."""
    wanted = [p for p in PREDICTED[1:] if not args.paths or any(word in p for word in args.paths)]
    rows: list[dict] = []
    for name in args.models:
        make = setting if name == "big" else adapted
        tokens = args.tokens[0] if args.tokens else TOKENS[name]
        for n_tasks in args.tasks or TASKS[name]:
            for path in wanted:
                both = {"plain": plain, path: PATHS[path]}
                size = (sizes or {}).get(name, name)
                rounds = args.rounds or 2
                found = measure(n_tasks, tokens, both, rounds, size, args.sorted, device, make)
                for row in found if path == wanted[0] else found[1:]:
                    rows.append({"model": name, **row})
                    print(line(row), flush=True)
    return rows


def on_cpu(args: argparse.Namespace) -> list[dict]:
    """Measure all paths, or those asked for, in rounds that alternate between them."""
    chosen = QUICK if args.quick else list(PATHS)
    if args.paths:
        chosen = [p for p in PATHS if p == "plain" or any(word in p for word in args.paths)]
    paths, rounds = {path: PATHS[path] for path in chosen}, args.rounds or (2 if args.quick else 5)
    size, rows = "quick" if args.quick else "13M", []
    for tokens in args.tokens or ([512] if args.quick else [1024, 4096]):
        for n_tasks in args.tasks or ([4, 8] if args.quick else [2, 4, 8, 16, 32]):
            for row in measure(n_tasks, tokens, paths, rounds, size, args.sorted):
                rows.append(row)
                print(line(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small model, about a minute")
    parser.add_argument("--gpu", action="store_true", help="the predicted rows, on CUDA")
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS), help="of --gpu")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--profile", type=Path, help="also write a profile to this file")
    parser.add_argument("--tasks", type=int, nargs="+", help="numbers of tasks K")
    parser.add_argument("--tokens", type=int, nargs="+", help="target tokens of a batch")
    parser.add_argument("--rounds", type=int, help="rounds that alternate between the paths")
    parser.add_argument("--paths", nargs="+", help="only paths whose name contains one of these")
    parser.add_argument("--sorted", action="store_true", help="sentences sorted by task")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep-memory", action="store_true", help="freed memory is kept")
    args = parser.parse_args()
    if args.gpu and not torch.cuda.is_available():
        raise SystemExit("--gpu needs a CUDA device, and there is none: nothing was measured")
    torch.set_num_threads(args.threads)
    if args.keep_memory:
        keep_freed_memory()
    print(HEADER)
    rows = on_gpu(args) if args.gpu else on_cpu(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.profile:
        on, size = ("cuda", "big") if args.gpu else ("cpu", "quick" if args.quick else "13M")
        n_tasks = (args.tasks or [16])[-1]
        tokens = (args.tokens or [TOKENS["big"] if args.gpu else 1024])[-1]
        profile(PREDICTED[1], n_tasks, tokens, size, on, args.profile)


if __name__ == "__main__":
    main()
