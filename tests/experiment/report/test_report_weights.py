"""The report draws what the log says of task weights."""

import json
import re
from pathlib import Path

import pytest

from gradvac.experiment.report import weights, write_report
from tests.experiment.synthetic import PAIRS, make_run, write_lines

TASKS = ("fr-en", "hi-en", "sw-en")


def with_weights(run: Path, weights_at) -> Path:
    """Add task weights to the train lines of a run; ``weights_at`` maps the line's number."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    for n, line in enumerate(train):
        line["task_weights"] = weights_at(n)
    write_lines(run / "metrics.jsonl", lines)
    return run


@pytest.fixture
def drawn(monkeypatch):
    """The lines of each figure of task weights."""
    figures, curves = [], weights.curves
    monkeypatch.setattr(
        weights, "curves", lambda lines, *rest: (figures.append(lines), curves(lines, *rest))[1]
    )
    return figures


def page(tmp_path: Path, *runs: Path) -> str:
    text = write_report(tmp_path / "r.html", runs, title="t").read_text()
    section = re.search(r'id="weights".*?</section>', text, re.DOTALL)
    assert section is not None
    return section[0]


def test_a_curve_for_every_task_over_the_steps_that_have_it(tmp_path, drawn):
    at = lambda n: {"fr-en": 1 + n, "sw-en": 2.0} | ({"hi-en": 0.5} if n % 2 else {})
    run = with_weights(make_run(tmp_path / "a", "gradnorm", TASKS), at)
    joint = make_run(tmp_path / "joint", "joint", TASKS)
    text = page(tmp_path, joint, run)
    assert "mean over the parameter groups. GradNorm." in text
    (lines,) = drawn
    found = {line.name: dict(zip(line.x, line.y, strict=True)) for line in lines}
    steps = [10 * n for n in range(1, 41)]
    assert found == {
        "fr→en": {step: 1 + n for n, step in enumerate(steps)},
        "hi→en": {step: 0.5 for step in steps[1::2]},
        "sw→en": dict.fromkeys(steps, 2.0),
    }


def test_many_tasks_are_drawn_by_level(tmp_path, drawn):
    tasks = (*(f"{code}-en" for code in PAIRS), "en-fr", "en-sw")
    at = lambda n: {t: (3.0 + n if t in ("sw-en", "en-sw") else 1.0) for t in tasks}
    run = with_weights(make_run(tmp_path / "a", "cats", tasks), at)
    assert "tasks of a level. CATS (reconstruction)." in page(tmp_path, run)
    (lines,) = drawn
    found = {line.name: line.y for line in lines}
    low = [t for t in tasks if PAIRS[t.replace("en", "").strip("-")] < 5000]
    assert set(found) == {"high", "medium", "low"}
    assert found["high"] == found["medium"] == [1.0] * 40
    others = len(low) - 2
    assert found["low"] == [pytest.approx((2 * (3 + n) + others) / len(low)) for n in range(40)]


def test_weights_that_do_not_move_are_said_in_words(tmp_path, drawn):
    run = with_weights(make_run(tmp_path / "a", "static", TASKS), lambda n: {"fr-en": 1.0})
    assert "a: every task had the weight 1 at all steps." in page(tmp_path, run)
    assert not drawn
    assert "No run has task weights" in page(tmp_path, make_run(tmp_path / "b", "joint", TASKS))
