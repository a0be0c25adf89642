"""Measuring gradients at the saved checkpoints of a run of any kind.

A measurement is a folder, by default ``measured`` in the run's ``geometry``: ``frames.jsonl`` and
``gram.bin`` as in the record of a run, ``measured.json`` with the settings, and optionally
``curvature.jsonl``. Existing measurements are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from gradvac.data.encoded import EncodedTask, Sentences, Side
from gradvac.engine.ranks.group import Ranks
from gradvac.errors import RunError
from gradvac.experiment.run.checkpoint import load_tensors, saved_models
from gradvac.experiment.run.contents import Curved
from gradvac.experiment.run.folder import TaskInfo, fill
from gradvac.experiment.run.lock import alone
from gradvac.experiment.run.tensor_file import digest_of
from gradvac.experiment.training.metrics import append, truncate
from gradvac.geometry.curvature import curvature
from gradvac.geometry.kinds import group_of
from gradvac.geometry.measure import Losses, blocks, measure
from gradvac.geometry.record import GramRecord
from gradvac.reading import read_json, read_lines
from gradvac.writing import write_json

Shares = Sequence[tuple[EncodedTask, float]]
"""Sentences of tasks, and the factor of the mean loss of each."""
TOTAL = "sum"
"""Name of the sum of the losses of all resource levels."""


@dataclass(frozen=True)
class Measurement:
    """The settings of a measurement, in ``measured.json``.

    ``parameters`` maps names to shapes; ``scripts`` languages to scripts; ``curvature`` is the
    number of sentences per direction for the curvature, 0 if it was not measured.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    tasks: list[str]
    granularity: str
    strings: int
    origin: str
    multiway: bool
    fingerprint: str
    label_smoothing: float
    parameters: dict[str, list[int]]
    scripts: dict[str, str]
    curvature: int = 0

    @classmethod
    def read(cls, folder: Path) -> Measurement | None:
        """The measurement in the folder, or None; RunError if it cannot be read."""
        file = folder / "measured.json"
        if not file.exists():
            return None
        return read_json(file, cls)


@dataclass(frozen=True)
class AlignedSet:
    """Encoded sentences of every direction of a run.

    Attributes:
        tasks: the sentence pairs of each direction.
        origin: the source of the sentences, in words.
        multiway: whether every direction has the same sentences.
        fingerprint: a hash of all sentences.
        scripts: by language, the script of most of its letters, such as LATIN.
    """

    tasks: dict[str, EncodedTask]
    origin: str
    multiway: bool
    fingerprint: str
    scripts: dict[str, str]


class Origins:
    """Digests of the parameters of each measured step, in ``parameters.json``."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "parameters.json"
        self.known = read_json(self.file, dict[str, str]) if self.file.exists() else {}

    def check(self, step: int, digest: str) -> None:
        """RunError if a step was measured with other parameters than these."""
        if self.known.get(str(step), digest) != digest:
            raise RunError(
                f"{self.file.parent}: step {step} was measured on other parameters: the model has "
                "been saved over since; choose another folder with --out, or delete that one"
            )

    def note(self, step: int, digest: str) -> None:
        """Store the digest of a step, before it is measured."""
        self.known[str(step)] = digest
        write_json(self.file, self.known)


def measured_folder(run: Path) -> Path:
    """The default folder of the measurement of a run."""
    return run / "geometry" / "measured"


def steps_of(run: Path, every: int | None) -> list[int]:
    """Steps with saved parameters, those that are a multiple of ``every``; RunError if none."""
    steps = [step for step in saved_models(run) if not every or step % every == 0]
    if not steps:
        there = ", ".join(map(str, saved_models(run))) or "none yet"
        raise RunError(f"{run}: no checkpoint to measure; steps with one: {there}")
    return steps


def measure_text(
    run: Path,
    out: Path,
    steps: list[int],
    model: nn.Module,
    text: AlignedSet,
    infos: Mapping[str, TaskInfo],
    losses_of: Callable[[Shares], Losses],
    called: str,
    *,
    granularity: str,
    smoothing: float,
    curvature_strings: int,
    hold: int,
    console: Console,
    ranks: Ranks | None,
) -> Path:
    """Measure checkpoints of a run of any kind on ``text``; returns ``out``.

    ``model`` is filled with the parameters of each of ``steps``; ``losses_of`` gives the parts of
    the sum of the mean losses of tasks, each times its share; ``called`` is the word for tasks,
    such as directions. For the rest see `gradvac.experiment.translation.geometry.measure_run`.
    """
    wanted = _description(text, model, granularity, smoothing, curvature_strings)
    writes = ranks is None or not ranks.rank
    if writes:
        prepare_folder(out, wanted)
    losses = {task: losses_of([(own, 1.0)]) for task, own in text.tasks.items()}
    shares = _levels(text, infos, curvature_strings)
    levels = {level: losses_of(own) for level, own in shares.items()}
    console.print(
        f"{len(steps)} checkpoints, {len(losses)} {called}, {wanted.strings} sentences each "
        f"({text.origin}); {out}",
        markup=False,
        soft_wrap=True,
    )
    with alone(out, "measuring into this folder") if writes else nullcontext():
        if writes:
            truncate(out / "curvature.jsonl", 2**62)  # drops only an incomplete last line
        _measure_steps(run, out, steps, model, granularity, losses, levels, hold, console, ranks)
    return out


def _description(
    text: AlignedSet, model: nn.Module, granularity: str, smoothing: float, curvature: int
) -> Measurement:
    """The settings of a measurement; GradientError for an unknown granularity."""
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    group_of(shapes, granularity)
    return Measurement(
        tasks=list(text.tasks),
        granularity=granularity,
        strings=max(map(len, text.tasks.values())),
        origin=text.origin,
        multiway=text.multiway,
        fingerprint=text.fingerprint,
        label_smoothing=smoothing,
        parameters=shapes,
        scripts=text.scripts,
        curvature=curvature,
    )


def curvature_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``curvature.jsonl``: step, group, value, residual, products."""
    file = folder / "curvature.jsonl"
    if not file.exists():
        return []
    return [dict(line) for line in read_lines(file, Curved, growing=True)]


