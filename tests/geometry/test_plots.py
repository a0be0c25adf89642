import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradvac.geometry.heatmaps import Scale, heatmap, tree
from gradvac.geometry.plots import PALETTE, Line, curves, dots, save, svg
from gradvac.geometry.similarity import cluster

LABELS = ["fr", "de", "sw"]
FAMILIES = ["Western European", "Western European", "Benue-Congo"]
COSINE = np.array([[1, 0.42, -0.07], [0.42, 1, np.nan], [-0.07, np.nan, 1]])


def texts(picture: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture)


def test_a_heat_map_says_its_numbers_labels_and_families() -> None:
    shown = texts(svg(heatmap(COSINE, LABELS, FAMILIES)))
    assert shown.count(".42") == 2
    assert shown.count("\N{MINUS SIGN}.07") == 2
    assert all(shown.count(label) == 2 for label in LABELS)
    assert [t for t in shown if t in FAMILIES] == ["Western European", "Benue-Congo"]


def test_many_tasks_get_no_numbers() -> None:
    k = 17
    cosine = np.full((k, k), 0.42)
    shown = texts(svg(heatmap(cosine, [f"t{n}" for n in range(k)], ["f"] * k)))
    assert ".42" not in shown


def test_the_scale_is_symmetric_about_zero_when_there_are_conflicts() -> None:
    scale = Scale.of(COSINE)
    assert (scale.low, scale.high) == (-0.45, 0.45)
    middle, low, high = (scale.map(x)[:3] for x in (0.5, 0.0, 1.0))
    assert min(middle) > 0.95  # 0 is white
    assert low[0] > low[2]  # conflict is red
    assert high[2] > high[0]  # agreement is blue
    assert Scale.of(np.abs(COSINE)).low == 0
    assert Scale.of(np.array([[np.nan]])) == Scale(0.0, 1.0)


def test_cosines_far_from_zero_share_the_colours_between_them() -> None:
    cosine = np.full((20, 20), 0.86)
    cosine[:10, :10] = 0.63
    scale = Scale.of(cosine)
    assert (scale.low, scale.high) == pytest.approx((0.6, 0.9))
    assert scale.map(0.0)[0] > 0.9 > scale.map(1.0)[0]  # pale, then dark: not from red to blue
    assert Scale.of(np.where(cosine > 0.8, 0.86, 0.43)).low == 0
    assert Scale.of(np.full((3, 3), 0.7)).low < 0.7


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        ([0, 400], {"0", "100", "200", "300", "400"}),
        ([0, 400_000], {"0", "100k", "200k", "300k", "400k"}),
        ([0, 2_000_000], {"0", "500k", "1M", "1.5M", "2M"}),
    ],
)
def test_counts_on_an_axis_are_round_and_short(steps: list[int], shown: set[str]) -> None:
    found = texts(svg(curves([Line("a", steps, [0.0, 1.0], 0)], "y")))
    assert shown <= set(found)


def test_one_odd_pair_does_not_pale_all_others() -> None:
    cosine = np.full((20, 20), 0.2)
    cosine[0, 1] = cosine[1, 0] = 0.95
    assert Scale.of(cosine).high == pytest.approx(0.2)


def test_a_conflict_has_a_colour_of_its_own_on_every_scale() -> None:
    cosine = np.full((20, 20), 0.3)
    cosine[0, 1] = cosine[1, 0] = -0.02
    cosine[0, 2] = cosine[2, 0] = 0.0
    for scale in (Scale.of(cosine), Scale(0.45, 0.9), Scale(-0.3, 0.3)):
        red, _, blue, _ = scale.colour(-0.02)
        assert red > blue + 0.02, scale
        assert scale.colour(-0.001) == scale.colour(0.0)  # which is written as .00
    end = Scale(0.0, 0.5).map(-0.1)  # of the colour bar
    assert end[0] > end[2] + 0.2


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0.9962, 0.9991, [".996", ".999"]), (0.9995, 0.9998, [".9995", ".9998"]),
     (0.61, 0.9, [".61", ".90"]), (0.7, 0.7, [".70", ".70"])],
)  # fmt: skip
def test_cells_that_differ_are_told_apart(low: float, high: float, shown: list[str]) -> None:
    cosine = np.array([[1, low, high], [low, 1, high], [high, high, 1]])
    scale = Scale.of(cosine)
    assert scale.low < low <= high <= scale.high
    assert (scale.colour(low) != scale.colour(high)) == (low != high)
    found = texts(svg(heatmap(cosine, ["a", "b", "c"], ["f"] * 3)))
    assert set(shown) <= set(found) and "1.00" not in found


