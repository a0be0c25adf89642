"""The interactive heat map: source, granularity, parameter group, window of training.

Without a script it shows the mean over training of the whole model. The page also holds the other
matrices as two bytes per pair of tasks: cosines in ten thousandths, -32768 for unknown. The script
of the page recolours the cells.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_hex

from gradvac.experiment.report.markup import Pictures, element
from gradvac.experiment.view.geometry import Geometry
from gradvac.experiment.view.run_view import TaskView
from gradvac.geometry.heatmaps import FAINT, NEGATIVE, Scale, heatmap
from gradvac.geometry.similarity import Similarity

GROUPS = 40  # a granularity with more parameter groups is not offered
WINDOWS = 24
NUMBERS = 400_000
"""Most cosines in the page per run: a megabyte."""
UNKNOWN = -32768
WORDS = {
    "whole_model": "whole model",
    "enc_dec": "encoder, decoder",
    "all_layer": "layers",
    "all_module": "attentions and feed-forwards",
    "all_adapter": "adapted modules",
    "parameter_kind": "kinds of parameters",
    "all_matrix": "matrices",
    "parameter": "parameters",
}


def explorer(
    sources: Mapping[str, Geometry], tasks: Sequence[TaskView], number: int, pictures: Pictures
) -> str:
    """The heat map of a run and its controls; ``sources`` by name, the first is shown."""
    packed, shown, scale = [], None, Scale(0.0, 1.0)
    names = [t.name for t in tasks]
    for name, geometry in sources.items():
        offered = _offered(geometry)
        space = sum(len(set(geometry.granularities[g].values())) for g in offered)
        pairs = max(1, len(names) * (len(names) - 1) // 2)
        count = max(1, min(WINDOWS, len(geometry.steps), NUMBERS // (space * pairs)))
        choices = []
        for granularity in offered:
            parts = [geometry.mean(granularity), *geometry.over_time(granularity, count)]
            choices.append(_packed(granularity, parts, names))
        packed.append({"name": name, "granularities": choices})
        if shown is None:
            whole = geometry.mean("whole_model").ordered(names)
            shown = _spread(whole, names)[0]
            every = [geometry.mean(g).cosine for g in offered]
            scale = Scale.over(np.concatenate([_off(c) for c in every]))
    assert shown is not None
    figure = pictures(
        heatmap(shown, [t.short for t in tasks], [t.family for t in tasks], scale, named=True),
        _caption(next(iter(sources.values())), scale),
        wide=True,
    )
    data = {
        "scale": [scale.low, scale.high],
        "colours": [to_hex(scale.map(n)) for n in range(scale.map.N)],
        "digits": scale.digits,
        "faint": int(FAINT * scale.map.N) if scale.low < 0 else scale.map.N,
        "negative": NEGATIVE if scale.low >= 0 else None,
        "tasks": [t.short for t in tasks],
        "sources": packed,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return element(
        "div", _controls(number) + figure, class_="explorer", data_geometry=text, data_number=number
    )


def _offered(geometry: Geometry) -> list[str]:
    """Granularities to choose from, coarsest first."""
    found = {g: len(set(m.values())) for g, m in geometry.granularities.items()}
    coarse_first = sorted(reversed(found.items()), key=lambda item: item[1])
    return [g for g, n in coarse_first if n <= GROUPS]


def _packed(granularity: str, parts: Sequence[Similarity], names: Sequence[str]) -> dict[str, Any]:
    """One granularity: its groups, windows and bytes ``[groups, windows, pairs]``."""
    groups = parts[0].groups
    upper = np.triu_indices(len(names), 1)
    cube = np.full((len(groups), len(parts), len(upper[0])), UNKNOWN, dtype="<i2")
    for w, part in enumerate(parts):
        values = _spread(part.ordered(names), names)
        for g, group in enumerate(groups):
            if group in part.groups:
                flat = values[part.groups.index(group)][upper] * 10_000
                known = ~np.isnan(flat)
                cube[g, w, known] = np.rint(flat[known]).astype(np.int16)
    return {
        "name": WORDS.get(granularity, granularity),
        "groups": list(groups),
        "windows": [_span(part) for part in parts],
        "bytes": base64.b64encode(cube.tobytes()).decode(),
    }


def _spread(part: Similarity, names: Sequence[str]) -> np.ndarray:
    """Cosines [groups, K, K] of all ``names``, NaN for names that do not occur."""
    out = np.full((len(part.groups), len(names), len(names)), np.nan)
    rows = [list(names).index(t) for t in part.tasks]
    out[np.ix_(range(len(part.groups)), rows, rows)] = part.cosine
    return out


def _span(part: Similarity) -> str:
    first, last = part.steps[0], part.steps[-1]
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def _off(cosine: np.ndarray) -> np.ndarray:
    return cosine[:, ~np.eye(cosine.shape[-1], dtype=bool)].ravel()


def _caption(geometry: Geometry, scale: Scale) -> str:
    key = "blue is aligned, red in conflict" if scale.low < 0 else "darker is more aligned"
    return (
        f"Cosine of the gradients of two directions, mean {geometry.words}. Families are "
        f"bracketed; {key}; a stroke marks directions that never met."
    )


def _controls(number: int) -> str:
    """The controls; the script shows and fills them."""

    def choice(name: str, label: str) -> str:
        key = f"{name}-{number}"
        select = element("select", "", id=key, class_=name)
        return element("div", element("label", label, for_=key) + select)

    key = f"step-{number}"
    slider = (
        f'<input type="range" id="{key}" class="step" min="0" max="0" value="0" step="1" '
        f'aria-describedby="span-{number}">'
    )
    steps = element("label", "Training steps", for_=key) + slider
    steps += element("output", "", id=f"span-{number}", for_=key, aria_live="polite")
    markup = choice("source", "Gradients") + choice("granularity", "Granularity")
    markup += choice("group", "Parameter group") + element("div", steps, class_="slider")
    return element("div", markup, class_="controls", hidden=True)
