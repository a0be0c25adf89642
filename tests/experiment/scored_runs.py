"""Run folders with scores, written without training anything."""

import json
import random
from pathlib import Path

import torch
import yaml

from gradvac.experiment.run.folder import save_parameters
from gradvac.translation.scoring import score_directions
from tests.build import write_lines

WORDS = "open close the file page sheet save print table of image style in a new window".split()
LEVELS = {"fr-en": "high", "de-en": "high", "ne-en": "low"}
REFERENCES = {
    d: [" ".join(random.Random(f"{d}{n}").choices(WORDS, k=7)) for n in range(40)] for d in LEVELS
}


def outputs(rate: float, seed: int, directions=tuple(LEVELS)) -> dict[str, list[str]]:
    """Translations in which a share of the words is wrong."""
    rng = random.Random(seed)
    spoil = lambda word: rng.choice(WORDS) if rng.random() < rate else word
    return {d: [" ".join(map(spoil, r.split())) for r in REFERENCES[d]] for d in directions}


def write_run(
    folder: Path, translated: dict[str, list[str]], seed: int, nll: float, method: str = "joint"
) -> Path:
    """A finished and scored run; half of the time of its training it did not run."""
    folder.mkdir(parents=True)
    scores = score_directions(translated, {d: REFERENCES[d] for d in translated}, LEVELS)
    data = {"train": [{"path": "a.tsv"}], "directions": list(translated)}
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"seed": seed, "data": data, "method": {"name": method}})
    )
    (folder / "scores.json").write_text(json.dumps({**scores.to_dict(), "averages": {}}))
    best = {"value": nll, "step": 10}
    (folder / "done.json").write_text(json.dumps({"step": 20, "metric": "nll", "best": best}))
    each = {f"nll/{d}": nll + k for k, d in enumerate(translated)}
    lines = [
        {"kind": "train", "step": 10, "tokens": 3000, "nll": nll},
        {"kind": "valid", "step": 10, "nll": nll, **each},
        {"kind": "train", "step": 20, "tokens": 1000, "nll": nll},
        {"kind": "valid", "step": 20, "nll": 99.0, **dict.fromkeys(each, 99.0)},
    ]
    write_lines(folder / "metrics.jsonl", lines)
    # Stopped at 20 s and resumed: the clock began anew.
    write_lines(folder / "speed.jsonl", [{"seconds": s} for s in (10.0, 20.0, 5.0, 9.0)])
    texts = [
        {"direction": d, "source": f"S {r}", "hypothesis": h, "reference": r}
        for d in translated
        for h, r in zip(translated[d], REFERENCES[d], strict=True)
    ]
    write_lines(folder / "translations.jsonl", texts)
    (folder / "model.json").write_text(json.dumps({"vocabulary_size": 1000}))
    save_parameters(folder / "best" / "model.safetensors", {"a": torch.zeros(3, 4)})
    return folder
