"""Run folders with invented numbers, for the report to show."""

from pathlib import Path
from typing import Any

import numpy as np

from gradvac.geometry.record import Frame, GramRecord
from gradvac.text.languages import Direction, family
from tests.build import write_json, write_lines

PAIRS = {"fr": 40_000, "de": 38_000, "es": 30_000, "pl": 12_000, "uk": 11_000, "fi": 9_000}
PAIRS |= {"hi": 4_000, "tr": 8_000, "sw": 900, "ar": 2_500, "id": 5_000}
GROUPS = ("embedding", "encoder.layers.0", "decoder.layers.0")
ENGLISH = "Sentence number {n}: save the {} file before closing the window"


def info(task: str) -> dict[str, Any]:
    d = Direction.parse(task)
    partner = d.target if d.source == "en" else d.source
    pairs = PAIRS.get(partner, 1000)
    level = "high" if pairs >= 20_000 else "medium" if pairs >= 5_000 else "low"
    return {"pairs": pairs, "level": level, "family": family(partner)}


def scores(tasks: dict[str, dict], boost: float) -> dict[str, Any]:
    """What a report reads of ``scores.json``; chrF++ grows with the corpus and ``boost``."""
    directions = {}
    for name, known in tasks.items():
        chrf = 6 * np.log10(known["pairs"]) + boost
        directions[name] = {"bleu": chrf / 2, "chrf": chrf, "sentences": 300}
    signatures = {"BLEU": "BLEU|nrefs:1|tok:13a", "chrF++": "chrF2++|nrefs:1|nw:2"}
    return {"directions": directions, "signatures": signatures}


def make_run(
    folder: Path,
    method: str = "gradvac",
    tasks: tuple[str, ...] = ("fr-en", "sw-en"),
    *,
    steps: int = 400,
    boost: float = 8.0,
    suffix: str = "",
) -> Path:
    """A finished, scored run; ``suffix`` ends every sentence."""
    folder.mkdir(parents=True)
    infos = {task: info(task) for task in tasks}
    recipe = {
        "name": "demo",
        "data": {"train": [{"path": "train.tsv"}], "directions": list(tasks)},
        "training": {"steps": steps, "start_from": "shipped:start"},
        "method": {"name": method},
    }
    write_json(folder / "recipe.yaml", recipe)  # JSON is YAML
    write_json(folder / "tasks.json", infos)
    write_json(folder / "scores.json", {"checkpoint": "best", **scores(infos, boost)})
    write_metrics(folder, infos, steps, boost)
    write_translations(folder, tasks, method, suffix)
    if method != "joint":
        write_record(folder, tasks, steps)
    return folder


def write_metrics(folder: Path, tasks: dict[str, dict], steps: int, boost: float) -> None:
    random = np.random.default_rng(int(boost * 10))
    lines: list[dict] = []
    for step in range(steps // 40, steps + 1, steps // 40):
        nll = 2 + 2 * np.exp(-step / (steps / 3)) - boost / 40 + 0.03 * random.normal()
        lines.append({"kind": "train", "step": step, "nll": nll, "tokens": 40_000})
        if step % (steps // 8) == 0:
            each = {t: nll + 0.3 * (5 - np.log10(known["pairs"])) for t, known in tasks.items()}
            line = {"kind": "valid", "step": step, "nll": float(np.mean(list(each.values())))}
            for level in {known["level"] for known in tasks.values()}:
                here = [v for t, v in each.items() if tasks[t]["level"] == level]
                line[f"nll/{level}"] = float(np.mean(here))
            lines.append(line)
    write_lines(folder / "metrics.jsonl", lines)


def write_translations(folder: Path, tasks: tuple[str, ...], method: str, suffix: str) -> None:
    native = {"hi": "खिड़की बंद करने से पहले {} फ़ाइल सहेजें", "ar": "احفظ الملف {} قبل إغلاق النافذة"}
    lines = []
    for task in tasks:
        d = Direction.parse(task)
        text = {"en": ENGLISH}
        for n in range(23):
            pair = [
                text.get(c, native.get(c, f"Phrase {{n}} ({c})")).replace("{n}", str(n)) + suffix
                for c in (d.source, d.target)
            ]
            lines.append(
                {"direction": task, "source": pair[0], "reference": pair[1]}
                | {"hypothesis": f"{pair[1]} by {method}"}
            )
    write_lines(folder / "translations.jsonl", lines)


def write_record(folder: Path, tasks: tuple[str, ...], steps: int) -> None:
    """Gradients share a common part, one of their family and one of their side."""
    random = np.random.default_rng(3)
    size = 60
    parts = {key: random.normal(size=size) for t in tasks for key in (info(t)["family"], side(t))}
    record = GramRecord(folder / "geometry")
    k = len(tasks)
    for step in range(0, steps, 10):
        grams, compared = [], (k * (k - 1),) * len(GROUPS)
        for depth in range(len(GROUPS)):
            noise = random.normal(size=(k, size)) * (2.2 - 0.4 * depth)
            j = noise + [0.7 * parts[info(t)["family"]] + 0.5 * parts[side(t)] for t in tasks]
            grams.append(j @ j.T)
        gram = np.array(grams)
        negative = tuple(int((g < 0).sum()) for g in gram)
        edits = tuple(int(c * (0.45 + 0.05 * random.random())) for c in compared)
        weights = np.ones((len(GROUPS), k))
        record.append(Frame(step, tasks, GROUPS, gram, weights, edits, negative, compared))


def side(task: str) -> str:
    return "en-any" if task.startswith("en-") else "any-en"
