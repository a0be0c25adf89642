import base64
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gradvac.errors import RunError
from gradvac.experiment.report import watch_report, write_report
from gradvac.experiment.report.samples import spread
from gradvac.experiment.view import numbers as geometry_numbers
from gradvac.experiment.view.run_view import load_runs
from gradvac.geometry.record import GramRecord
from tests.experiment.synthetic import GROUPS, make_run, scores, write_json, write_lines

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


@pytest.fixture(scope="module", autouse=True)
def quick_numbers() -> Iterator[None]:
    """What takes seconds has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry_numbers, "typological_distances", lambda codes: "no typology here")
        patch.setattr(geometry_numbers, "cophenetic_test", lambda values: (0.5, 0.5))
        yield


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
    for n, metric in enumerate(("chrf", "bleu"), 1):  # a table each
        means = [sum(each[t][metric] for t in names) / len(names) for names in columns]
        assert cells(page, "gradvac", n) == [f"{m:.1f}" for m in means]  # both sides, high, low
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
    for n, values in enumerate((chrf, bleu), 5):  # after four of averages
        row = ["\N{EN DASH}", *values, "900", "low", "Benue-Congo"]
        assert cells(page, "Swahili \N{RIGHTWARDS ARROW} English ", n) == row


def data_of(page: Page) -> dict:
    """What the heat map can show, unpacked: values [groups, windows, pairs] by granularity."""
    ((attributes, _),) = page.of("div", class_="explorer")
    data = json.loads(attributes["data-geometry"] or "")
    for source in data["sources"]:
        for one in source["granularities"]:
            flat = np.frombuffer(base64.b64decode(one["bytes"]), dtype="<i2")
            one["values"] = flat.reshape(len(one["groups"]), len(one["windows"]), -1)
    return data


def test_the_heat_map_holds_every_granularity_group_and_stretch_of_training(
    page: Page, runs: list[Path]
) -> None:
    data = data_of(page)
    (source,) = data["sources"]
    assert source["name"] == "recorded while training"
    names = [one["name"] for one in source["granularities"]]
    assert names == ["whole model", "encoder, decoder", "layers"]
    layers = source["granularities"][2]
    assert layers["groups"] == list(GROUPS)
    assert layers["windows"][:2] == ["steps 0 to 390", "steps 0 to 10"]
    assert len(layers["windows"]) == 25

    frames = list(GramRecord(runs[1] / "geometry"))
    arrow = "\N{RIGHTWARDS ARROW}"
    order = [BOTH.index(t.replace(arrow, "-")) for t in data["tasks"]]
    upper = np.triu_indices(len(order), 1)
    for g in range(len(GROUPS)):
        mean = np.mean([f.cosine()[g] for f in frames], axis=0)[np.ix_(order, order)]
        assert layers["values"][g, 0] / 10_000 == pytest.approx(mean[upper], abs=0.000051)
        first = np.mean([f.cosine()[g] for f in frames[:2]], axis=0)[np.ix_(order, order)]
        assert layers["values"][g, 1] / 10_000 == pytest.approx(first[upper], abs=0.000051)
    whole = [f.gram.sum(0) / np.sqrt(np.outer(*[np.diag(f.gram.sum(0))] * 2)) for f in frames]
    mean = np.mean(whole, axis=0)[np.ix_(order, order)]
    assert source["granularities"][0]["values"][0, 0] / 10_000 == pytest.approx(
        mean[upper], abs=0.000051
    )


def test_without_a_script_the_mean_of_the_whole_model_shows(page: Page) -> None:
    (controls,) = [a for a, _ in page.of("div", class_="controls")]
    assert "hidden" in controls
    data = data_of(page)
    first = data["sources"][0]["granularities"][0]["values"][0, 0, 0]
    shown = [text for _, text in page.of("text")]
    text = f"{first / 10_000:.{data['digits']}f}".replace("0.", ".").replace("-", "\N{MINUS SIGN}")
    assert shown.count(text) >= 2  # symmetric
    for name in ("source-1", "granularity-1", "group-1", "step-1"):
        assert page.of("label", for_=name)  # everything to choose has a label


def test_pairs_that_never_met_are_marked_as_unknown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "gradvac", ("fr-en", "sw-en", "de-en"))
    record = GramRecord(run / "geometry")
    frames = list(record)
    record.truncate(-1)
    for n, f in enumerate(frames):  # de-en only ever meets fr-en
        kept = [0, 1] if n % 2 else [0, 2]
        cut = np.ix_(range(len(GROUPS)), kept, kept)
        tasks = tuple(f.tasks[k] for k in kept)
        weights = f.weights[:, kept]
        record.append(dataclasses.replace(f, tasks=tasks, gram=f.gram[cut], weights=weights))
    data = data_of(Page(write_report(tmp_path / "r.html", [run], title="t")))
    names = [t.partition("\N{RIGHTWARDS ARROW}")[0] for t in data["tasks"]]
    pairs = [(names[i], names[j]) for i, j in zip(*np.triu_indices(3, 1), strict=True)]
    unknown = data["sources"][0]["granularities"][0]["values"][0, 0] == -32768
    assert [set(p) == {"de", "sw"} for p in pairs] == unknown.tolist()


def test_what_was_measured_comes_before_what_was_recorded(tmp_path: Path) -> None:
    from tests.experiment.figures.test_figures import BOTH as TASKS
    from tests.experiment.figures.test_figures import measure

    run = make_run(tmp_path / "run", "gradvac", TASKS)
    measure(run, TASKS)
    page = Page(write_report(tmp_path / "r.html", [run], title="t"))
    names = [source["name"] for source in data_of(page)["sources"]]
    assert names == ["measured on the same sentences", "recorded while training"]
    first = data_of(page)["sources"][0]["granularities"]
    assert [one["name"] for one in first] == [
        "whole model",
        "encoder, decoder",
        "layers",
        "matrices",
        "attentions and feed-forwards",
        "kinds of parameters",
        "parameters",
    ]
    assert first[0]["windows"] == ["steps 10 to 30", "step 10", "step 20", "step 30"]
    assert "not corrected for their number" in page.text


def test_conflicts_are_pairs_with_a_negative_cosine(page: Page, runs: list[Path]) -> None:
    frames = list(GramRecord(runs[1] / "geometry"))
    upper = np.triu_indices(len(BOTH), 1)
    negative = sum(int((f.gram[:, *upper] < 0).sum()) for f in frames)
    pairs = len(frames) * len(GROUPS) * len(upper[0])
    assert f"{negative:,} of {pairs:,} pairs of task gradients were in conflict" in page.text


def test_a_page_of_runs_in_progress_loads_itself_again_until_they_end(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "gradvac", BOTH[:4], steps=80)
    out = tmp_path / "r.html"
    pages: list[Page] = []

    def meanwhile(seconds: float) -> None:
        assert seconds == 7
        pages.append(Page(out))
        if len(pages) == 2:
            (run / "done.json").write_text("{}")

    said: list[str] = []
    watch_report(out, [run], title="t", seconds=7, say=said.append, sleep=meanwhile)
    assert len(pages) == 2
    again = [page.of("meta", **{"http-equiv": "refresh"}) for page in [*pages, Page(out)]]
    assert [[a["content"] for a, _ in found] for found in again] == [["7"], ["7"], []]
    assert "not corrected for their number" not in pages[0].text
    assert "not corrected for their number" in Page(out).text
    assert "written again every 7 s" in said[0]
    assert not out.with_name("r.html.new").exists()


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
    infos[EVIL] = {"pairs": 3, "level": "low", "family": EVIL}
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
        (cut("metrics.jsonl", '{"kind": "valid", "step": 1, "nll": 2}\nx\n'), r"metrics\.jsonl:2"),
        (cut("translations.jsonl", "{}\n"), r"translations\.jsonl:1: direction: Field required"),
        (cut("scores.json", "{"), r"scores\.json: Invalid JSON"),
        (cut("scores.json", "[]"), r"scores\.json: Input should be an object"),
        (cut("scores.json", "{}"), r"scores\.json: directions: Field required"),
        (cut("tasks.json", "{"), r"tasks\.json: Invalid JSON"),
        (cut("geometry/frames.jsonl", "x\n"), r"frames\.jsonl:1"),
        (cut("model.json", "{}"), r"model\.json: vocabulary_size: Field required"),
        (lambda run: (run / "recipe.yaml").unlink(), "not a run folder"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    run = make_run(tmp_path / "run")
    damage(run)
    with pytest.raises(RunError, match=message):
        write_report(tmp_path / "r.html", [run], title="t")


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["one/run", "two/run"], ["one", "two"]),
        (["s/joint/seed-1", "s/with/es/seed-1"], ["joint", "with/es"]),
        (["s/a/seed-1", "s/a/seed-2", "s/b/seed-1"], ["a/seed-1", "a/seed-2", "b/seed-1"]),
        (["s/run", "s/run/run"], [".", "run"]),
        (["one/joint", "two/gradvac"], ["joint", "gradvac"]),
    ],
)
def test_runs_are_told_apart_by_what_differs(tmp_path: Path, folders, names) -> None:
    runs = [make_run(tmp_path / folder, "joint") for folder in folders]
    assert [view.name for view in load_runs(runs)] == names