def test_a_tree_names_every_leaf_in_its_order() -> None:
    clustering = cluster(COSINE)
    shown = [t for t in texts(svg(tree(clustering, LABELS))) if t in LABELS]
    assert shown == [LABELS[n] for n in clustering.order]


def test_curves_keep_their_colour_and_name() -> None:
    lines = [Line("_a", [1, 2], [3, 4], 0), Line("b$c$", [1, 2], [4, 3], 1, dashed=True)]
    picture = svg(curves(lines, "NLL"))
    assert all(PALETTE[n] in picture for n in (0, 1))
    assert {t.strip("\u2009") for t in texts(picture)} >= {"_a", "b$c$", "NLL", "step"}


def test_long_curves_are_averaged() -> None:
    figure = curves([Line("a", range(1000), [n % 2 for n in range(1000)], 0)], "y")
    (line,) = figure.axes[0].lines
    x, y = (np.asarray(v) for v in line.get_data())
    assert len(x) == 125
    assert x[:2].tolist() == [3.5, 11.5]
    assert set(y.tolist()) == {0.5}


def test_dots_leave_out_what_is_unknown() -> None:
    figure = dots(["r", "s"], {"start": (-1, [1.0, np.nan]), "run": (0, [2.0, 3.0])}, "chrF++")
    spans = [line.get_xdata() for line in figure.axes[0].lines[:2]]
    assert [list(map(float, s)) for s in spans] == [[1, 2], [3, 3]]


def two_pictures() -> str:
    lines = [Line("n", [1, 2], [2, 1], 0)]
    return svg(heatmap(COSINE, LABELS, FAMILIES)) + svg(curves(lines, "y"))


def test_pictures_are_the_same_text_in_every_process() -> None:
    code = "import sys, test_plots; sys.stdout.buffer.write(test_plots.two_pictures().encode())"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=Path(__file__).parent
    )
    here = two_pictures()
    assert run.stdout.decode() == here
    assert "<metadata" not in here
    assert "<dc:date" not in here


def test_a_script_the_font_lacks_is_no_error() -> None:
    assert "日本語" in texts(svg(heatmap(COSINE, ["日本語", "de", "sw"], FAMILIES)))


@pytest.mark.parametrize(
    ("kind", "magic"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")]
)
def test_pictures_are_saved_by_their_suffix(tmp_path: Path, kind: str, magic: bytes) -> None:
    save(curves([Line("n", [1], [2], 0)], "y"), tmp_path / f"p.{kind}")
    assert (tmp_path / f"p.{kind}").read_bytes().startswith(magic)


def test_a_faint_conflict_is_red_on_every_scale() -> None:
    for scale in (Scale(-0.5, 0.5), Scale(0.0, 0.5), Scale(-0.1, 0.1)):
        red, _, blue, _ = scale.colour(-0.02)
        assert red > blue + 0.1 and min(scale.colour(0.0)[:3]) > 0.94
    assert Scale(-0.5, 0.5).colour(-0.4) == Scale(-0.5, 0.5).map(0.1)


def test_lines_and_dots_beyond_the_palette_differ_from_all_others() -> None:
    lines = [Line(f"l{n}", [0, 1], [n, n], n) for n in range(2 * len(PALETTE))]
    (ax,) = curves(lines, "loss").axes
    looks = {(x.get_color(), x.get_linestyle(), x.get_marker()) for x in ax.lines}
    assert len(looks) == len(lines)
    series = {f"s{n}": (n, [float(n)]) for n in range(2 * len(PALETTE))}
    (ax,) = dots(["fr"], series, "BLEU").axes
    shown = [x for x in ax.lines if x.get_marker() != "None"]
    looks = {(x.get_color(), x.get_markerfacecolor()) for x in shown}
    assert len(looks) == len(series)
