"""Panels, bars, strips, heat maps beside trees: what they show, read back from the picture."""

import re

import numpy as np
import pytest

from gradvac.geometry.heatmaps import Matrix, Scale, heatmap, heatmap_and_tree, heatmaps, tables
from gradvac.geometry.panels import Panel, bars, line_panels, scatter, strips
from gradvac.geometry.plots import PALETTE, Line, svg
from gradvac.geometry.similarity import cluster

COSINE = np.array([[1, 0.42, -0.07], [0.42, 1, 0.11], [-0.07, 0.11, 1]])
MATRIX = Matrix(COSINE, ["fr", "de", "sw"], ["Western European"] * 2 + ["Benue-Congo"], "here")


def texts(figure) -> list[str]:
    return [t.strip() for t in re.findall(r"<text[^>]*>([^<]*)</text>", svg(figure))]


def test_panels_share_one_legend_and_an_axis() -> None:
    panels = [
        Panel([Line("a", [1, 2], [3, 4], 0), Line("b", [1, 2], [9, 8], 1, True)], "NLL", "low"),
        Panel([Line("a", [1, 2], [1, 2], 0)], "NLL", "high"),
    ]
    figure = line_panels(panels)
    shown = texts(figure)
    assert shown.count("a") == shown.count("b") == 1
    assert {"low", "high", "step"} <= set(shown)
    left, right = figure.axes
    assert left.get_ylim() == right.get_ylim()
    assert [left.get_ylabel(), right.get_ylabel()] == ["NLL", ""]


def test_an_axis_from_zero_holds_the_curves_of_every_panel() -> None:
    panels = [
        Panel([Line("", [0, 1], [5, 9], 0)], "%", zero=True),
        Panel([Line("", [0, 1], [50, 90], 1)], "%", zero=True),
    ]
    for ax in line_panels(panels).axes:
        low, high = ax.get_ylim()
        assert low == 0
        assert high > 90


def test_points_are_named_and_fitted() -> None:
    x, y = [0.0, 0.5, 1.0], [1.0, 3.0, 2.0]
    figure = scatter(["es", "hi", "tr"], x, y, "cosine", "BLEU", "r")
    assert {"es", "hi", "tr", "cosine", "BLEU", "r"} <= set(texts(figure))
    line = figure.axes[0].lines[1]
    slope, start = np.polyfit(x, y, 1)
    assert list(line.get_ydata()) == pytest.approx([start, start + slope])


def test_bars_on_a_logarithmic_scale_say_plain_numbers() -> None:
    figure = bars(["fr", "sw"], [40_000, 900], "pairs", ["high", "low"], log=True)
    assert figure.axes[0].get_ylabel() == "pairs (logarithmic scale)"
    shown = texts(figure)
    assert {"fr", "sw", "high", "low", "10,000"} <= set(shown)
    assert not any("$" in text for text in shown)
    assert [p.get_height() for p in figure.axes[0].patches] == [40_000, 900]


def test_strips_keep_more_rows_apart_than_there_are_colours() -> None:
    rows = [(f"r{n}", n, [n, n + 1.0]) for n in range(len(PALETTE) + 2)]
    lines = strips(["M2O", "O2M"], rows, "alignment").axes[0].lines
    looks = {
        (line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines[: len(rows)]
    }
    assert len(looks) == len(rows)


def test_a_heat_map_and_its_tree_name_every_task_in_both() -> None:
    figure = heatmap_and_tree(MATRIX, cluster(COSINE))
    shown = texts(figure)
    assert all(shown.count(label) == 3 for label in MATRIX.labels)
    assert shown.count(".42") == 2


def test_heat_maps_side_by_side_have_one_scale() -> None:
    other = Matrix(COSINE / 2, MATRIX.labels, MATRIX.families, "there")
    figure = heatmaps([MATRIX, other])
    assert {"here", "there"} <= set(texts(figure))
    reach = Scale.over(np.repeat([0.42, -0.07, 0.11, 0.21, -0.035, 0.055], 2))
    first = [ax.patches[1].get_facecolor() for ax in figure.axes[:2]]
    assert first == [pytest.approx(reach.colour(0.42)), pytest.approx(reach.colour(0.21))]


def test_tables_write_every_number_under_its_name() -> None:
    values = np.array([[0.1, 0.2, np.nan], [0.3, 0.4, 0.5]])
    shown = texts(tables([("Direction", values)], ["M2O", "O2M"], ["q", "k", "v"]))
    assert {"Direction", "M2O", "O2M", "q", "k", "v"} <= set(shown)
    assert [t for t in shown if re.fullmatch(r"\.\d\d", t)] == [".10", ".20", ".30", ".40", ".50"]


def test_a_script_finds_every_cell_and_its_number() -> None:
    picture = svg(heatmap(COSINE, MATRIX.labels, MATRIX.families, named=True))
    for i in range(3):
        for j in range(3):
            assert picture.count(f'id="c{i}-{j}"') == picture.count(f'id="t{i}-{j}"') == (i != j)
