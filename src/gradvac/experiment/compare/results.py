"""What `gradvac compare` reads: scores, translations, validation NLL and costs of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from gradvac.errors import RunError
from gradvac.experiment.recipe.paths import RECIPE
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.recipe.variants import row_of
from gradvac.experiment.run.below import DESCRIPTION, all_runs, runs_of
from gradvac.experiment.run.contents import (
    Done,
    Speed,
    Sweep,
    TaggedOutput,
    Translation,
    metrics_of,
    scores_of,
)
from gradvac.experiment.run.files import SCORES, scored_folder
from gradvac.experiment.run.folder import any_recipe
from gradvac.experiment.run.tensor_file import tensor_shapes
from gradvac.reading import read_json, read_lines
from gradvac.text.languages import Direction
from gradvac.translation.tokenizers import tokenizer

Metric = Literal["bleu", "chrf", "comet", "f1", "accuracy", "nll", "off_target"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Tagged = tuple[list[list[str]], list[list[str]]]
"""Tags of sentences: gold and predicted."""
LOWER_IS_BETTER: tuple[Metric, ...] = ("nll", "off_target")


@dataclass
class Result:
    """The results of one seed of a row: of one run, or of several that form a row together.

    ``scores[metric][direction]``; ``outputs[direction]`` is (hypotheses, references); ``tokenize``
    is BLEU's tokenizer, ``tokenizers`` the same as written in signatures. ``folders`` are its runs,
    ``recipe`` is that of the first; ``identifier_errors`` the off-target rates of references.
    ``cpu_seconds`` is NaN if training did not run on the CPU in one process, or did not log it. For
    sequence labelling ``tags[language]`` is (gold, predicted) instead, and ``labels`` are all
    labels of the run.
    """

    folders: list[Path]
    recipe: BaseRecipe
    scores: dict[Metric, dict[str, float]]
    outputs: dict[str, tuple[list[str], list[str]]]
    levels: dict[str, str]
    tokens: int
    seconds: float
    cpu_seconds: float
    parameters: int
    signatures: dict[str, str]
    tokenize: dict[str, str]
    tokenizers: dict[str, str]
    zero_shot: frozenset[str]
    identifier_errors: dict[str, float]
    tags: dict[str, Tagged] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Add another part of the same row."""
        for metric in METRICS:
            self.scores[metric] |= other.scores[metric]
        self.folders += other.folders
        self.outputs |= other.outputs
        self.tags |= other.tags
        self.levels |= other.levels
        self.tokenize |= other.tokenize
        self.tokenizers |= other.tokenizers
        self.zero_shot |= other.zero_shot
        self.identifier_errors |= other.identifier_errors
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds
        self.parameters += other.parameters


@dataclass
class Collected:
    """Results by row and seed, with information from the folders.

    ``several`` are rows made of several models, ``baseline`` and ``front`` the rows that the first
    sweep names, ``missing`` the runs without scores.
    """

    results: dict[str, dict[int, Result]]
    several: set[str]
    baseline: str | None
    front: list[str]
    missing: list[Path]


def collect(
    folders: Sequence[Path],
    comet: Mapping[Path, Mapping[str, float]] | None = None,
    test_set: str = "",
) -> Collected:
    """Read runs, or the runs of sweep folders; ``comet`` has COMET scores by run and direction.

    ``test_set`` is the name of the test set of the scores, "" for the first of each run.

    Raises RunError for a broken run, and for two runs of the same row, seed and direction.
    """
    runs: list[tuple[str, Path]] = []
    several: set[str] = set()
    baseline, front = None, []
    for folder in folders:
        description = folder / DESCRIPTION
        if description.exists():
            tree = read_json(description, Sweep)
            baseline = baseline or tree["baseline"]
            front = front or tree.get("front") or []
            for variant, run in runs_of(folder):
                several |= {row_of(variant)} - {variant}
                runs.append((row_of(variant), run))
        else:
            runs.append((row_of(any_recipe(folder).variant or folder.name), folder))
    results: dict[str, dict[int, Result]] = {}
    missing = []
    for name, run in runs:
        recipe = any_recipe(run) if (run / RECIPE).exists() else None
        scored = scored_folder(run, test_set, recipe.test_sets if recipe else ())
        if recipe is None or not (scored / SCORES).exists():
            missing.append(run)
            continue
        seed = recipe.seed
        result = read_run(run, scored)
        result.scores["comet"] = dict((comet or {}).get(run.resolve(), {}))
        before = results.setdefault(name, {}).setdefault(seed, result)
        if before is not result:
            if twice := {*before.outputs, *before.tags} & {*result.outputs, *result.tags}:
                raise RunError(
                    f"{name}, seed {seed}: two runs of {min(twice)}, in {before.folders[0]} and "
                    f"{run}; a row is one method, give them to compare apart"
                )
            before.add(result)
    return Collected(results, several, baseline, front, missing)


