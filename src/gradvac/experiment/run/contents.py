"""The contents of the files of a run, checked when read; other keys are allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, PositiveInt
from typing_extensions import TypedDict

from gradvac.errors import RunError
from gradvac.experiment.run.files import METRICS, SCORES
from gradvac.reading import read_json, read_lines

_OPEN = ConfigDict(extra="allow")
Numbers = dict[str, float]


class DirectionScore(TypedDict, total=False):
    """The scores of a direction, or of a language of tagging."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    bleu: float
    chrf: float
    f1: float
    accuracy: float
    off_target: float
    off_target_of_references: float
    sentences: int
    level: str | None
    family: str
    bleu_signature: str
    zero_shot: bool


class Scores(TypedDict):
    """``scores.json``."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    directions: dict[str, DirectionScore]
    signatures: NotRequired[dict[str, str]]
    bleu_tokenize: NotRequired[str | None]
    labels: NotRequired[list[str]]


class Best(TypedDict):
    """The best validation of a run."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    value: float
    step: int


class Done(TypedDict):
    """``done.json``."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    step: int
    best: Best
    metric: str


class Dropped(TypedDict):
    """The number of rows dropped for a reason, and where the first ones are."""

    count: int
    first: list[str]


class CorpusAccount(TypedDict):
    """The rows of a corpus that were kept and dropped."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    dropped: dict[str, Dropped]


class Accounts(TypedDict):
    """``data/account.json``."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    corpora: dict[str, CorpusAccount]


class Translation(TypedDict):
    """A line of ``translations.jsonl``."""

    direction: str
    source: str
    reference: str
    hypothesis: str


class TaggedSentence(TypedDict):
    """A line of the test set of a run of tagging."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    task: str
    words: list[str]
    tags: list[str]


class TaggedOutput(TaggedSentence):
    """A line of ``tags.jsonl``."""

    predicted: list[str]


class Speed(TypedDict):
    """A line of ``speed.jsonl``."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    seconds: float
    cpu_seconds: NotRequired[float]
    began: NotRequired[int]
    device: NotRequired[str]
    processes: NotRequired[int]


class Curved(TypedDict):
    """A line of ``curvature.jsonl``."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    step: int
    group: str
    value: float


class Shape(TypedDict):
    """The keys of ``model.json`` that are read without building the model."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    vocabulary_size: PositiveInt


class Manifest(TypedDict):
    """``manifest.json`` of `gradvac comet`."""

    model: str
    files: list[ScoredFile]


class ScoredFile(TypedDict):
    """The translations of a run into one direction, in a file for COMET."""

    file: str
    run: str
    direction: str


class CometLine(TypedDict):
    """The COMET output for one translation."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    mt: str
    COMET: float


class Sweep(TypedDict):
    """``sweep.json``."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    variants: list[str]
    baseline: str | None
    front: NotRequired[list[str] | None]


class Searched(TypedDict):
    """``tune.json``: the settings of a hyper-parameter search."""

    space: list[dict[str, Any]]
    recipe: dict[str, Any]


class _Metrics(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    kind: str
    step: int
    nll: NotRequired[float]
    tokens: NotRequired[int]
    task_nll: NotRequired[Numbers]
    task_tokens: NotRequired[dict[str, int]]
    task_weights: NotRequired[Numbers]
    task_share: NotRequired[Numbers]
    skipped: NotRequired[dict[str, int]]
    method: NotRequired[dict[str, float | Numbers]]


def scores_of(folder: Path) -> dict[str, Any] | None:
    """The scores that ``gradvac evaluate`` wrote, or None; RunError when damaged."""
    file = folder / SCORES
    return dict(read_json(file, Scores)) if file.exists() else None


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, checked by kind; RunError names an invalid line.

    Empty without the file. A run in progress may be writing the last line.
    """
    file = folder / METRICS
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(read_lines(file, _Metrics, True) if file.exists() else (), 1):
        found: dict[str, Any] = dict(line)
        wanted = {"train": ("nll", "tokens"), "valid": ("nll",), "average": ("nll",)}
        bad = [key for key in wanted.get(line["kind"], ()) if key not in found]
        bad += [k for k, v in found.items() if "/" in k and not isinstance(v, int | float)]
        if bad:
            raise RunError(f"{file}:{number}: a line of kind {line['kind']!r} without {bad[0]}")
        lines.append(found)
    return lines
