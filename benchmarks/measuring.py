"""What the benchmarks of a training step share: the model, the batch, clocks and memory.

Every path gets the same model, the same batch of tokens split over K tasks and the same loss.
Rounds alternate between the paths, so that a busy machine slows all of them; ratios are medians
over rounds of (path / plain of the same round).
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradvac.engine import Engine, SinglePassEngine
from gradvac.methods import Method
from gradvac.translation.shapes import PRESETS, TransformerConfig
from gradvac.translation.transformer import Transformer

SENTENCE = 32  # tokens of a sentence, on both sides
LABEL_SMOOTHING = 0.1

Step = Callable[[], object]


@dataclass
class Workload(ABC):
    """A model and a batch of samples; ``task`` [B] is in no order unless asked for."""

    model: nn.Module
    task: Tensor
    names: list[str]

    @abstractmethod
    def losses(self, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses [N] of the samples ``own`` [B], all by default, and the sample of each."""

    def task_losses(self) -> list[Tensor]:
        """Loss of each task, from one joint forward pass."""
        loss, rows = self.losses()
        owner = self.task.to(rows.device)[rows]
        return [loss[owner == k].sum() for k in range(len(self.names))]


@dataclass
class Setting(Workload):
    """The Transformer of this package and a batch of sentence pairs."""

    model: Transformer
    source: Tensor
    target_in: Tensor
    target_out: Tensor

    def losses(self, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses [N], divided by the tokens of the step, and the sentence of each."""
        pick = (lambda x: x) if own is None else (lambda x: x[own.to(x.device)])
        tensors = (pick(x) for x in (self.source, self.target_in, self.target_out))
        device = self.source.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss, _, rows = self.model.token_losses(*tensors, LABEL_SMOOTHING)
        return loss / self.target_out.numel(), rows


def transformer(size: str) -> TransformerConfig:
    """Return the shape of a model: "quick", "13M", "big" (Transformer-Big, 64k), or "d=...".

    "narrow" has the layers of "big" and almost no arithmetic: what it costs, it costs the host.
    """
    if size == "big":
        return TransformerConfig(64_000, **PRESETS["big"])
    if size == "narrow":
        return TransformerConfig(64, 16, 64, 2, 6, 6, dropout=0.1)
    if size.startswith("d="):
        d = int(size.removeprefix("d="))
        return TransformerConfig(10_000, d, 4 * d, max(2, d // 64), 3, 3, dropout=0.1)
    layers, vocabulary = (2, 4000) if size == "quick" else (6, 10_000)
    return TransformerConfig(vocabulary, 256, 1024, 4, layers, layers, dropout=0.1)


def setting(
    n_tasks: int,
    tokens: int,
    size: str,
    in_order: bool = False,
    device: str = "cpu",
    length: int = SENTENCE,
    model: Transformer | None = None,
) -> Setting:
    """Return the model, built here unless given, and a batch of whole sentences.

    They are spread over the tasks as evenly as it goes.
    """
    torch.manual_seed(0)
    config = transformer(size)
    n = tokens // length
    words = torch.randint(4, config.vocabulary_size, (3, n, length)).to(device)
    task, names = spread(n, n_tasks)
    task = task.sort().values if in_order else task
    model = Transformer(config).to(device) if model is None else model
    return Setting(model, task, names, *words.unbind(0))


def spread(samples: int, n_tasks: int) -> tuple[Tensor, list[str]]:
    """The task of each sample, as even as it goes and in no order, and the names of the tasks."""
    task = torch.arange(n_tasks).repeat(-(-samples // n_tasks))[:samples]
    return task[torch.randperm(samples)], [f"t{k}" for k in range(n_tasks)]


def plain(s: Workload) -> Step:
    """Joint training."""

    def step() -> None:
        s.model.zero_grad()
        s.losses()[0].sum().backward()

    return step


def single_pass(
    method: Callable[[], Method], granularity: str, **options: int
) -> Callable[[Workload], Step]:
    """Training with task gradients from one backward pass."""

    def build(s: Workload) -> Step:
        engine: SinglePassEngine = Engine(
            s.model, method(), granularity, engine="single_pass", **options
        )

        def step() -> None:
            s.model.zero_grad()
            with engine.tasks((s.task, s.names)):
                engine.backward(*s.losses())

        return step

    return build


# -- clocks and memory ---------------------------------------------------------------------------


def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory instead of giving it back and asking for it again.

    Fresh pages cost about as much as filling them. How many a step needs depends on how its
    allocations happen to lie, and by default differs between runs of the same path.
    """
    trim_threshold, mmap_max = -1, -4  # malloc.h
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, -1)
        libc.mallopt(mmap_max, 0)


class Memory:
    """The peak of the memory in use above what it was at the start, in MiB; NaN if unknown."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.forget_peak()
        self.before = self._now(peak=False)

    def forget_peak(self) -> None:
        """Give freed memory back and begin to watch the peak anew."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return
        with suppress(OSError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        return self._now(peak=True) - self.before

    def _now(self, peak: bool) -> float:
        if self.on_gpu:
            get = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
            return get() / 2**20
        key = "VmHWM" if peak else "VmRSS"
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return float("nan")
        return float(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def timed(step: Step, device: str) -> tuple[float, float]:
    """Run a step; return its CPU time and its wall time in seconds."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    wait()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(
    n_tasks: int,
    tokens: int,
    paths: Mapping[str, Callable[[Any], Step]],
    rounds: int,
    size: str,
    in_order: bool = False,
    device: str = "cpu",
    make: Callable[[int, int, str, bool, str], Workload] = setting,
) -> list[dict]:
    """Rows of the table for one number of tasks and tokens; ``paths`` holds "plain".

    ``make`` builds the model and the batch anew for every path.

    Memory is the peak of the second step above that of the built model: gradients and kept buffers
    count. A path that cannot run is left out with a line that says why.
    """
    memory: dict[str, float] = {}
    steps: dict[str, Step] = {}
    for path, build in paths.items():
        s = make(n_tasks, tokens, size, in_order, device)
        watch = Memory(device)
        try:
            step = build(s)
            step()
        except (ImportError, RuntimeError) as e:
            print(f"{path} is left out: {str(e).splitlines()[0]}", flush=True)
            continue
        watch.forget_peak()
        step()
        memory[path], steps[path] = watch.peak(), step
    times: dict[str, list[tuple[float, float]]] = {path: [] for path in steps}
    for _ in range(rounds):
        for path, step in steps.items():
            times[path].append(timed(step, device))
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
                "seconds_wall": round(statistics.median(pair[1] for pair in pairs), 4),
            }
        )
    return rows


HEADER = f"{'path':38}{'K':>4}{'tokens':>8}{'cpu':>8}{'wall':>8}{'MiB':>9}{'cpu s':>9}{'wall s':>9}"


def line(row: dict) -> str:
    """Return a row of the table."""
    return (
        f"{row['path']:38}{row['K']:4}{row['tokens']:8}{row['ratio_cpu']:8.2f}"
        f"{row['ratio_wall']:8.2f}{row['peak_extra_mib']:9.0f}{row['seconds_cpu']:9.3f}"
        f"{row['seconds_wall']:9.3f}"
    )