def test_sets(folders: Sequence[Path]) -> list[str]:
    """The names of all test sets of runs, or of the runs of sweep folders."""
    runs = all_runs(folders)
    return list(dict.fromkeys(test for run in runs for test in any_recipe(run).test_sets))


def read_run(run: Path, scored: Path | None = None) -> Result:
    """Read scores, translations, validation NLL and costs of one run; RunError if one is broken.

    ``scored`` is the folder of the scores and translations, by default that of the run.
    """
    scored = scored or run
    tree: Any = scores_of(scored)
    if tree is None:
        raise RunError(f"{scored}: not a finished and scored run: no scores.json")
    if not (run / "done.json").exists():
        raise RunError(f"{run}: not a finished and scored run: no done.json")
    metrics, each = metrics_of(run), partial(_each, tree)
    zero_shot = frozenset(each("zero_shot"))
    validated = [direction for direction in tree["directions"] if direction not in zero_shot]
    scores: dict[Metric, dict[str, float]] = {
        "bleu": each("bleu"),
        "chrf": each("chrf"),
        "comet": {},
        "f1": each("f1"),
        "accuracy": each("accuracy"),
        "nll": _best_nll(run, metrics, validated),
        "off_target": each("off_target"),
    }
    outputs, tags = _outputs(scored, tagging="labels" in tree)
    tokenizers = {  # earlier versions knew fewer languages
        k: signature.partition("|tok:")[2].partition("|")[0]
        for k, signature in each("bleu_signature").items()
    }
    seconds, cpu_seconds = times(run / "speed.jsonl")
    return Result(
        folders=[run],
        recipe=any_recipe(run),
        scores=scores,
        outputs=outputs,
        levels={k: v["level"] for k, v in tree["directions"].items() if v.get("level")},
        tokens=sum(line["tokens"] for line in metrics if line["kind"] == "train"),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        parameters=count_parameters(run / "best" / "model.safetensors"),
        signatures=tree.get("signatures", {}),
        tokenize={
            k: tree.get("bleu_tokenize")
            or tokenizers.get(k)
            or tokenizer(Direction.parse(k).target)
            for k in outputs
        },
        tokenizers=tokenizers,
        zero_shot=zero_shot,
        identifier_errors=each("off_target_of_references"),
        tags=tags,
        labels=tree.get("labels", []),
    )


def _outputs(
    run: Path, tagging: bool
) -> tuple[dict[str, tuple[list[str], list[str]]], dict[str, Tagged]]:
    """Read translations with references by direction, and gold tags with predicted by task."""
    outputs: dict[str, tuple[list[str], list[str]]] = {}
    tags: dict[str, Tagged] = {}
    for line in read_lines(run / "tags.jsonl", TaggedOutput) if tagging else ():
        gold, predicted = tags.setdefault(line["task"], ([], []))
        gold.append(line["tags"])
        predicted.append(line["predicted"])
    for line in () if tagging else read_lines(run / "translations.jsonl", Translation):
        hypotheses, references = outputs.setdefault(line["direction"], ([], []))
        hypotheses.append(line["hypothesis"])
        references.append(line["reference"])
    return outputs, tags


def _best_nll(
    run: Path, metrics: Sequence[dict[str, Any]], tasks: Sequence[str]
) -> dict[str, float]:
    """Return the validation NLL of tasks at the best step; none if nothing was validated."""
    done = read_json(run / "done.json", Done)
    best = [
        line
        for line in metrics
        if line["kind"] in ("valid", "average") and line["step"] == done["best"]["step"]
    ]
    if best and not any(done["metric"] in line for line in best):
        raise RunError(f"{run / 'done.json'}: metric: {done['metric']!r} was never measured")
    best = [line for line in best if line.get(done["metric"]) == done["best"]["value"]]
    try:
        return {task: best[0][f"nll/{task}"] for task in tasks if best}
    except KeyError as e:
        raise RunError(f"{run / 'metrics.jsonl'}: a validation line without {e}") from e


def _each(scores: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v[key] for k, v in scores["directions"].items() if key in v}


def count_parameters(file: Path) -> int:
    """Count the numbers in a file of tensors without reading them."""
    return sum(map(math.prod, tensor_shapes(file).values()))


def times(file: Path) -> tuple[float, float]:
    """Seconds of training, and CPU seconds or NaN.

    The clocks of ``speed.jsonl`` restart when a run is resumed. A resume shows as a new value of
    ``began`` or, in older runs, as a clock that decreases.
    """
    lines = list(read_lines(file, Speed, growing=True)) if file.exists() else []
    last = [
        line
        for line, after in zip(lines, [*lines, None][1:], strict=True)
        if after is None
        or after.get("began") != line.get("began")
        or after["seconds"] < line["seconds"]
    ]
    counted = lambda line: line.get("device") == "cpu" and line.get("processes") == 1
    cpu = sum(line.get("cpu_seconds", math.nan) if counted(line) else math.nan for line in last)
    return sum(line["seconds"] for line in last), cpu if last else math.nan
