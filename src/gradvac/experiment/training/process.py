"""A training process among others: signals, the lock of its run folder, its memory and kernels."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from gradvac import __version__

# Seconds in which a rank takes the same signal for the first one. Chosen here: longer than a
# launcher takes to hand it on, shorter than somebody waits who sends it again.
GRACE = 5.0


class StopSignal:
    """The signal that asked the run to end, or None. Entered, it listens.

    The first SIGINT or SIGTERM is noted and ends the run at the next step; a second one, of either
    kind, ends the process at once.

    ``shared``: the process is a rank among others. What it has ``heard`` becomes the ``number``
    that the run goes by when all ranks know of it. For `GRACE` seconds the same signal is still the
    first one: it comes twice where a launcher hands on what a scheduler sent to all processes.
    """

    def __init__(self, shared: bool = False) -> None:
        self.number: int | None = None
        self.heard: int | None = None
        self.shared, self._since = shared, 0.0

    def _note(self, number: int, frame: object) -> None:
        if self.heard is None:
            self.heard, self._since = number, time.monotonic()
            if not self.shared:
                self.number = number
                for each in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(each, signal.SIG_DFL)
        elif number != self.heard or time.monotonic() - self._since > GRACE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen inside; afterwards signals do what they did before."""
        before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use only kernels that give the same bits every time, if that is wanted.

    RuntimeError of PyTorch, inside, names an operation that has none. Sums still depend on the
    number of threads: the same bits need the same number.
    """
    if wanted:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def made_with(device: torch.device) -> dict[str, Any]:
    """On what the last bits of a run's numbers depend, besides its recipe."""
    return {
        "gradvac": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "machine": platform.machine(),
    }


def differences(before: Mapping[str, Any], device: torch.device) -> str:
    """What of ``before`` is not what `made_with` says now, in words."""
    now = made_with(device)
    return ", ".join(f"{k} {v} (now {now[k]})" for k, v in before.items() if now.get(k, v) != v)


def bound_kernel_caches() -> None:
    """Keep the CPU's kernel library from hoarding a compiled kernel for every batch shape it met.

    Under bfloat16 each shape is a kernel of its own, and shapes hardly recur: 250 steps of the
    demo held 1.4 GB with the library's default of 1,024 kernels, 0.6 GB with 64, at equal speed.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")
