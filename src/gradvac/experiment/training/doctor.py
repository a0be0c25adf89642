"""`gradvac doctor`: versions, devices, what is fast on this machine, which extras are missing."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gradvac.experiment.training.build import device_of, has_bf16

EXTRAS = {
    "toolkit": "the command line, from raw text to a scored and compared model",
    "tensorboard": "training.loggers: [tensorboard]",
    "wandb": "training.loggers: [wandb]",
    "mlflow": "training.loggers: [mlflow]",
    "trackio": "training.loggers: [trackio]",
    "transformers": "gradvac.integrations.transformers, tagging, exports to Hugging Face",
    "trl": "fine-tuning with TRL and adapters",
    "torchjd": "method.name: torchjd, such as UPGrad and CAGrad",
    "export": "gradvac export --to ctranslate2, gradvac translate --engine ctranslate2",
    "langid": "off-target rates, and swapped columns found by language",
    "datasets": "Parquet and saved data sets as corpora",
    "tune": "gradvac tune",
    "typology": "distances between languages in the tests of the geometry",
}
"""What each extra is for; those of this project's own work are left out."""
_NAME = re.compile(r"^([\w.-]+)(?:\[([\w,-]+)\])?")
_SIZE, _ROUNDS = 768, 3  # of the matrices that are timed; chosen here: 0.1 s on a slow core
_LITTLE_DISK = 2  # GiB; a run of the shipped recipes takes less


def examine() -> Iterator[str]:
    """One sentence for each thing that is known about this machine."""
    yield from _versions()
    yield from _devices()
    yield from _threads()
    yield from _precision()
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    little = "; little: checkpoints of a larger model may not fit" if free < _LITTLE_DISK else ""
    yield f"disk: {free:,.0f} GiB free in this folder{little}."
    yield from _extras()


def _versions() -> Iterator[str]:
    import gradvac

    python = platform.python_version()
    yield f"versions: gradvac {gradvac.__version__}, Python {python}, PyTorch {torch.__version__}."


def _devices() -> Iterator[str]:
    if torch.cuda.is_available():
        for n in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(n)
            size = found.total_memory / 2**30
            yield f"GPU {n}: {found.name}, {size:.0f} GiB; device: auto trains on GPU 0."
    elif torch.version.cuda:
        yield "GPU: none is seen, although this PyTorch is built for CUDA; is there a driver?"
    else:
        yield "GPU: none; this PyTorch is built for CPUs, and all of gradvac works on one."
    yield f"CPU: {platform.machine()}, {_cores()} cores for this process{_memory()}."


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # not on every system
        return ""
    return f", {size:.0f} GiB of memory"


def _threads() -> Iterator[str]:
    threads, cores = torch.get_num_threads(), _cores()
    if threads > cores:
        said = "more than there are cores, which is slow; set OMP_NUM_THREADS"
    elif threads < cores and "OMP_NUM_THREADS" in os.environ:
        said = "set by OMP_NUM_THREADS; good beside other work, else more are faster"
    elif threads < cores:
        said = "fewer than there are cores; OMP_NUM_THREADS sets another number"
    else:
        said = "one for each core; the last bits of a run depend on this number"
    yield f"threads: PyTorch uses {threads}, {said}."


def _precision() -> Iterator[str]:
    """Whether bfloat16 is used; it is timed only where it is, for it is very slow elsewhere."""
    device = device_of("auto")
    if not has_bf16(device):
        yield (
            f"precision: this {'GPU' if device.type == 'cuda' else 'CPU'} does not compute in "
            "bfloat16, so training.precision: auto means fp32; bf16 would work and be much slower."
        )
        return
    ratio = _seconds(torch.float32, device) / _seconds(torch.bfloat16, device)
    yield (
        "precision: training.precision: auto means bf16, in which a product of matrices took "
        f"{1 / ratio:.2f} times as long as in fp32."
    )


def _seconds(kind: torch.dtype, device: torch.device) -> float:
    """The shortest time of a product of two matrices; on a CPU its own, not that of other work."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    a = torch.ones(_SIZE, _SIZE, dtype=kind, device=device)
    times: list[float] = []
    for _ in range(_ROUNDS + 1):  # the first builds the kernel
        began = clock()
        float((a @ a)[0, 0])  # waits for a GPU
        times.append(clock() - began)
    return max(min(times[1:]), 1e-9)


def _extras() -> Iterator[str]:
    needed = extras()
    for name, purpose in EXTRAS.items():
        absent = [package for package in needed.get(name, []) if not _installed(package)]
        if absent:
            yield (
                f"extra {name}: missing {', '.join(absent)}, needed for {purpose}: "
                f"pip install 'gradvac[{name}]'."
            )
        else:
            yield f"extra {name}: complete, for {purpose}."


def extras() -> dict[str, list[str]]:
    """The packages of each extra, those of other extras of gradvac included."""
    own: dict[str, list[str]] = {}
    for line in metadata.requires("gradvac") or []:
        requirement, _, marker = line.partition(";")
        if extra := re.search(r"extra\s*==\s*[\"']([\w.-]+)", marker):
            own.setdefault(extra[1], []).append(requirement.strip())
    return {name: sorted({*_packages(name, own)}) for name in own}


def _packages(extra: str, own: dict[str, list[str]]) -> Iterator[str]:
    for requirement in own.get(extra, []):
        found = _NAME.match(requirement)
        assert found is not None
        if found[1] == "gradvac":
            for other in (found[2] or "").split(","):
                yield from _packages(other, own)
        else:
            yield found[1]


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
