"""Tensors in safetensors files with a checksum of their own."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradvac.errors import RunError
from gradvac.experiment.run.shards import FOLDER, whole_tensors
from gradvac.reading import regular

_KEY = "sha256"  # in the metadata, which other readers ignore


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file; OSError when the disk is full or fails."""
    try:
        save_file(dict(tensors), file, {_KEY: _digest(tensors)})
    except SafetensorError as e:  # it has the system error only in its text
        number = re.search(r"os error (\d+)", str(e))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(file)) from e


def load_tensors(file: Path, checked: bool = True) -> dict[str, Tensor]:
    """Tensors of a safetensors file; RunError names a file that is damaged or of another format.

    ``checked`` False: the caller has already checked the sum of the file. For the model file of a
    checkpoint in shards, the tensors are read from the shards.
    """
    if not file.exists() and file.name == "model.safetensors" and (file.parent / FOLDER).is_dir():
        return whole_tensors(file.parent / FOLDER, "model")
    try:
        tensors = load_file(regular(file))
        with safe_open(file, "pt") as opened:
            wanted = (opened.metadata() or {}).get(_KEY)
    except (OSError, SafetensorError) as e:
        raise RunError(f"{file}: not a readable safetensors file: {e}") from e
    if checked and wanted is not None and (found := _digest(tensors)) != wanted:
        raise RunError(
            f"{file}: damaged: the SHA-256 of its tensors begins {found[:12]}, and it says "
            f"{wanted[:12]} itself"
        )
    return tensors


def digest_of(file: Path) -> str:
    """The SHA-256 of the tensors of a file, from its metadata or else computed."""
    if file.exists():
        with suppress(OSError, SafetensorError), safe_open(file, "pt") as opened:
            if said := (opened.metadata() or {}).get(_KEY):
                return said
    return _digest(load_tensors(file))


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a safetensors file, without reading data; RunError."""
    try:
        with safe_open(regular(file), "np") as opened:
            return {n: tuple(opened.get_slice(n).get_shape()) for n in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise RunError(f"{file}: not a readable safetensors file: {e}") from e


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
