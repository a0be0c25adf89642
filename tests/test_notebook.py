"""What a notebook shows of reports, diagnoses, frames and similarities."""

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import gradvac
from gradvac.geometry.record import Frame
from gradvac.geometry.similarity import mean_similarity
from gradvac.notebook import MOST_TASKS, Agreement

GRAM = np.array([[[1.0, -0.5, 0.2], [-0.5, 1.0, 0.4], [0.2, 0.4, 1.0]], np.eye(3)])


def step() -> gradvac.StepReport:
    """Of gradients (1, 0), (-1, 1), (2, 0): cosines -0.71, 1, -0.71."""
    engine = gradvac.Engine(torch.nn.Linear(2, 1, bias=False), gradvac.PCGrad())
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [2.0, 0.0]])
    with engine.tasks(["fr", "hi", "<b>"]):
        return engine.backward(engine.model(rows))


def frame() -> Frame:
    none = (0, 0)
    return Frame(4, ("fr", "hi", "tr"), ("a", "b"), GRAM, GRAM[:, 0], none, none, none)


def cells(html: str) -> list[str]:
    HTMLParser().feed(html)
    return re.findall(r"<td[^>]*>(.*?)</td>", html)


def test_a_step_is_its_cosines_and_conflicts():
    html = step()._repr_html_()
    assert cells(html) == [
        *["1", "-0.71", "1.00"],
        *["-0.71", "1", "-0.71"],
        *["1.00", "-0.71", "1"],
        *["2 of 3", "-0.14"],
    ]
    assert "&lt;b&gt;" in html and "<b>" not in html and len(html) < 3000


def test_negative_and_positive_cosines_have_other_colours():
    html = step()._repr_html_()
    assert html.count("rgba(200,60,0,") == 4 and html.count("rgba(0,90,180,") == 2


@pytest.mark.parametrize(
    "found",
    [
        step(),
        gradvac.diagnose(
            torch.nn.Linear(2, 1), torch.eye(2), ["fr", "hi"], lambda m, x: m(x).mean()
        ),
        frame(),
        mean_similarity([frame(), frame()]),
    ],
    ids=lambda found: type(found).__name__,
)
def test_all_have_tables_and_a_picture(found):
    assert found._repr_html_().count("<table>") == 2
    figure = found.plot()
    left, right, *_ = figure.axes
    assert [t.get_text() for t in left.get_xticklabels()] == list(found.tasks)
    assert [t.get_text() for t in right.get_yticklabels()] == list(found.groups)
    assert figure._repr_png_().startswith(b"\x89PNG")
    low, high = left.images[0].get_clim()
    assert low == -high  # 0 is the middle of the colours


def test_bars_are_the_share_of_pairs_in_conflict():
    right = frame().plot().axes[1]
    assert [bar.get_width() for bar in right.patches] == pytest.approx([100 / 3, 0])
    assert [text.get_text() for text in right.texts] == [" 1 of 3", " 0 of 3"]


def test_many_tasks_are_listed_by_their_extreme_pairs():
    k = MOST_TASKS + 1
    whole = torch.eye(k, dtype=torch.float64)
    whole[0, 1] = whole[1, 0] = -0.9
    whole[2, 3] = whole[3, 2] = 0.8
    shown = Agreement("many", [f"t{n}" for n in range(k)], ["all"], whole[None], whole).html()
    assert "<th>t0, t1</th><td style='background:rgba(200,60,0,0.60)'>-0.90</td>" in shown
    assert "<th>t2, t3</th>" in shown and f"of {k * (k - 1) // 2} pairs" in shown


def test_one_task_has_nothing_to_compare():
    shown = Agreement("one", ["fr"], ["all"], torch.ones(1, 1, 1), torch.ones(1, 1)).html()
    assert shown == "<p>one</p>"


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plot\(\) needs Matplotlib: pip install 'gradvac\[tool"):
        frame().plot()
    assert "<table>" in frame()._repr_html_()
