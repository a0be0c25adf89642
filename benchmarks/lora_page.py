"""The tables and the picture of docs/tutorial-lora.md, from what lora_study.py found."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from scipy import stats

from gradvac.geometry.plots import save, styled

PICTURE = (
    "![Cosines of the task gradients of the adapters by layer and pair of languages, and how often "
    "they are negative](images/lora-conflicts.png)"
)
NAMES = {"plain": "SFTTrainer", "joint": "`Joint()`", "gradvac": "`GradVac()`"}


def write_page(text: str, found: dict[str, Any]) -> str:
    """Fill the blocks of a page, ``<!-- NAME -->`` to ``<!-- end -->``, with what was found."""

    def fill(match: re.Match[str]) -> str:
        part, write = BLOCKS[match[1]]
        said = write(found) if part in found else "Not measured yet: run the command above."
        return f"<!-- {match[1]} -->\n{said}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    bars = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([bars(heads), "|---" + "|--:" * (len(heads) - 1) + "|", *map(bars, rows)])


def _settings(found: dict[str, Any]) -> str:
    size = found["size"]
    packages = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return (
        f"{size['steps']} steps of a packed row of {size['length']} tokens, {size['train']} "
        f"strings of each language to train on and {size['test']} to test on, learning rate "
        f"{size['rate']:g}; {packages}."
    )


def _losses(found: dict[str, Any]) -> str:
    """Test loss by language: mean over seeds and its 95 % interval; last the difference."""
    part = found["losses"]
    tasks = list(part["before"])
    mean = lambda losses: statistics.fmean(losses[task] for task in tasks)
    column = {task: lambda losses, task=task: losses[task] for task in tasks} | {"mean": mean}
    of = lambda name: [run["losses"] for run in part["runs"] if run["method"] == name]
    rows = [["before", *(f"{get(part['before']):.3f}" for get in column.values())]]
    for name in ("joint", "gradvac"):
        own = [_spread([get(x) for x in of(name)]) for get in column.values()]
        rows.append([NAMES[name], *own])
    pairs = list(zip(of("gradvac"), of("joint"), strict=True))
    differ = [_spread([get(a) - get(b) for a, b in pairs], sign=True) for get in column.values()]
    rows.append(["difference, seed by seed", *differ])
    return _table(["", *column], rows)


def _spread(values: list[float], sign: bool = False) -> str:
    """Mean and half of its 95 % interval (Student's t)."""
    mean = statistics.fmean(values)
    shown = f"{mean:+.3f}" if sign else f"{mean:.3f}"
    if len(values) < 2:
        return shown
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{shown} ±{half:.3f}"


def _cost(found: dict[str, Any]) -> str:
    """Medians over rounds and steps once the engine has settled; of the first step over rounds."""
    heads = ["", "seconds of a step", "ratio", "MiB", "ratio", "first step: seconds", "MiB"]
    settled = lambda runs: np.array(runs)[:, -found["size"]["timed"] :]  # [rounds, steps]
    rows = []
    for batch, trainers in found["cost"].items():
        plain = trainers["plain"]
        for trainer, own in trainers.items():
            cells = [f"{NAMES[trainer]}, {batch}"]
            for what, digits in (("seconds", 2), ("mib", 0)):
                ratio = np.median(settled(own[what]) / settled(plain[what]))
                cells += [f"{np.median(settled(own[what])):.{digits}f}", f"{ratio:.2f}"]
            first = {what: np.median(np.array(own[what])[:, 0]) for what in own}
            rows.append([*cells, f"{first['seconds']:.2f}", f"{first['mib']:.0f}"])
    return _table(heads, rows)


def _conflicts(found: dict[str, Any]) -> str:
    part = found["losses"]["conflicts"]
    by_layer = np.nanmean(part["negative"], axis=1)
    cosine = np.nanmean(part["cosine"], axis=1)
    order = np.argsort(-by_layer, kind="stable")
    layer = lambda n: part["groups"][n].rsplit(".", 1)[-1]
    ends = lambda at: ", ".join(f"{layer(n)} ({by_layer[n]:.0%})" for n in at)
    pairs = np.nanmean(part["negative"], axis=0)
    shown = ", ".join(f"{p} {x:.0%}" for p, x in zip(part["pairs"], pairs, strict=True))
    return (
        f"Over {part['steps']} steps of joint training, {by_layer.mean():.0%} of the cosines are "
        f"negative, and their mean is {cosine.mean():.3f}. Most often in layers {ends(order[:3])}; "
        f"least often in {ends(order[-3:])}. By pair: {shown}.\n\n{PICTURE}"
    )


def _reloaded(found: dict[str, Any]) -> str:
    difference = found["losses"]["reloaded"]
    return f"The largest difference of a logit between both models is {difference:.1g}."


BLOCKS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "settings": ("size", _settings),
    "losses": ("losses", _losses),
    "cost": ("cost", _cost),
    "conflicts": ("losses", _conflicts),
    "reloaded": ("losses", _reloaded),
}
"""What writes a block, and the part of what was found that it needs."""


def conflicts_picture(part: dict[str, Any], file: Path) -> None:
    """Draw the mean cosine of each pair of tasks by layer, and how often it is negative."""
    cosine, negative = np.array(part["cosine"]), np.array(part["negative"])
    layers = [name.rsplit(".", 1)[-1] for name in part["groups"]]
    limit = max(float(np.nanmax(np.abs(cosine))), 1e-3)
    with styled():
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(7.2, 0.17 * len(layers) + 1.6), sharey=True, layout="constrained",
            width_ratios=[3, 2],
        )  # fmt: skip
        image = left.imshow(cosine, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        left.set_xticks(range(len(part["pairs"])), part["pairs"])
        left.set_yticks(range(len(layers)), layers)
        left.set_ylabel("layer")
        left.set_title("mean cosine of two task gradients", loc="left", fontsize=10)
        figure.colorbar(image, ax=left, pad=0.02, aspect=40)
        own = np.nanmean(negative, axis=1)
        right.barh(range(len(layers)), 100 * own, color="#b5533c", height=0.7)
        right.axvline(50, color="#5d6772", linewidth=0.8, linestyle=":")
        right.set_xlim(0, 100)
        right.set_xlabel("% of pairs and steps below 0")
        right.set_title("conflicts", loc="left", fontsize=10)
        right.tick_params(axis="y", labelleft=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    save(figure, file)
    plt.close(figure)
