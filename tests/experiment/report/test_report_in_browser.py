"""The report as a reader uses it: clicked, typed at, on a phone. Skipped without a Chromium."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gradvac.experiment.report import write_report
from gradvac.experiment.view import numbers as geometry_numbers
from tests.experiment.browser import Browser, find
from tests.experiment.figures.test_figures import BOTH, measure
from tests.experiment.synthetic import make_run

BINARY = find()
pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium here to open the report with")

TASKS = (*BOTH, "tr-en", "en-tr")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    runs = [make_run(root / name, name, TASKS) for name in ("joint", "gradvac")]
    measure(runs[1], TASKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry_numbers, "typological_distances", lambda codes: "no typology here")
        patch.setattr(geometry_numbers, "cophenetic_test", lambda values: (0.5, 0.5))
        return write_report(root / "report.html", runs, title="t")


@pytest.fixture(scope="module")
def browser(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert BINARY is not None
    browser = Browser(BINARY, tmp_path_factory.mktemp("profile"))
    browser.size(1280, 900)
    browser.open(report)
    yield browser
    browser.close()


def choose(browser: Browser, key: str, name: str) -> None:
    """Choose an option as a reader does: the control changes and says so."""
    browser.evaluate(
        f"(() => {{ const s = document.getElementById('{key}'); s.value = {json.dumps(name)};"
        "s.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def data(browser: Browser) -> dict:
    return json.loads(browser.evaluate("document.querySelector('.explorer').dataset.geometry"))


def expected(browser: Browser, source: int, granularity: str, group: str, window: int) -> list[str]:
    """What each cell above the diagonal should say, from the bytes in the page."""
    found = data(browser)
    one = next(g for g in found["sources"][source]["granularities"] if g["name"] == granularity)
    flat = np.frombuffer(base64.b64decode(one["bytes"]), dtype="<i2")
    values = flat.reshape(len(one["groups"]), len(one["windows"]), -1)
    cells = values[one["groups"].index(group), window]
    digits = found["digits"]
    text = [f"{abs(v) / 10_000:.{digits}f}".replace("0.", ".") for v in cells.tolist()]
    signs = [
        "\N{MINUS SIGN}" if v < 0 and float(x) else ""
        for v, x in zip(cells.tolist(), text, strict=True)
    ]
    return [sign + t for sign, t in zip(signs, text, strict=True)]


def shown(browser: Browser) -> list[str]:
    """What the cells above the diagonal say."""
    k = len(TASKS)
    return browser.evaluate(
        "(() => { const svg = document.querySelector('.explorer svg'), out = [];"
        f"for (let i = 0; i < {k}; i++) for (let j = i + 1; j < {k}; j++)"
        " out.push(svg.querySelector(`[id$='-t${i}-${j}'] text`).textContent.trim());"
        "return out; })()"
    )


def test_choices_recolour_the_cells_and_change_their_numbers(browser: Browser) -> None:
    assert not browser.evaluate("document.querySelector('.controls').hidden")
    assert shown(browser) == expected(browser, 0, "whole model", "whole_model", 0)
    fill = "document.querySelector('[id$=\"-c0-1\"] path').style.fill"
    before = browser.evaluate(fill)
    choose(browser, "granularity-1", "layers")
    choose(browser, "group-1", "decoder.layers.0")
    assert shown(browser) == expected(browser, 0, "layers", "decoder.layers.0", 0)
    assert browser.evaluate(fill) != before
    choose(browser, "source-1", "recorded while training")
    assert shown(browser) == expected(browser, 1, "layers", "decoder.layers.0", 0)
    choose(browser, "source-1", "measured on the same sentences")


def test_the_colour_of_a_cell_is_that_of_its_number(browser: Browser) -> None:
    found = data(browser)
    low, high = found["scale"]
    for row, column in ((0, 1), (2, 5), (3, 8)):
        text = browser.evaluate(
            f"document.querySelector('[id$=\"-t{row}-{column}\"] text').textContent"
        )
        value = float(text.strip().replace("\N{MINUS SIGN}", "-"))
        place = int((value - low) / (high - low) * 41)
        if value <= -0.005 and low < 0:
            place = min(place, 16)  # a conflict is never as white as 0
        wanted = found["colours"][max(0, min(40, place))]
        rgb = tuple(int(wanted[n : n + 2], 16) for n in (1, 3, 5))
        fill = browser.evaluate(
            f"document.querySelector('[id$=\"-c{row}-{column}\"] path').style.fill"
        )
        assert fill == f"rgb{rgb}"


def test_arrow_keys_walk_through_training(browser: Browser) -> None:
    choose(browser, "granularity-1", "whole model")
    browser.evaluate("document.getElementById('step-1').focus()")
    output = "document.querySelector('.explorer output').textContent"
    assert browser.evaluate(output) == "all, steps 10 to 30"
    for window, words in enumerate(("step 10", "step 20", "step 30"), 1):
        browser.press("ArrowRight", 39)
        assert browser.evaluate(output) == words
        assert shown(browser) == expected(browser, 0, "whole model", "whole_model", window)
    spoken = "document.getElementById('step-1').getAttribute('aria-valuetext')"
    assert browser.evaluate(spoken) == "step 30"


def test_a_page_that_loads_itself_again_keeps_the_choices(browser: Browser) -> None:
    choose(browser, "granularity-1", "encoder, decoder")
    choose(browser, "group-1", "decoder")
    choose(browser, "step-1", "2")
    browser.reload()
    assert browser.evaluate("document.getElementById('group-1').value") == "decoder"
    assert shown(browser) == expected(browser, 0, "encoder, decoder", "decoder", 2)


def test_everything_can_be_reached_by_keyboard(browser: Browser) -> None:
    browser.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    reached = []
    for _ in range(60):
        browser.press("Tab", 9)
        reached.append(
            browser.evaluate(
                "document.activeElement.id || document.activeElement.getAttribute('href')"
                " || document.activeElement.tagName"
            )
        )
    controls = ["source-1", "granularity-1", "group-1", "step-1"]
    assert [r for r in reached if r in controls][:4] == controls  # then around again
    assert {"#scores", "#similarity", "#conflicts", "SUMMARY", "PRE"} <= set(reached)


def test_details_open_by_click(browser: Browser) -> None:
    closed = "document.querySelectorAll('#similarity ~ details:not([open])').length"
    assert browser.evaluate(closed) == 1
    browser.click("#similarity ~ details summary")
    assert browser.evaluate(closed) == 0
    assert browser.evaluate(
        "document.querySelector('#similarity ~ details table').getBoundingClientRect().height > 100"
    )


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_no_table_runs_over_the_page_and_names_of_rows_stay_in_sight(
    browser: Browser, width: int
) -> None:
    browser.size(width, 900, phone=width < 500)
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    cut = (
        "[...document.querySelectorAll('table')].filter((t) => { const box = t.parentElement;"
        "box.scrollLeft = 9999; const left = box.getBoundingClientRect().left;"
        "const head = t.rows[t.rows.length - 1].cells[0].getBoundingClientRect();"
        "box.scrollLeft = 0; return Math.abs(head.left - left) > 1; }).length"
    )
    assert browser.evaluate(cut) == 0  # the first cell of a row stays where it is
    over = (
        "[...document.querySelectorAll('.scroll')].filter((b) => b.querySelector('table')"
        " && b.clientWidth && b.scrollWidth > b.clientWidth + 1).length"
    )
    if width > 1000:
        assert browser.evaluate(over) == 0
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = false; })")
    browser.size(1280, 900)


def test_the_name_of_a_run_is_not_broken_inside_a_word(browser: Browser) -> None:
    browser.size(390, 844, phone=True)
    lines = (
        "[...document.querySelectorAll('th, dt')].filter((e) => e.querySelector('.swatch'))"
        ".filter((e) => { const r = document.createRange(); r.selectNodeContents(e.lastChild);"
        "return r.getClientRects().length > 1; }).map((e) => e.textContent)"
    )
    assert browser.evaluate(lines) == []  # joint, gradvac: one word each
    browser.size(1280, 900)


def test_dark_and_print_have_ink_on_paper(browser: Browser) -> None:
    colours = (
        "['color', 'backgroundColor'].map((k) => getComputedStyle(document.body)[k]"
        ".match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0))"
    )
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser("Emulation.setEmulatedMedia", media="screen", features=dark)
    ink, paper = browser.evaluate(colours)
    assert ink > 600 and paper < 150
    browser("Emulation.setEmulatedMedia", media="print", features=dark)
    ink, paper = browser.evaluate(colours)
    assert ink == 0 and paper == 765  # black on white, whatever the screen has
    browser("Emulation.setEmulatedMedia", media="", features=[])


def test_a_phone_scrolls_down_only(browser: Browser) -> None:
    browser.size(360, 740, phone=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    outside = (
        "[...document.querySelectorAll('.controls *')].filter((e) => "
        "e.getBoundingClientRect().right > 361).length"
    )
    assert browser.evaluate(outside) == 0
    heights = (
        "[...document.querySelectorAll('.controls select, .controls input')]"
        ".map((e) => e.getBoundingClientRect().height)"
    )
    assert min(browser.evaluate(heights)) >= 24  # WCAG 2.2, success criterion 2.5.8
    browser.size(1280, 900)


def test_the_page_raises_no_error_and_asks_for_nothing(browser: Browser) -> None:
    assert browser.errors == []
    loaded = browser.evaluate("performance.getEntriesByType('resource').map((e) => e.name)")
    assert loaded == []
