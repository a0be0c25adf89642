"""Cleaning a corpus folder: what each filter removes, and what is refused by name."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gradvac.corpus import clean as module
from gradvac.corpus.clean import CleaningPlan, clean_folder
from gradvac.errors import CorpusError
from gradvac.text.cleaning import CleaningRules
from gradvac.text.filters import PairFilter
from tests.corpus.published import pairs

ENGLISH = """
The children were playing in the garden behind the old house yesterday.
We shall meet at the railway station before the last train leaves.
Nobody knew why the library had been closed for so many weeks.
Please send me the report as soon as you have finished it.
A strong wind blew the leaves across the empty street all night.
The doctor said that my brother should rest for several days.
""".strip().splitlines()
GERMAN = """
Die Kinder spielten gestern im Garten hinter dem alten Haus.
Wir treffen uns am Bahnhof, bevor der letzte Zug abfährt.
Niemand wusste, warum die Bibliothek so viele Wochen geschlossen war.
Bitte schicken Sie mir den Bericht, sobald Sie damit fertig sind.
Ein starker Wind wehte die Blätter die ganze Nacht über die leere Straße.
Der Arzt sagte, dass mein Bruder sich einige Tage ausruhen sollte.
""".strip().splitlines()
GOOD = list(zip(ENGLISH, GERMAN, strict=True))
PLAN = CleaningPlan()
COPY = "target repeats the source"


def corpus(folder: Path, rows: list[tuple[str, str]], header: str = "en\tde") -> Path:
    (folder / "train").mkdir(parents=True)
    lines = [header, *("\t".join(row) for row in rows)]
    (folder / "train" / "en-de.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(folder: Path, out: Path, plan: CleaningPlan = PLAN, jobs: int = 1) -> dict:
    clean_folder(folder, out, plan, jobs, lambda *_: None)
    return json.loads((out / "report.json").read_text())["files"]["en-de"]


def test_what_each_filter_removes(tmp_path: Path) -> None:
    held = ("The ship sailed across the wide ocean without any sailors", "Das Schiff segelte leer")
    bad = {
        "duplicate": GOOD[0],
        "near-duplicate": (ENGLISH[1].replace("last", "very last"), GERMAN[1]),
        "target copies source": (ENGLISH[2], ENGLISH[2]),
        "length ratio": ("Good morning to you", " ".join(GERMAN)),
        "de side in another script": ("What are you doing here today", "Что вы здесь делаете"),
        "de side in another language": (
            "I have never seen such a beautiful and quiet village.",
            "I have not ever looked at a village which was so pretty and so peaceful.",
        ),
        "target repeats the source": (
            "Open the settings of the browser window",
            "Open the settings of the browser fenster",
        ),
        "English side near a held-out one": (
            held[0] + " today",
            "Irgendein anderer deutscher Satz",
        ),
        "translation held out": ("An entirely different English sentence", held[1].upper() + "!"),
    }
    folder = corpus(tmp_path / "in", [*GOOD, *bad.values()])
    with (folder / "train" / "en-de.tsv").open("ab") as file:
        file.write(b"no tab\n\xff\tx\n" + b"a" * 200_000 + b"\tb\n")
    (folder / "test.tsv").write_text("en\tde\n" + "\t".join(held) + "\n", encoding="utf-8")
    report = run(folder, tmp_path / "out")
    assert report["left_out"] == {
        **dict.fromkeys(bad, 1),
        "wrong number of columns": 1,
        "invalid UTF-8": 1,
        "line too long": 1,
    }
    assert report["samples"]["translation held out"] == [list(bad["translation held out"])]
    kept = (tmp_path / "out" / "train" / "en-de.tsv").read_text(encoding="utf-8")
    assert kept == "en\tde\n" + "".join(f"{a}\t{b}\n" for a, b in GOOD)
    assert report["kept"] == len(GOOD)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("Barack Obama and Angela Merkel", "Barack Obama und Angela Merkel", None),
        ("Anna Berg, Peter Smith, Maria Garcia", "Anna Berg, Peter Smith, María Garcia", None),
        ("Firefox, Thunderbird and LibreOffice", "Firefox, Thunderbird et LibreOffice", None),
        ("Open the browser window", "Open the browser fenster", COPY),
        ("OPEN THE BROWSER WINDOW", "OPEN THE BROWSER FENSTER", COPY),
    ],
)
def test_names_are_no_sign_of_a_copy(source: str, target: str, reason: str | None) -> None:
    assert PairFilter("en", "de", CleaningRules()).reason(source, target) == reason


def test_pieces_and_processes_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(0)
    words = [[w for line in side for w in line.split()] for side in (ENGLISH, GERMAN)]
    rows = [tuple(" ".join(generator.sample(side, 6)) for side in words) for _ in range(300)]
    rows += generator.sample(rows, 60)
    folder = corpus(tmp_path / "in", rows)  # type: ignore[arg-type]
    plan = CleaningPlan(identify=False)
    whole = run(folder, tmp_path / "whole", plan)
    monkeypatch.setattr(module, "PIECE", 1000)
    pieces = run(folder, tmp_path / "pieces", plan, jobs=2)
    assert whole == pieces and whole["left_out"]["duplicate"] == 60
    one, two = (tmp_path / name / "train" / "en-de.tsv" for name in ("whole", "pieces"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (GOOD, "de\ten", "the columns are swapped: the header says de, en, the text is in en, de"),
        (GOOD, "en\tfr", "column 'fr' is in 'de'"),
        (GOOD, "one sentence", "allowed are two language codes"),
    ],
)
def test_columns_that_are_not_what_they_say(
    tmp_path: Path, rows: list[tuple[str, str]], header: str, message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        run(corpus(tmp_path / "in", rows, header), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("wrong", ["swapped", "shifted", "escaped"])
def test_columns_that_no_longer_belong_together(tmp_path: Path, wrong: str) -> None:
    rows = pairs("de", 0, 900)
    if wrong == "swapped":
        rows[500:] = [(b, a) for a, b in rows[500:]]
    elif wrong == "shifted":
        rows[500:] = [(rows[n][0], rows[n - 1][1]) for n in range(500, 900)]
    else:
        rows[7] = ("It &apos;s a house", "Das ist ein Haus")
    folder = corpus(tmp_path / "in", rows)
    if wrong == "escaped":
        run(folder, tmp_path / "out")
        (note,) = json.loads((tmp_path / "out" / "report.json").read_text())["problems"]
        assert "en-de.tsv: 1 rows have escapes of Moses" in note
        return
    told = r"en-de\.tsv:50\d: from about this line on"
    with pytest.raises(CorpusError, match=told):
        run(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_file_that_is_there_twice(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "in", GOOD)
    twin = (folder / "train" / "en-de.tsv").read_bytes().replace(b"en\tde", b"en\tnl", 1)
    (folder / "train" / "en-nl.tsv").write_bytes(twin)
    with pytest.raises(CorpusError, match=r"en-nl\.tsv: holds the same text as .*en-de\.tsv"):
        run(folder, tmp_path / "out")


def test_files_without_a_row_are_no_twins(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "in", GOOD)
    for code in ("fr", "nl"):
        (folder / "train" / f"en-{code}.tsv").write_text(f"en\t{code}\n")
    assert run(folder, tmp_path / "out")["kept"] == len(GOOD)
    problems = json.loads((tmp_path / "out" / "report.json").read_text())["problems"]
    assert [p.split("/")[-1] for p in problems] == [f"en-{c}.tsv: has no row" for c in ("fr", "nl")]


def test_no_corpus_folder_and_an_output_in_use(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="allowed is a corpus folder"):
        run(tmp_path, tmp_path / "out")
    folder = corpus(tmp_path / "in", GOOD)
    run(folder, tmp_path / "out")
    other = CleaningPlan(CleaningRules(max_words=20))
    with pytest.raises(CorpusError, match="holds another corpus"):
        run(folder, tmp_path / "out", other)
