"""Export of models for other programs, and translation with CTranslate2."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradvac.errors import RunError
from gradvac.experiment.run.sums import check_sums, write_sums
from gradvac.experiment.translation.export_readme import readme
from gradvac.experiment.translation.model_folder import (
    FoundModel,
    export_model,
    find_model,
    trained_directions,
)
from gradvac.reading import regular
from gradvac.translation.to_ctranslate2 import ExportedModel, write_ctranslate2
from gradvac.translation.to_huggingface import write_huggingface
from gradvac.writing import replacing, write_text

logger = logging.getLogger(__name__)
FORMATS = ("gradvac", "huggingface", "ctranslate2")
README = "README.md"
CACHE = "ctranslate2"  # in a run's folder: the export cached by `gradvac translate`


def export_run(
    run: Path, out: Path, to: str, checkpoint: str = "best", quantization: str | None = None
) -> int:
    """Write the model of a run or model folder in the format ``to``; return its size in bytes.

    ``out`` is written atomically and replaces an earlier export. Raises RunError for a model that
    the format cannot represent exactly, and if ``out`` contains anything else.
    """
    if to not in FORMATS:
        raise RunError(f"--to {to}; allowed: {', '.join(FORMATS)}")
    if quantization and to != "ctranslate2":
        raise RunError(f"--quantization {quantization}: only --to ctranslate2 has it")
    if Path.cwd().is_relative_to(out.resolve()):
        raise RunError(f"{out}: is the working directory, or holds it; name another folder")
    with _in_place_of(out) as new:
        if to == "gradvac":
            export_model(run, new, checkpoint)
        else:
            found = find_model(run, checkpoint)
            parts = found.config, found.tensors(), found.vocabulary
            if to == "huggingface":
                write_huggingface(*parts, new)
            else:
                write_ctranslate2(*parts, new, quantization or "float32")
        vocabulary, name = find_model(run, checkpoint).vocabulary, run.resolve().name
        text = readme(name, to, trained_directions(run), vocabulary)
        write_text(new / README, text)
    return sum(file.stat().st_size for file in out.iterdir())


@contextmanager
def _in_place_of(out: Path) -> Iterator[Path]:
    """Yield a new folder that replaces ``out`` at the end."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; name a folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as new:
        new.mkdir()
        yield new
        if out.exists():
            foreign = sorted({f.name for f in out.iterdir()} - {f.name for f in new.iterdir()})
            if foreign:
                raise RunError(
                    f"{out}: holds {', '.join(foreign[:3])}, which no such export has; "
                    "name another folder"
                )
            shutil.rmtree(out)


def open_with_ctranslate2(folder: Path | None, found: FoundModel) -> ExportedModel:
    """Open a model with CTranslate2, from the export in its ``folder``; export it if missing.

    The name of the export depends on the parameters: another checkpoint, or further training, makes
    a new export and deletes the old one. The export is not kept if ``folder`` is None or not
    writable.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as kept_nowhere:
            _write(found, Path(kept_nowhere))
            return ExportedModel(Path(kept_nowhere))
    cache = folder / CACHE / _fingerprint(found)
    if cache.exists() and (damage := _damage(cache)):
        logger.warning("%s; the export is made again", damage)
        shutil.rmtree(cache, ignore_errors=True)
    if not cache.exists():
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with replacing(cache) as new:
                new.mkdir()
                _write(found, new)
                write_sums(new, sorted(file.name for file in new.iterdir()))
        except OSError:
            if not cache.exists():  # else another process was faster
                return open_with_ctranslate2(None, found)
        for other in cache.parent.glob("[!.]*"):
            if other != cache:
                shutil.rmtree(other, ignore_errors=True)
    return ExportedModel(cache)


def _damage(cache: Path) -> str:
    """The damage of a cached export, or ""."""
    try:
        check_sums(cache, ["model.bin", "config.json"], others=True)
    except (RunError, OSError) as e:  # also without sums, from an earlier version
        return str(e) if isinstance(e, RunError) else f"{cache}: no sums to compare it with"
    return ""


def _write(found: FoundModel, folder: Path) -> None:
    write_ctranslate2(found.config, found.tensors(), found.vocabulary, folder)


def _fingerprint(found: FoundModel) -> str:
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(found.config)).encode())
    digest.update(found.vocabulary.model)
    with regular(found.parameters).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()[:16]
