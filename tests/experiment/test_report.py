import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import GROUPS, make_run, scores, write_json, write_lines

from gradvac.errors import RunError
from gradvac.experiment.report import write_report
from gradvac.experiment.report.samples import spread
from gradvac.geometry.record import GramRecord

EVIL = '</script><script>alert("x&y")</script>'
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """A page as elements: (tag, attributes, text directly inside), checked for balance."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, int]] = []
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self._open.append((tag, len(self.elements)))
        self.elements.append((tag, dict(attrs), []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.elements[self._open[-1][1]][2].append(data)

    def of(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        return [
            (a, "".join(text))
            for t, a, text in self.elements
            if t == tag and all(a.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]

    @property
    def text(self) -> str:
        shown = ["".join(e[2]) for e in self.elements if e[0] not in ("script", "style")]
        return re.sub(r"\s+", " ", " ".join(shown))


BOTH = ("fr-en", "de-en", "sw-en", "ar-en", "en-fr", "en-sw", "en-ar")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / m, m, BOTH, boost=b) for m, b in (("joint", 8), ("gradvac", 9.3))]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    infos = json.loads((runs[0] / "tasks.json").read_text())
    start = scores({t: infos[t] for t in ("fr-en", "en-fr")}, 1.0)
    out = tmp_path_factory.mktemp("out") / "deep" / "report.html"
    notes = ["One seed: it says nothing about which method is better."]
    return Page(write_report(out, runs, title="A & B", start=start, notes=notes))


def test_nothing_is_fetched_from_anywhere(page: Page) -> None:
    assert "://" not in page.source
    assert "@import" not in page.source
    for _, attributes, _ in page.elements:
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page.source))
    assert not page.of("image")


def test_every_reference_has_exactly_one_target(page: Page) -> None:
    ids = [a["id"] for _, a, _ in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = [(a.get("href") or "#")[1:] for _, a, _ in page.elements]
    used += re.findall(r"url\(#([^)]*)\)", page.source)
    assert {name for name in used if name} <= set(ids)


def test_the_script_is_the_one_the_page_allows(page: Page) -> None:
    ((_, script),) = page.of("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [
        a["content"] for a, _ in page.of("meta", **{"http-equiv": "Content-Security-Policy"})
    ]
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy


def test_what_was_compared_is_said_first(page: Page) -> None:
    head = page.text[: page.text.index("Scores")]
    for words in (
        "A & B",
        "joint (joint training)",
        "gradvac (GradVac)",
        "One seed: it says nothing",
    ):
        assert words in head
    assert "400 of 400" in page.text
    assert "GradVac, all_layer, tasks all, beta 0.01" in page.text


def cells(page: Page, row: str, table: int) -> list[str]:
    """Numbers of the row that begins with a header ending in ``row`` in the n-th table."""
    seen, found, active = -1, [], False
    for tag, attributes, text in page.elements:
        seen += tag == "table"
        if tag == "th":
            active = seen == table and attributes.get("scope") == "row" and "".join(text) == row
        if active and tag == "td":
            found.append("".join(text))
    return found


def test_averages_are_those_of_the_scores(page: Page, runs: list[Path]) -> None:
    each = json.loads((runs[1] / "scores.json").read_text())["directions"]
    columns = [BOTH[:4], BOTH[4:], ("fr-en", "de-en", "en-fr"), BOTH[2:4] + BOTH[5:]]
    expected = [
        f"{sum(each[t][m] for t in names) / len(names):.1f}"
        for m in ("chrf", "bleu")
        for names in columns  # any to English, English to any, high, low
    ]
    assert cells(page, "gradvac", 1) == expected
    assert cells(page, "starting model", 1)[3] == "\N{EN DASH}"
    assert "starting model: averages over the 2 of 7 directions" in page.text


def test_directions_are_ordered_by_side_and_family_with_every_score(
    page: Page, runs: list[Path]
) -> None:
    labels = [
        text.strip() for a, text in page.of("th", scope="row") if "\N{RIGHTWARDS ARROW}" in text
    ]
    codes = [text for _, text in page.of("code") if "-" in text]
    assert codes[:7] == ["fr-en", "de-en", "sw-en", "ar-en", "en-fr", "en-sw", "en-ar"]
    assert labels[0].startswith("French")
    table = [json.loads((r / "scores.json").read_text())["directions"]["sw-en"] for r in runs]
    chrf, bleu = ([f"{d[m]:.1f}" for d in table] for m in ("chrf", "bleu"))
    dash = "\N{EN DASH}"
    row = [dash, *chrf, dash, *bleu, "900", "low", "Benue-Congo"]
    assert cells(page, "Swahili \N{RIGHTWARDS ARROW} English ", 3) == row


def test_only_the_mean_heat_map_shows_until_another_group_is_chosen(page: Page) -> None:
    options = [text for _, text in page.of("option")]
    assert options == ["Mean of all groups", "Whole model as one vector", *GROUPS]
    maps = [a for a, _ in page.of("figure", class_="wide")]
    assert len(maps) == len(options)
    assert ["hidden" in a for a in maps] == [False] + [True] * (len(options) - 1)
    (label,) = [a for a, _ in page.of("label")]
    assert "hidden" in label  # a script that can swap the maps shows it


def test_edits_are_counted_in_words(page: Page, runs: list[Path]) -> None:
    frames = list(GramRecord(runs[1] / "geometry"))
    compared, edits, pcgrad = (
        sum(sum(getattr(f, name)) for f in frames)
        for name in ("comparisons", "edits", "pcgrad_edits")
    )
    assert f"compared {compared:,} ordered pairs" in page.text
    assert f"edited {edits:,} of them ({100 * edits / compared:.1f}%)" in page.text
    assert f"would have edited {pcgrad:,} on the same" in page.text
    assert f"That is {edits / pcgrad:.1f} edits to one" in page.text


def test_samples_carry_language_and_direction(page: Page) -> None:
    arabic = page.of("dd", lang="ar")
    assert {a["dir"] for a, _ in arabic} == {"rtl"}
    assert {a["dir"] for a, _ in page.of("dd", lang="sw")} == {"ltr"}
    assert "Sentence number 2: save the {} file before closing the window by joint" in page.text
    assert "Sentence number 2: save the {} file before closing the window by gradvac" in page.text
    assert len(page.of("dl", class_="sample")) == 5 * len(BOTH)


def test_how_to_run_it_again_and_what_scored_it(page: Page) -> None:
    assert "gradvac train" in page.text
    assert "gradvac/recipe.yaml --run" in page.text
    assert "BLEU: BLEU|nrefs:1|tok:13a" in page.text


def test_the_same_folders_give_the_same_bytes(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "run")]
    one, two = (
        write_report(tmp_path / name, runs, title="t").read_bytes() for name in ("a.html", "b.html")
    )
    assert one == two


def test_samples_are_spread_over_the_test_set() -> None:
    assert spread(100, 5) == [10, 30, 50, 70, 90]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(0, 5) == []


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    name = EVIL.replace("/", "")
    run = make_run(tmp_path / f"run {name}", "gradvac", ("fr-en", "sw-en"), suffix=EVIL)
    infos = json.loads((run / "tasks.json").read_text())
    infos[EVIL] = {"pairs": 3, "level": EVIL, "family": EVIL}
    write_json(run / "tasks.json", infos)
    tree = json.loads((run / "scores.json").read_text())
    tree["signatures"] = {EVIL: EVIL}
    tree["directions"][EVIL] = {"bleu": 1.0, "chrf": 1.0}
    write_json(run / "scores.json", tree)
    page = Page(write_report(tmp_path / "r.html", [run], title=EVIL, notes=[EVIL]))
    assert len(page.of("script")) == 1
    assert "alert" not in page.of("script")[0][1]
    assert page.text.count(EVIL) > 30


def test_runs_without_scores_record_or_metrics_are_said_to_have_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "fresh")
    for left in ("scores.json", "translations.jsonl", "metrics.jsonl"):
        (run / left).unlink()
    shutil.rmtree(run / "geometry")
    page = Page(write_report(tmp_path / "r.html", [run], title="t"))
    for words in (
        "fresh has no scores yet: gradvac evaluate writes them.",
        "fresh has no training log yet.",
        "fresh has no record of gradients of two or more tasks yet.",
        "No run edited gradients on record.",
        "No translations yet",
        "0 of 400",
    ):
        assert words in page.text


def test_a_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "growing")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')
    Page(write_report(tmp_path / "r.html", [run], title="t"))


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\x1cb"])
def test_a_line_ends_only_where_json_lines_do(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path / "run", tasks=("fr-en", "sw-en"))
    line = {"direction": "fr-en", "source": text, "reference": "r", "hypothesis": "h"}
    write_lines(run / "translations.jsonl", [line])
    assert text in write_report(tmp_path / "r.html", [run], title="t").read_text(encoding="utf-8")


def cut(name: str, text: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("metrics.jsonl", '{"kind": "train", "step": 1, "nll": 2}\nx\n'), r"metrics\.jsonl:2"),
        (cut("translations.jsonl", "{}\n"), r"translations\.jsonl:1.*direction, source"),
        (cut("scores.json", "{"), r"scores\.json: not readable JSON"),
        (cut("scores.json", "[]"), r"scores\.json: holds a list"),
        (cut("scores.json", "{}"), r"scores\.json: no scores: run gradvac evaluate"),
        (cut("tasks.json", "{"), r"tasks\.json: not the task list"),
        (cut("geometry/frames.jsonl", "x\n"), r"frames\.jsonl:1"),
        (cut("model.json", "{}"), r"model\.json: not the shape"),
        (lambda run: (run / "recipe.yaml").unlink(), "not a run folder"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    run = make_run(tmp_path / "run")
    damage(run)
    with pytest.raises(RunError, match=message):
        write_report(tmp_path / "r.html", [run], title="t")


def test_runs_of_the_same_name_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / parent / "run", "joint") for parent in ("one", "two")]
    page = Page(write_report(tmp_path / "r.html", runs, title="t"))
    assert "one/run (joint training), two/run (joint training)" in page.text
