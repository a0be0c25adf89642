"""Checkpoints: complete or absent, and they cannot run code.

A checkpoint is a folder ``checkpoints/step-00001000`` with tensors in safetensors and the rest in
JSON. It is written under a temporary name and then renamed, so a folder with the final name was
complete. ``SHA256SUMS`` detects later damage; ``sha256sum -c`` reads it too.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradvac.errors import RunError
from gradvac.experiment.run.shards import FOLDER
from gradvac.experiment.run.sums import SUMS, check_sums, write_sums
from gradvac.experiment.run.tensor_file import load_tensors, save_tensors
from gradvac.reading import read_json, read_text
from gradvac.writing import move, replacing, to_disk, write_json

_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """The complete state of a run: what an exact resume needs.

    ``model``, ``optimizer`` and ``method`` map names to tensors; ``state`` is plain JSON. When a
    checkpoint of a sharded model is read, the first two are empty and ``shards`` is their folder.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    method: dict[str, Tensor]
    state: dict[str, Any]
    shards: Path | None = None


_PARTS = ("model", "optimizer", "method")


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, shards: Callable[[Path], None] | None = None
) -> Path:
    """Write ``folder/step-XXXXXXXX``, all or nothing. Returns the new folder.

    ``shards`` writes model and optimizer into a separate folder, if all ranks write together.
    Raises OSError when the disk is full or fails; the incomplete folder is then deleted.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    new, old = folder / f".{final.name}.new", folder / f".{final.name}.old"
    shutil.rmtree(new, ignore_errors=True)
    try:
        _write(new, checkpoint, shards)
        if final.exists():  # old or new exists at every moment, see `recover`
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        new.rename(final)
        to_disk(folder)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)  # free space for other files
        recover(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return final


def _write(new: Path, checkpoint: Checkpoint, shards: Callable[[Path], None] | None) -> None:
    """Fill a new folder and flush it to the disk."""
    new.mkdir(parents=True)
    if shards:
        (new / FOLDER).mkdir()
        shards(new / FOLDER)
    for part in _PARTS[2:] if shards else _PARTS:
        tensors = {k: v.detach().contiguous() for k, v in getattr(checkpoint, part).items()}
        save_tensors(tensors, new / f"{part}.safetensors")
    write_json(new / "state.json", {"step": checkpoint.step, **checkpoint.state}, indent=None)
    names = sorted(file.relative_to(new) for file in new.rglob("*") if file.is_file())
    names = [name for name in names if not name.parts[0].startswith(".")]  # left by `replacing`
    files = [new / name for name in names]
    write_sums(new, [name.as_posix() for name in names])
    for file in [*files, new / SUMS, *([new / FOLDER] if shards else []), new]:
        to_disk(file)


def recover(folder: Path) -> None:
    """Repair the folder after a process was killed while saving; the caller holds the lock."""
    for old in folder.glob(".step-*.old"):
        final = folder / old.name.removeprefix(".").removesuffix(".old")
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(final)
    for new in folder.glob(".step-*.new"):
        shutil.rmtree(new, ignore_errors=True)


def newest_complete(folder: Path) -> tuple[Path, Checkpoint, dict[Path, str]] | None:
    """The newest undamaged checkpoint, and the errors of newer ones.

    None without any checkpoint. RunError if all are damaged: a long run must not
    restart from the beginning by itself.
    """
    problems: dict[Path, str] = {}
    for saved in reversed(list_checkpoints(folder)):
        try:
            return saved, load_checkpoint(saved), problems
        except RunError as e:
            problems[saved] = str(e)
    if problems:
        raise RunError(
            "\n".join(problems.values())
            + f"\n{folder}: no complete checkpoint is left; move the folder away to begin this run "
            "anew"
        )
    return None


def set_aside(damaged: Path) -> Path:
    """Rename a checkpoint so that it is no longer used; returns its new name."""
    aside = damaged.with_name(f"{damaged.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return damaged.rename(aside)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint folder; RunError names a file that is damaged or does not match."""
    _check_sums(folder)
    shards = folder / FOLDER if (folder / FOLDER).is_dir() else None
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for part in _PARTS[2:] if shards else _PARTS:
        parts[part] = load_tensors(folder / f"{part}.safetensors", checked=False)
    try:
        state = read_json(folder / "state.json")
        step = int(state.pop("step"))
    except (ValueError, LookupError, TypeError, OverflowError) as e:
        raise RunError(f"{folder / 'state.json'}: not the state of a checkpoint: {e}") from e
    return Checkpoint(step=step, state=state, shards=shards, **parts)


