"""A corpus is built from packages that the test wrote, through an apt that the test wrote."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from gradvac.corpus.assemble import Split
from gradvac.corpus.debian import Plan, build_debian
from gradvac.errors import CorpusError
from gradvac.text.cleaning import text_key
from gradvac.text.heldout import NEAR, bag, jaccard
from tests.corpus.helpers import fake_apt, mo, xpi

ENGLISH = "the file was saved by this program before user could open another window again".split()
FRENCH = (
    "le fichier fut enregistré par ce logiciel avant que vous ouvriez une fenêtre neuve".split()
)
HINDI = "फ़ाइल यह प्रोग्राम सहेजा गया था उपयोगकर्ता खिड़की खोल सकता पहले नई".split()

COPYRIGHT = b"""\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
License: GPL-2+
"""


def sentence(words: list[str], seed: object, count: int = 7) -> str:
    """A fixed order of some words: distinct seeds rarely give near-duplicates."""
    chosen = random.Random(f"{seed}").sample(words, count)
    return " ".join(chosen)


def catalogue(name: str, words: list[str], count: int) -> bytes:
    """Messages of a program in one language; English is the same in all of them."""
    return mo(
        {
            f"{sentence(ENGLISH, (name, n))} {chr(97 + n % 26) * 3}": sentence(words, (name, n))
            for n in range(count)
        }
    )


def locale(code: str, name: str) -> str:
    return f"usr/share/locale/{code}/LC_MESSAGES/{name}.mo"


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    packages = {
        f"prog{n}": {
            locale("fr", f"prog{'abcdefgh'[n]}"): catalogue(f"p{n}", FRENCH, 24),
            locale("hi", f"prog{'abcdefgh'[n]}"): catalogue(f"p{n}", HINDI, 15),
            f"usr/share/doc/prog{n}/copyright": COPYRIGHT if n else b"Copyright by them.",
        }
        for n in range(8)
    }
    packages["broken"] = {
        locale("fr", "broken"): b"\xde\x12\x04\x95 cut short",
        locale("hi", "broken"): mo({"Open the file now please": "Open the file now please"}),
    }
    packages["short"] = {locale("zu", "short"): mo({"Open": "Vula"})}
    packages["firefox-esr"] = {
        "usr/lib/firefox-esr/omni.ja": xpi(
            {"localization/en-US/a.ftl": "hello = Welcome to your new { $name } browser\n"}
        )
    }
    packages["firefox-esr-l10n-fr"] = {
        "usr/lib/firefox-esr/langpack-fr@firefox-esr.mozilla.org.xpi": xpi(
            {"localization/fr/a.ftl": "hello = Bienvenue dans votre nouveau navigateur { $name }\n"}
        )
    }
    programs = fake_apt(tmp_path, packages)
    archive = tmp_path / "archive"
    (archive / "Translation-en").write_text(
        "Package: tool\nDescription-md5: 77\nDescription-en: small tool for large files\n"
        " It reads what others wrote.\n .\n It also writes what others read.\n\n"
    )
    (archive / "Translation-fr").write_text(
        "Package: tool\nDescription-md5: 77\nDescription-fr: petit outil pour grands fichiers\n"
        " Il lit ce que les autres ont écrit.\n .\n Il écrit aussi ce que les autres lisent.\n\n"
    )
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return archive


PLAN = Plan(("fr", "hi"), "full", Split(rows=200, share=0.3))


def build(tmp_path: Path, name: str = "out", jobs: int = 1) -> Path:
    out = tmp_path / name
    build_debian(out, PLAN, tmp_path / "cache", jobs, False, lambda *_: None)
    return out


def columns(file: Path) -> list[dict[str, str]]:
    header, *lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_a_corpus_from_packages(tmp_path: Path, apt: Path) -> None:
    out = build(tmp_path)
    manifest = json.loads((out / "manifest.json").read_text())
    report = json.loads((out / "report.json").read_text())
    train = {code: columns(out / "train" / f"en-{code}.tsv") for code in ("fr", "hi")}
    held = {part: columns(out / f"{part}.tsv") for part in ("valid", "test")}

    # What each kind of source says, with its placeholders.
    everything = [*train["fr"], *held["valid"], *held["test"]]
    pairs = {row["en"]: row["fr"] for row in everything}
    assert pairs["Welcome to your new {} browser"] == "Bienvenue dans votre nouveau navigateur {}"
    assert pairs["It also writes what others read."] == "Il écrit aussi ce que les autres lisent."

    # Sources, with their licences; problems named and counted.
    sources = {source["package"]: source for source in manifest["sources"]}
    assert sources["prog1"]["licence"] == ["GPL-2+"]
    assert sources["prog0"]["licence"] == "see copyright"
    assert (out / "copyright" / "prog0").read_text() == "Copyright by them."
    assert len(sources["prog1"]["sha256"]) == 64
    assert any("broken" in problem and "fr" in problem for problem in report["problems"])
    assert report["left_out"]["translation in another script"]["languages"] == {"hi": 1}
    assert manifest["pairs"]["train"] == {code: len(rows) for code, rows in train.items()}

    # No leak: by letters, by words, by translation; and valid and test share nothing.
    assert len(held["valid"]) > 5 and len(held["test"]) > 5
    for part, other in (("valid", "test"), ("test", "valid")):
        for row in held[part]:
            against = [*train["fr"], *train["hi"], *held[other]]
            assert all(jaccard(bag(row["en"]), bag(x["en"])) < NEAR for x in against)
            assert all(text_key(row["en"]) != text_key(x["en"]) for x in against)
            for code in ("fr", "hi"):
                keys = {text_key(x.get(code, "")) for x in against if x.get(code)}
                assert not row[code] or text_key(row[code]) not in keys


def test_any_number_of_processes_builds_the_same(tmp_path: Path, apt: Path) -> None:
    one, two = build(tmp_path, "one", 1), build(tmp_path, "two", 2)
    for file in ("valid.tsv", "test.tsv", "train/en-fr.tsv", "train/en-hi.tsv", "manifest.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_the_same_command_goes_on(
    tmp_path: Path, apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradvac.corpus.debian as debian

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(debian, "assemble", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path)
    assert not (tmp_path / "out").exists()
    read = sorted((tmp_path / "cache" / "pairs").iterdir())
    times = [file.stat().st_mtime_ns for file in read]
    (apt / "log").unlink()
    build(tmp_path)
    assert [file.stat().st_mtime_ns for file in read] == times
    assert "download" not in (apt / "log").read_text()
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    build(tmp_path)
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before


def test_what_is_there_already_is_never_overwritten(tmp_path: Path, apt: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(CorpusError, match="not a corpus folder"):
        build(tmp_path)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_a_download_that_differs_from_the_index_is_refused(tmp_path: Path, apt: Path) -> None:
    file = apt / "prog3.deb"
    file.write_bytes(file.read_bytes()[:-10] + b"0123456789")
    with pytest.raises(CorpusError, match="prog3: what apt downloaded has not the SHA-256"):
        build(tmp_path)
    assert not (tmp_path / "out").exists()


def test_languages_without_text_are_named(tmp_path: Path, apt: Path) -> None:
    plan = Plan(("fr", "zu"), "full", Split(rows=200, share=0.3))
    build_debian(tmp_path / "out", plan, tmp_path / "cache", 1, False, lambda *_: None)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "zu: no training pair" in report["problems"]
    for code, message in (("zu", "no pair in zu came out of 2 sources"), ("mr", "no package that")):
        nothing = Plan((code,), "full", Split(rows=200, share=0.3))
        with pytest.raises(CorpusError, match=message):
            build_debian(tmp_path / "none", nothing, tmp_path / "cache", 1, False, lambda *_: None)
    assert not (tmp_path / "none").exists()


def test_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusError, match="a system with apt is needed"):
        build(tmp_path)
