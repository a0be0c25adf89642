"""Process settings for training: signals, deterministic kernels, memory."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch

from gradvac import __version__

# Seconds in which a rank treats a repeated signal as the first one. Chosen here: longer than a
# launcher takes to forward it, shorter than a user waits before sending it again.
GRACE = 5.0
ANSWER = b"\nstopping after this step, with a checkpoint; once more: at once, without\n"


class StopSignal:
    """The signal that asked the run to end, or None; see `listening`.

    The first SIGINT or SIGTERM is noted and ends the run at the next step; a second one, of either
    kind, ends the process at once. The first is answered on standard error: a step or a validation
    may take long.

    ``shared``: the process is one of several ranks. The signal it ``heard`` becomes ``number``,
    which ends the run, when all ranks know of it. A repeat of the signal within `GRACE` seconds is
    ignored: it comes twice if a launcher forwards what a scheduler sent to all processes.
    """

    def __init__(self, shared: bool = False) -> None:
        self.number: int | None = None
        self.heard: int | None = None
        self.shared, self._since = shared, 0.0

    def _note(self, number: int, frame: object) -> None:
        if self.heard is None:
            self.heard, self._since = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":  # of the ranks of torchrun, one
                with suppress(OSError):  # nobody reads it; not print, which may be in use
                    os.write(2, ANSWER)
            if not self.shared:
                self.number = number
                for each in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(each, signal.SIG_DFL)
        elif number != self.heard or time.monotonic() - self._since > GRACE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for signals in this context; restore the old handlers afterwards."""
        before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use only deterministic kernels in this context, if ``wanted``.

    PyTorch then raises RuntimeError for an operation without one. Sums still depend on the number
    of threads: the same bits need the same number.
    """
    if wanted:  # cuBLAS reads this variable at its first use
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def made_with(device: torch.device) -> dict[str, Any]:
    """What the exact bits of a run's numbers depend on, besides its recipe."""
    return {
        "gradvac": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "machine": platform.machine(),
    }


def differences(before: Mapping[str, Any], device: torch.device) -> str:
    """The differences between ``before`` and `made_with` now, in words."""
    now = made_with(device)
    return ", ".join(f"{k} {v} (now {now[k]})" for k, v in before.items() if now.get(k, v) != v)


def bound_kernel_caches() -> None:
    """Limit the cache of compiled kernels in the CPU's kernel library.

    In bfloat16 each batch shape needs its own kernel, and shapes rarely recur: 250 steps of the
    demo used 1.4 GB with the default of 1,024 kernels, 0.6 GB with 64, at equal speed.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")