def _check_sums(folder: Path) -> None:
    """RunError names the first file that changed since it was written."""
    parts = _PARTS[2:] if (folder / FOLDER).is_dir() else _PARTS
    names = [*(f"{part}.safetensors" for part in parts), "state.json"]
    try:
        check_sums(folder, names, others=True)
    except FileNotFoundError:
        # Old runs without sums do not have made_with either.
        if '"made_with"' in _text(folder / "state.json"):
            raise RunError(f"{folder / SUMS}: missing; the checkpoint is not complete") from None


def _text(file: Path) -> str:
    try:
        return read_text(file)
    except RunError:
        return ""


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name))


def keep_newest(folder: Path, count: int, every: int | None = None, regular: int = 1) -> None:
    """Delete all but the newest ``count`` checkpoints.

    One whose step is no multiple of ``regular``, as after a signal, is deleted when a newer one
    exists: which ones are kept and averaged does not depend on interruptions. Of a
    deleted one whose step is a multiple of ``every``, the parameters are kept in ``history`` beside
    ``folder``: a third of a checkpoint, enough to measure and to translate.
    """
    for extra in list_checkpoints(folder)[:-1]:
        if _step(extra) % regular:
            shutil.rmtree(extra)
    for old in list_checkpoints(folder)[:-count]:
        parameters = old / "model.safetensors"
        if every and _step(old) % every == 0:
            history = folder.with_name("history")
            history.mkdir(exist_ok=True)
            kept = history / f"{old.name}.safetensors"
            if (old / FOLDER).is_dir() and not kept.exists():
                with replacing(kept) as new:
                    save_tensors(load_tensors(parameters), new)
            elif parameters.exists():  # missing if killed before rmtree
                move(parameters, kept)
        shutil.rmtree(old)


def saved_models(run: Path) -> dict[int, Path]:
    """Parameter files of a run by ascending step, from its checkpoints and its history."""
    history = run / "history"
    files = history.iterdir() if history.is_dir() else ()
    found = {_step(c): c / "model.safetensors" for c in list_checkpoints(run / "checkpoints")}
    found |= {_step(f): f for f in files if _NAME.fullmatch(f.stem)}
    return dict(sorted(found.items()))


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


def average(folders: list[Path]) -> dict[str, Tensor]:
    """Mean of the model parameters of several checkpoints, summed in float64."""
    models = [load_tensors(f / "model.safetensors") for f in folders]
    return {
        name: (torch.stack([m[name].double() for m in models]).mean(0)).to(models[0][name].dtype)
        for name in models[0]
    }


def split_state(tree: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a nested state into tensors by dotted name (safetensors) and the rest (JSON)."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Tensor):
            tensors[key] = value
        elif isinstance(value, Mapping):
            inner, plain[key] = split_state(value)
            tensors |= {f"{key}.{name}": tensor for name, tensor in inner.items()}
        else:
            plain[key] = value
    return tensors, plain


def join_state(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split_state`."""
    tree = {k: join_state({}, v) if isinstance(v, Mapping) else v for k, v in plain.items()}
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        at = tree
        for key in path:
            at = at.setdefault(key, {})
        at[last] = tensor
    return tree


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: ``exp_avg/encoder.layers.0...``."""
    return {
        f"{key}/{names[p]}": value
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
) -> None:
    """The inverse of `optimizer_tensors`; RunError for a parameter name not in this model."""
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise RunError(f"the checkpoint's optimizer holds {name!r}, which the model has not")
        p = parameters[name]
        place = p.device if kind != "step" or _on_device(optimizer) else torch.device("cpu")
        optimizer.state[p][kind] = value.to(place)


def _on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether step counters are on the parameters' device: in fused and capturable optimizers."""
    return bool(optimizer.defaults.get("fused") or optimizer.defaults.get("capturable"))
