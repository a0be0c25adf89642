"""Folders of Hugging Face: looked at before its package opens them, and what it says afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradvac.errors import RunError
from gradvac.reading import read_json, regular


def check_files(folder: Path) -> None:
    """RunError names a file of a folder that is none, or not what its name says."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.iterdir()):
        if file.is_dir():
            continue
        regular(file)
        if file.suffix == ".json":
            read_json(file)
        elif file.suffix == ".safetensors":
            try:
                with safe_open(file, "np"):
                    pass
            except (OSError, SafetensorError) as e:
                raise RunError(f"{file}: not a readable safetensors file: {e}") from e


@contextmanager
def opening(folder: Path) -> Iterator[None]:
    """Look at the files of a folder; then RunError names it, whatever the package makes of them."""
    check_files(folder)
    try:
        yield
    except RunError:
        raise
    except Exception as e:  # it declares none of its errors
        said = first_line(e)[:300]
        raise RunError(f"{folder}: transformers cannot open it: {type(e).__name__}: {said}") from e


def first_line(error: Exception) -> str:
    """What the package says first; of a folder with code, that none is run."""
    if "trust_remote_code" in str(error):
        return "it needs code of its own, and no code of a model's folder is run"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_loaded(said: Any, folder: Path, head: str = "") -> None:
    """RunError for parameters that a folder lacks: the package makes them random numbers.

    ``said`` is the package's ``output_loading_info``; ``head`` begins the names of parameters that
    are meant to be new, of a model whose own head may be left over.
    """
    missing = [key for key in said["missing_keys"] if not head or not key.startswith(head)]
    shapes, foreign = list(said["mismatched_keys"]), [] if head else list(said["unexpected_keys"])
    if missing or shapes or foreign:
        raise RunError(
            f"{folder}: parameters of another model than its config.json says; missing: "
            f"{sorted(missing)[:3]}, not of this model: {sorted(foreign)[:3]}, shapes: {shapes[:3]}"
        )
