"""A corpus folder: training pairs by language, multi-way evaluation text, manifest and report.

train/en-XX.tsv   valid.tsv   test.tsv   manifest.json   report.json   corpus.yaml
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict
from typing_extensions import TypedDict

from gradvac.errors import CorpusError, RunError
from gradvac.reading import read_json
from gradvac.writing import replacing

MANIFEST = "manifest.json"


class _Manifest(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    pairs: dict[str, dict[str, int]]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a corpus folder.

    Raises:
        CorpusError: there is no manifest, or it cannot be read.
    """
    file = folder / MANIFEST
    if not file.exists():
        raise CorpusError(f"{file}: no such file: {folder} is not a corpus folder")
    try:
        return dict(read_json(file, _Manifest))
    except RunError as error:
        raise CorpusError(f"{error}; not the manifest of a corpus") from error


def finished(out: Path, plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of `out` if it was built by this plan, None if there is no `out` yet.

    Raises:
        CorpusError: `out` has another corpus or other content.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    manifest = read_manifest(out)
    differ = [key for key, value in plan.items() if manifest.get(key) != value]
    if differ:
        told = ", ".join(f"{key} {manifest.get(key)!r} instead of {plan[key]!r}" for key in differ)
        raise CorpusError(f"{out}: holds another corpus: {told}; choose another folder")
    return manifest


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A new folder that becomes `out` when the block ends without an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as new:
        new.mkdir()
        yield new


def write_folder(
    folder: Path,
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
    languages: Sequence[str],
) -> None:
    """Write manifest, report and the recipe fragment, with paths relative to its own folder."""
    for file, tree in (("report.json", report), (MANIFEST, manifest)):
        text = json.dumps(tree, ensure_ascii=False, indent=1)
        (folder / file).write_text(text + "\n", encoding="utf-8")
    train = [
        f"train/{c if '-' in c else f'en-{c}'}.tsv"
        for c in languages
        if manifest["pairs"]["train"].get(c)
    ]
    data = {
        "train": [{"path": file} for file in train],
        **{
            part: [{"path": f"{part}.tsv"}]
            for part in ("valid", "test")
            if (folder / f"{part}.tsv").exists()
        },
    }
    text = "# The data of a recipe in this folder; elsewhere, data: {corpus: FOLDER}.\n"
    text += yaml.safe_dump({"data": data}, sort_keys=False)
    (folder / "corpus.yaml").write_text(text, encoding="utf-8")
