"""Take out of run folders what evidence/ keeps of them, small enough for a repository.

    python -m tools.evidence.collect geometry runs/geometry-small --out evidence/geometry-small.json
    python -m tools.evidence.collect partners runs/partners-small --out evidence/partners-small.json
    python -m tools.evidence.collect curvature runs/cats-small --out evidence/curvature-small.json
    python -m tools.evidence.collect edits runs/table1-from-en-small --out evidence/edits-small.json
    python -m tools.evidence.collect validation runs/rate-2e-3 runs/rate-4e-3 --out evidence/x.json
    python -m tools.evidence.collect curves runs/lab-cats-small --out evidence/lab-cats-small.json
    python -m tools.evidence.collect tagged runs/table3-ner-real --out evidence/table3-ner-real.json

Several sweeps become one file. Scores are kept by `gradvac compare SWEEP --out
evidence/NAME.json`. `make evidence` makes the page and its pictures of all these files.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradvac.experiment.compare.results import times
from gradvac.experiment.run.below import runs_of
from gradvac.experiment.run.contents import Translation
from gradvac.experiment.run.files import TRANSLATIONS
from gradvac.experiment.run.folder import any_recipe
from gradvac.experiment.training.measuring import curvature_lines, measured_folder
from gradvac.experiment.view.geometry import SIDES, Missing, Subject, subjects_of
from gradvac.experiment.view.numbers import HEADER, PARTS, PARTS_OF, findings, row
from gradvac.experiment.view.run_view import TaskView, load_runs
from gradvac.geometry.record import cosine
from gradvac.geometry.similarity import between
from gradvac.reading import read_lines

Tree = dict[str, Any]


def geometry(run: Path, measured: Path | None = None) -> Tree | None:
    """Mean cosines by side: of parts, layers and steps; matrices; tests. None if not measured.

    ``measured`` is the folder of a further measurement, below that of the run: without its time.
    """
    folder = run / measured if measured else measured_folder(run)
    if not (folder / "measured.json").exists():
        return None
    (subject,) = subjects_of(load_runs([run]), folder)
    assert subject.geometry is not None
    sides = {}
    for side, name in SIDES.items():
        try:
            tasks = subject.of_side(side)
        except Missing:
            continue
        sides[name] = _of_side(subject, side, tasks)
    tests = [dict(zip(HEADER, map(_plain, row(f)), strict=True)) for f in findings(subject)[0]]
    for test in tests:
        test["side"] = SIDES[test["side"]]
    found = {"about": subject.geometry.words, "sides": sides, "tests": tests}
    return found if measured else found | {"cpu_seconds": _cpu_seconds(run)}


def _of_side(subject: Subject, side: str, tasks: list[TaskView]) -> Tree:
    names = [task.name for task in tasks]
    matrices = {part: subject.mean_of(kind, part, tasks) for kind, part in PARTS_OF[side]}
    layers = subject.at("all_layer").mean("all_layer").ordered(names)
    steps = []
    for frame in subject.at("all_layer").frames("all_layer"):
        at = [frame.tasks.index(name) for name in names]
        values = cosine(frame.gram)[:, at][:, :, at]
        mean = [_off_diagonal(matrix) for matrix in values]
        steps.append({"step": frame.step, "layers": dict(zip(frame.groups, mean, strict=True))})
    first, last = (
        {p: _plain(v) for p, v in _pairs(subject, names, end).items()} for end in (0, -1)
    )
    return {
        "tasks": names,
        "families": [task.family for task in tasks],
        "pairs": [task.pairs for task in tasks],
        "parts": {part: _off_diagonal(matrix) for part, matrix in matrices.items()},
        "layers": dict(zip(layers.groups, layers.by_group().tolist(), strict=True)),
        "steps": steps,
        "first": first,
        "last": last,
        "matrices": {part: np.round(matrix, 4).tolist() for part, matrix in matrices.items()},
    }


def _pairs(subject: Subject, names: list[str], end: int) -> dict[str, float]:
    """Cosines of a close and a distant pair by layer, at the first or last checkpoint."""
    frame = list(subject.at("all_layer").frames("all_layer"))[end]
    values = cosine(frame.gram)
    languages = {name.replace("en-", "").replace("-en", ""): name for name in names}
    found = {}
    for other in ("es", "hi"):
        if {"fr", other} <= languages.keys():
            i, j = (frame.tasks.index(languages[code]) for code in ("fr", other))
            for n, group in enumerate(frame.groups):
                found[f"fr {other} {group}"] = float(values[n, i, j])
    return found


def _off_diagonal(matrix: np.ndarray) -> float:
    return float(np.nanmean(matrix[~np.eye(len(matrix), dtype=bool)]))


def partners(run: Path) -> Tree:
    """The mean cosine of the two directions while they trained; scores and tokens of en-fr."""
    (subject,) = subjects_of(load_runs([run]))
    tasks = subject.tasks
    similar = {part: subject.mean_of(kind, part, tasks)[0, 1] for kind, part in PARTS}
    scores = subject.run.scores or {}
    own = scores["directions"]["en-fr"]
    seen = [line["task_tokens"] for line in subject.run.train]
    best = min(subject.run.valid, key=lambda line: line["nll"])
    return {
        "partner": next(t.partner for t in tasks if t.name != "en-fr"),
        "similarity": {part: float(value) for part, value in similar.items()},
        "tokens": sum(tokens["en-fr"] for tokens in seen),
        "scores": {"bleu": own["bleu"], "chrf": own["chrf"], "nll": best["nll/en-fr"]},
        "cpu_seconds": _cpu_seconds(run),
    }


def curvature(run: Path) -> Tree | None:
    """Top eigenvalues by checkpoint, the cosine of high- and low-resource gradients, CATS' pull.

    The pull on a task is what a bound on curvature takes its weight away by: the Gram matrix of
    mean losses times the shares of the text, over the curvature at these shares.
    """
    folder = measured_folder(run)
    lines = curvature_lines(folder)
    if not lines:
        return None
    (subject,) = subjects_of(load_runs([run]))
    levels = {
        level: [t.name for t in subject.tasks if t.level == level] for level in ("high", "low")
    }
    seen = sum((Counter(line["task_tokens"]) for line in subject.run.train), Counter())
    cosines, pulls = {}, {}
    for frame in subject.at("whole_model").frames("whole_model"):
        gram = between(frame.gram[0], frame.tasks, list(levels.values()))
        if gram is not None:
            cosines[frame.step] = float(cosine(gram[None])[0][0, 1])
            share = np.array([seen[task] for task in frame.tasks]) / seen.total()
            pull = frame.gram[0] @ share / (share @ frame.gram[0] @ share)
            pulls[frame.step] = {
                level: _plain(float(pull[[frame.tasks.index(task) for task in own]].mean()))
                for level, own in levels.items()
            }
    values = [{k: line[k] for k in ("step", "group", "value")} for line in lines]
    return {"eigenvalues": values, "high_low_cosine": cosines, "pull": pulls}


def edits(run: Path) -> Tree | None:
    """Shares of ordered pairs that the method edited and PCGrad would have, in ten stretches."""
    (subject,) = subjects_of(load_runs([run]))
    counts = subject.run.edits
    if counts is None or subject.run.recipe.method.name != "gradvac":
        return None
    steps = np.array_split(np.arange(len(counts.steps)), 10)
    share = lambda kind, at: float(kind[at].sum() / counts.comparisons[at].sum())
    return {
        "steps": [counts.steps[at[-1]] for at in steps],
        "gradvac": [share(counts.edits, at) for at in steps],
        "pcgrad": [share(counts.pcgrad, at) for at in steps],
    }


def validation(run: Path) -> Tree:
    """The best of what a run was validated by, and its step; its learning rate and cost."""
    (view,) = load_runs([run])
    done = json.loads((run / "done.json").read_text(encoding="utf-8"))
    return {
        "metric": done["metric"],
        "best": _plain(done["best"]["value"]),
        "step": done["best"]["step"],
        "learning_rate": view.recipe.training.learning_rate,
        "tokens": sum(line["tokens"] for line in view.train),
        "cpu_seconds": _cpu_seconds(run),
    }


def curves(run: Path) -> Tree | None:
    """NLL of validation text by step; exact matches and scores of the test set; weights; the cost.

    An exact match is a translation equal to its reference, character by character. A weight is a
    task's mean over the steps; joint training has none. CATS has its curvature and multiplier too,
    means of the steps between two lines of the log. None if the run is not scored yet.
    """
    (view,) = load_runs([run])
    if view.scores is None:
        return None
    own = [key for key in view.valid[0] if key == "nll" or key.startswith("nll/")]
    same: dict[str, list[bool]] = {}
    for line in read_lines(run / TRANSLATIONS, Translation):
        same.setdefault(line["direction"], []).append(line["hypothesis"] == line["reference"])
    scored = view.scores["directions"]
    weights: dict[str, list[float]] = {}
    for line in view.train:
        for name, weight in line.get("task_weights", {}).items():
            weights.setdefault(name, []).append(weight)
    return {
        "learning_rate": view.recipe.training.learning_rate,
        "steps": [line["step"] for line in view.valid],
        "nll": {
            key.partition("/")[2] or "avg": [_plain(line[key]) for line in view.valid]
            for key in own
        },
        "levels": {name: info.level for name, info in view.tasks.items()},
        "exact": {name: _plain(sum(found) / len(found)) for name, found in same.items()},
        "bleu": {name: _plain(tree["bleu"]) for name, tree in scored.items()},
        "chrf": {name: _plain(tree["chrf"]) for name, tree in scored.items()},
        "weights": {name: _plain(sum(found) / len(found)) for name, found in weights.items()},
        "constraint": {
            name: [_plain(line["method"][name]) for line in view.train]
            for name in ("curvature", "multiplier")
            if name in view.train[0].get("method", {})
        },
        "tokens": sum(line["tokens"] for line in view.train),
        "cpu_seconds": _cpu_seconds(run),
    }


def tagged(run: Path) -> Tree | None:
    """Scores of the test set and NLL of validation text by language; None if not scored yet."""
    (view,) = load_runs([run])
    if view.scores is None:
        return None
    done = json.loads((run / "done.json").read_text(encoding="utf-8"))
    best = next(line for line in view.valid if line["step"] == done["best"]["step"])
    scored = view.scores["directions"]
    return {
        "learning_rate": view.recipe.training.learning_rate,
        "f1": {name: _plain(tree["f1"]) for name, tree in scored.items()},
        "accuracy": {name: _plain(tree["accuracy"]) for name, tree in scored.items()},
        "nll": {name: _plain(best[f"nll/{name}"]) for name in scored},
        "tokens": sum(line["tokens"] for line in view.train),
        "cpu_seconds": _cpu_seconds(run),
    }


def _cpu_seconds(run: Path) -> float | None:
    """CPU time of its training."""
    return _plain(times(run / "speed.jsonl")[1])


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 5)
    return value


STUDIES: dict[str, Callable[[Path], Tree | None]] = {
    "geometry": geometry,
    "partners": partners,
    "curvature": curvature,
    "edits": edits,
    "validation": validation,
    "curves": curves,
    "tagged": tagged,
}


def main() -> None:
    """Parse the command line, collect, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("sweeps", type=Path, nargs="+", help="folders of gradvac sweep")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--measured", type=Path, help="where below a run; default: geometry/measured"
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the runs that --out has and that are not found"
    )
    args = parser.parse_args()
    if args.measured and args.study != "geometry":
        parser.error("--measured is for geometry")
    runs: list[Tree] = []
    recipes: dict[str, Any] = {}
    old = json.loads(args.out.read_text("utf-8")) if args.add and args.out.exists() else {}
    if old and old["study"] != args.study:
        parser.error(f"--add: {args.out} is of the study {old['study']}")
    take = partial(geometry, measured=args.measured) if args.measured else STUDIES[args.study]
    pairs = [pair for sweep in args.sweeps for pair in runs_of(sweep)]
    for variant, run in [pair for pair in pairs if (pair[1] / "done.json").exists()]:
        found = take(run)
        if found is not None:
            recipe = any_recipe(run)
            runs.append({"variant": variant, "seed": recipe.seed, **found})
            recipes.setdefault(variant, _short(recipe))
            print(f"{run}: taken", flush=True)
    here = {_key(run, args.study) for run in runs}
    kept = [run for run in old.get("runs", []) if _key(run, args.study) not in here]
    if kept:
        print(f"{args.out}: {len(kept)} runs kept")
    order = list(dict.fromkeys(run["variant"] for run in [*kept, *runs]))
    tree = {
        "study": args.study,
        "runs": sorted([*kept, *runs], key=lambda run: (order.index(run["variant"]), run["seed"])),
        "recipes": old.get("recipes", {}) | recipes,
    }
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
    args.out.write_text(text.replace('{"variant"', '\n{"variant"') + "\n", encoding="utf-8")


def _key(run: Tree, study: str) -> tuple[str, int, float]:
    """What a later run replaces: at another learning rate too where rows have one rate each."""
    rate = 0.0 if study == "tagged" else run.get("learning_rate", 0.0)
    return run["variant"], run["seed"], rate


def _short(recipe: Any) -> Tree:
    """A recipe without the places of its texts."""
    tree = recipe.model_dump(
        mode="json",
        exclude={
            "data": {"train", "valid", "test", "corpus", "languages", "folder"},
            "vocabulary": {"path"},
            "model": {"encoder"},
        },
    )
    return {key: tree[key] for key in ("seed", "data", "model", "batches", "training", "method")}


if __name__ == "__main__":
    main()