def prepare_folder(out: Path, wanted: Measurement) -> None:
    """Write the settings; RunError if the folder has a measurement with other settings."""
    there = Measurement.read(out)
    if there is not None:
        new, old = asdict(wanted), asdict(there)
        if not (new["curvature"] and old["curvature"]):  # one of the two has no curvature
            new["curvature"] = old["curvature"] = max(new["curvature"], old["curvature"])
        if differ := [key for key in old if old[key] != new[key] and key != "scripts"]:
            raise RunError(
                f"{out} holds a measurement with other {', '.join(differ)}; "
                "choose another folder with --out, or delete that one"
            )
        wanted = Measurement(**new)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "measured.json", asdict(wanted), indent=None)


def joined(parts: Sequence[Side]) -> Sentences:
    """The sentences of all parts, concatenated."""
    return Sentences.of([s[n].tolist() for s in parts for n in range(len(s))])


def _levels(
    text: AlignedSet, infos: Mapping[str, TaskInfo], count: int
) -> dict[str, list[tuple[EncodedTask, float]]]:
    """For each resource level the first ``count`` sentences of its directions, shares 1 / n.

    `TOTAL` has all directions, if there are several levels; empty for ``count`` 0.
    """
    members: dict[str, list[EncodedTask]] = {}
    for task, data in text.tasks.items() if count else ():
        few = EncodedTask(first_of(data.source, count), first_of(data.target, count))
        members.setdefault(infos[task].level, []).append(few)
    found = {level: [(d, 1 / len(own)) for d in own] for level, own in members.items()}
    if len(found) > 1:
        found[TOTAL] = [share for own in found.values() for share in own]
    return found


def first_of(side: Side, count: int) -> Sentences:
    """The first ``count`` sentences."""
    return Sentences.of([side[n].tolist() for n in range(min(count, len(side)))])


def _measure_steps(
    run: Path,
    out: Path,
    steps: list[int],
    model: nn.Module,
    granularity: str,
    losses: Mapping[str, Losses],
    levels: Mapping[str, Losses],
    hold: int,
    console: Console,
    ranks: Ranks | None,
) -> None:
    """Measure what is missing, one checkpoint after the other."""
    writes = ranks is None or not ranks.rank
    record = GramRecord(out)
    there = {
        "done": list(record.steps()) if writes else [],
        "curved": [[c["step"], c["group"]] for c in curvature_lines(out)] if writes else [],
    }
    if ranks:
        there = ranks.messages(there)[0]
    done = set(there["done"])
    curved = {(step, group) for step, group in there["curved"]}
    open_ = [s for s in steps if s not in done or any((s, g) not in curved for g in levels)]
    origins = Origins(out)
    for step in set(steps) - set(open_) if writes else ():
        if file := saved_models(run).get(step):
            origins.check(step, digest_of(file))
    passes = len(blocks(model, len(losses), hold))
    columns = TextColumn("step {task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        shown = bar.add_task("", total=len(open_) * (passes * len(losses) + len(levels)))
        tick = partial(bar.advance, shown)
        for step in open_:
            bar.update(shown, description=str(step))
            file = saved_models(run).get(step)
            if ranks and not all(m["found"] for m in ranks.messages({"found": bool(file)})):
                file = None
            if file is None:
                console.print(f"step {step}: gone; the run keeps newer ones")
                continue
            fill(model, load_tensors(file), file)
            if writes:
                digest = digest_of(file)
                if step in done:  # its curvature is not measured yet
                    origins.check(step, digest)
                origins.note(step, digest)
            if step not in done:
                told = {task: _telling(parts, tick) for task, parts in losses.items()}
                frame = measure(model, told, granularity, step, hold, ranks)
                if writes:
                    record.append(frame)
            missing = {group: levels[group] for group in levels if (step, group) not in curved}
            lines = _curvatures(model, missing, step, ranks)
            for group in missing if writes else ():
                append(out / "curvature.jsonl", lines[group])
            for _ in levels:
                tick()
            if not console.is_terminal:
                console.print(f"step {step} measured")


def _curvatures(
    model: nn.Module, levels: Mapping[str, Losses], step: int, ranks: Ranks | None
) -> dict[str, dict[str, Any]]:
    """Measure the curvature of each level; each rank does some, all get all results."""
    lines: dict[str, dict[str, Any]] = {}
    for group in list(levels)[ranks.rank :: ranks.size] if ranks else levels:
        found = curvature(model, {group: levels[group]})[group]
        lines[group] = {"step": step, "group": group, **asdict(found)}
    if ranks:
        ranks.meet()  # curvature takes long, and some ranks have no level
        lines = {g: v for m in ranks.messages(lines) for g, v in m.items()}
    return lines


def _telling(parts: Losses, tick: Callable[[], None]) -> Losses:
    """The same losses; ``tick`` is called after the last one."""

    def telling() -> Iterator[Tensor]:
        yield from parts()
        tick()

    return telling
