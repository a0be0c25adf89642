"""Readers, cleaning and splitting of the corpus builder, on inputs written by hand."""

import io
import lzma
import random
import struct
import tarfile
import zlib
from pathlib import Path

import polib
import pytest

from gradvac.text.messages import clean, rejection, sentence_pairs, sentences
from tools.corpus import sources as corpus_sources
from tools.corpus.__main__ import (
    NearDuplicates,
    choose_evaluation,
    clean_pairs,
    earlier_evaluation,
    gather,
    hash_of,
    shipped_rows,
    split_key,
    training_rows,
    tsv,
    write_shipped,
)
from tools.corpus.sources import (
    LANGUAGES,
    Language,
    read_fluent,
    read_help_page,
    read_jar,
    read_mo,
    read_package,
    read_properties,
)

GERMAN = next(language for language in LANGUAGES if language.code == "de")


def optimised_jar(files: dict[str, bytes], packed: bool) -> bytes:
    """A zip as Mozilla lays it out: length word, central directory, end record, then the files."""
    bodies = {name: zlib.compress(body)[2:-4] if packed else body for name, body in files.items()}
    directory_size = sum(46 + len(name) for name in files)
    offset = 4 + directory_size + 22
    directory, contents = b"", b""
    for name, body in bodies.items():
        common = struct.pack(
            "<HHHHHIIIHH", 20, 0, 8 if packed else 0, 0, 0, 0, len(body), len(files[name]),
            len(name), 0,
        )  # fmt: skip
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common
        directory += struct.pack("<HHHII", 0, 0, 0, 0, offset + len(contents)) + name.encode()
        contents += b"PK\x03\x04" + common + name.encode() + body
    end = b"PK\x05\x06" + struct.pack(
        "<HHHHIIH", 0, 0, len(files), len(files), directory_size, 4, 0
    )
    return struct.pack("<I", len(contents)) + directory + end + contents


@pytest.mark.parametrize("packed", [True, False])
def test_jar_with_its_central_directory_first(packed: bool) -> None:
    files = {
        "localization/de/a.ftl": b"hello = Hallo\n",
        "skip.css": b"x",
        "b.properties": b"a=b\n",
    }
    found = dict(read_jar(optimised_jar(files, packed)))
    assert found == {"localization/de/a.ftl": b"hello = Hallo\n", "b.properties": b"a=b\n"}


def test_what_is_no_jar_is_refused() -> None:
    with pytest.raises(ValueError, match="not a zip archive"):
        list(read_jar(b"PK nothing here"))


FLUENT = """\
### a comment = not a message
-brand-short-name = Firefox
open-file = Open the file
    .title = Opens a
        file
    .accesskey = O
# Variables:
tabs-count =
    { $count ->
        [one] One tab
       *[other] { $count } tabs
    }
long = First line
    and the second
"""


def test_fluent_messages_attributes_and_continuations() -> None:
    assert read_fluent(FLUENT) == {
        "-brand-short-name": "Firefox",
        "open-file": "Open the file",
        "open-file.title": "Opens a file",
        "open-file.accesskey": "O",
        "long": "First line and the second",
    }


def test_properties_escapes_and_continuations() -> None:
    text = "# note\nsave = Datei \\u00f6ffnen\nlong=one \\\n   two\n! also = note\n"
    assert read_properties(text) == {"save": "Datei öffnen", "long": "one two"}


HELP = """\
<h1 id="hd_1" dir="auto"><a name="x"></a>Macro &amp; Security</h1>
<p id="par_1" class="paragraph" dir="auto">Open <span class="switchinline"><span hidden="true"
id="MAC_1" class="MAC"><span class="emph">LibreOffice - Preferences</span></span><span
hidden="true" id="default_1"><span class="emph">Tools<br>- Options</span></span></span> now.</p>
<p id="par_2" class="code">Dim x</p>
<p class="related">no id</p>
"""


def test_help_page_keeps_what_most_readers_see() -> None:
    assert read_help_page(HELP) == {
        "hd_1": "Macro & Security",
        "par_1": "Open Tools - Options now.",
    }


def test_mo_catalogue_written_by_polib() -> None:
    catalogue = polib.MOFile()
    catalogue.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
    catalogue.append(polib.MOEntry(msgid="Save file", msgstr="Datei speichern", msgctxt="a|b"))
    catalogue.append(
        polib.MOEntry(msgid="%1 row", msgid_plural="%1 rows", msgstr_plural={0: "Zeile", 1: "X"})
    )
    assert read_mo(catalogue.to_binary()) == {"Save file": "Datei speichern", "%1 row": "Zeile"}


@pytest.mark.parametrize(
    ("raw", "catalogue", "expected"),
    [
        ("~Save As...", True, "Save As..."),
        ("Pa_ste Special", True, "Paste Special"),
        ("名前(~N) here", True, "名前 here"),
        ("&Yes, really &amp; truly", False, "Yes, really & truly"),
        ("a file_name stays", False, "a file_name stays"),
        ("Delete %s of %1$S?", False, "Delete {} of {}?"),
        ('Share { $url } with { -brand-short-name(case: "gen") }', False, "Share {} with {}"),
        ("Loading $(ARG1) from %FILENAME", True, "Loading {} from {}"),
        ("Restart %PRODUCTNAME now", True, "Restart LibreOffice now"),
        ("50% of 100%% done", False, "50% of 100% done"),
        ('Read <a data-l10n-name="x">more</a>\u00a0\n about it', False, "Read more about it"),
        ("cafe\u0301 \u2068{ $n }\u2069", False, "café {}"),
        ('Use { "{" } here', False, "Use { here"),
    ],
)
def test_cleaning(raw: str, catalogue: bool, expected: str) -> None:
    assert clean(raw, catalogue) == expected


def test_sentences_end_where_a_new_one_begins() -> None:
    assert sentences('Use e.g. Writer. "Click" it. 3.5 is fine.') == [
        "Use e.g. Writer.",
        '"Click" it. 3.5 is fine.',
    ]
    assert sentences("यह एक है। वह दो है।") == ["यह एक है।", "वह दो है।"]


def test_paragraphs_are_paired_by_sentence_only_if_both_split_alike() -> None:
    assert list(sentence_pairs("Open it. Close it.", "Öffnen. Schließen.")) == [
        ("Open it.", "Öffnen."),
        ("Close it.", "Schließen."),
    ]
    whole = ("Open it. Close it.", "Öffnen und schließen.")
    assert list(sentence_pairs(*whole)) == [whole]


@pytest.mark.parametrize(
    ("english", "translation", "code", "why"),
    [
        ("Open the file", "Öffnen Sie die Datei", "de", None),
        ("Open file {}", "Datei {} öffnen", "de", "fewer than 3 English words"),
        ("Open the file", "", "de", "empty translation"),
        ("Open the file {}", "Öffnen Sie die Datei", "de", "placeholders differ"),
        ("Open the file 2023", "Öffnen Sie die Datei 2024", "de", "numbers differ"),
        ("Open the file", "Öffnen die <b", "de", "code or leftover markup"),
        ("Open the file", "Open the file", "de", "left in English"),
        ("Open the file now", "Open the Datei now", "de", "left in English"),
        ("Open the file", "Откройте файл", "ru", None),
        ("Open the file", "Otkroite etot fail", "ru", "translation in another script"),
        ("Open the file", "Öffnen Откройте", "de", "translation in another script"),
        ("Open the file", "Öffnen Sie bitte " + "sehr " * 20, "de", "lengths implausible"),
        ("word " * 100, "Wort " * 100, "de", "longer than 400 characters"),
    ],
)
def test_reasons_to_reject(english: str, translation: str, code: str, why: str | None) -> None:
    assert rejection(english, translation, code) == why


def test_split_key_is_letters_and_vowel_signs_only() -> None:
    assert split_key("Insert {} Table-2…") == split_key("insert table")
    assert split_key("Straße") == split_key("STRASSE")
    assert split_key("कि") != split_key("का")


def test_near_duplicates_agree_with_all_pairs() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefg", k=draw.randint(1, 6))) for _ in range(60)]
    index = NearDuplicates()
    for text in texts[:30]:
        index.add(text)
    for text in texts[30:]:
        bag = set(text.split())
        bags = [set(other.split()) for other in texts[:30]]
        assert index.has(text) == any(
            5 * len(bag & other) >= 4 * len(bag | other) for other in bags
        )


def test_near_duplicates_at_exactly_four_fifths() -> None:
    index = NearDuplicates()
    index.add("one two three four five")
    assert index.has("Four THREE two one")
    assert not index.has("one two three")


def package(texts: dict[str, str]) -> dict[str, object]:
    return {"texts": texts, "version": "1", "sha256": "0" * 64}


def test_gather_takes_the_first_translation_of_an_english_string() -> None:
    packages = {
        "libreoffice-help-en-us": package({"a": "Open the file.", "b": "Close the file."}),
        "libreoffice-help-de": package({"a": "Öffnen Sie die Datei.", "gone": "Weg damit, bitte."}),
        "libreoffice-l10n-de": package(
            {"~Open the file.": "~Datei öffnen, bitte.", "Save the file": "Datei speichern"}
        ),
    }
    rows, dropped = gather([GERMAN], packages)
    assert rows == {
        "Open the file.": {"de": "Öffnen Sie die Datei."},
        "Save the file": {"de": "Datei speichern"},
    }
    assert dropped["de"] == {"English string seen before": 1}


def test_pairs_need_the_english_twin() -> None:
    packages = {
        "firefox-esr": package({"x|a": "Open { $file }"}),
        "firefox-esr-l10n-de": package({"x|a": "{ $file } öffnen", "x|b": "Weg"}),
    }
    found = list(clean_pairs("firefox-esr-l10n-de", packages))
    assert found == [("Open {}", "{} öffnen")]


def rows_of(*english: str) -> dict[str, dict[str, str]]:
    return {text: {"de": f"d {text}", "fr": f"f {text}"} for text in english}


def test_evaluation_is_complete_long_enough_and_without_near_duplicates() -> None:
    rows = rows_of(
        "the quick brown fox", "fox brown quick the", "three short words", "a b c d e", "f g h i"
    )
    rows["only in one language"] = {"de": "nur in einer Sprache"}
    valid, test = choose_evaluation(rows, ["de", "fr"], wanted=10)
    chosen = {*valid, *test}
    assert len(chosen & {"the quick brown fox", "fox brown quick the"}) == 1
    assert chosen >= {"a b c d e", "f g h i"} and len(chosen) == 3
    again = choose_evaluation(dict(reversed(rows.items())), ["de", "fr"], wanted=10)
    assert again == (valid, test)


def test_evaluation_strings_differ_in_every_language() -> None:
    rows = {
        "a b c d": {"de": "Gleich!"},
        "e f g h": {"de": "gleich"},
    }
    valid, test = choose_evaluation(rows, ["de"], wanted=10)
    assert len(valid) + len(test) == 1


def test_nothing_held_out_leaks_into_training() -> None:
    held = "Insert the table into the page"
    rows = {
        held: {"de": "Tabelle einfügen"},
        "Insert ~ the table 2 into the page...": {"de": "x"},
        "Insert the table into this page the": {"de": "y"},  # Jaccard 5/6
        "Put a table there": {"de": "Tabelle einfügen!", "fr": "Mettre"},
        "Add a table here": {"de": "tabelle einfügen"},
        "Something else again": {"de": "Anders"},
    }
    kept, dropped = training_rows(rows, {held: rows[held]})
    assert kept == {"Put a table there": {"fr": "Mettre"}, "Something else again": {"de": "Anders"}}
    assert dropped == {
        "English key held out (rows)": 2,
        "English near-duplicate of a held-out string (rows)": 1,
        "translation's key held out (pairs)": 2,
    }


def test_evaluation_text_of_an_earlier_build_stays_out_of_training(tmp_path: Path) -> None:
    """Newer packages may have lost a held-out string, or translate it otherwise."""
    valid = {"Insert the table into the page": {"de": "Tabelle einfügen"}}  # not in French
    test = {"Move the picture to the front": {"de": "Bild vor", "fr": "Devant"}}
    for name, part in (("valid", valid), ("test", test)):
        packed = lzma.compress(tsv(part, part, ["de", "fr"]).encode())
        (tmp_path / f"{name}.tsv.xz").write_bytes(packed)
    assert earlier_evaluation(tmp_path) == (valid, test)
    rows = {
        "Insert the table into the page": {"de": "Die Tabelle hinein"},
        "Put the picture first": {"de": "Bild vor!", "fr": "En tête"},
    }
    kept, _ = training_rows(rows, valid | test)
    assert kept == {"Put the picture first": {"fr": "En tête"}}


def test_short_strings_are_kept_if_asked_for() -> None:
    packages = {"libreoffice-l10n-de": package({"Open": "Öffnen", "Open the file": "Datei öffnen"})}
    assert list(gather([GERMAN], packages)[0]) == ["Open the file"]
    assert list(gather([GERMAN], packages, min_words=1)[0]) == ["Open", "Open the file"]


def test_poor_languages_keep_all_their_rows() -> None:
    rows = {f"{chr(97 + i)} {chr(97 + j)}": {"de": "x"} for i in range(20) for j in range(20)}
    poor = list(rows)[::25]
    for english in poor:
        rows[english]["xh"] = "y"
    kept = shipped_rows(rows, 0.5)
    assert set(poor) <= set(kept)
    by_hash = {english for english in rows if hash_of(split_key(english)) < 2**63}
    assert set(kept) == by_hash | set(poor)
    assert 0.4 < len(by_hash) / len(rows) < 0.6


def test_files_are_tables_with_a_header(tmp_path: Path) -> None:
    rows = {"one two": {"de": "eins zwei"}, "three": {"fr": "trois"}}
    table = tsv(rows, rows, ["fr", "de"])
    assert table == "en\tfr\tde\none two\t\teins zwei\nthree\ttrois\t\n"
    sizes = write_shipped(tmp_path, {"train": table}, {"firefox-esr": package({})})
    assert lzma.decompress((tmp_path / "train.tsv.xz").read_bytes()).decode() == table
    assert sizes == {"train": (tmp_path / "train.tsv.xz").stat().st_size}
    sources = (tmp_path / "SOURCES.tsv").read_text(encoding="utf-8").splitlines()
    assert sources[1:] == ["\t".join(["firefox-esr", "1", "0" * 64, "MPL-2.0"])]


def test_keys_of_a_package_agree_with_its_english_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    english = {"chrome/en-US/locale/en-US/global/x.properties": b"a=Open\n"}
    german = {"browser/chrome/de/locale/de/global/x.properties": b"a=Auf\n"}
    jars = {
        "./usr/lib/firefox-esr/omni.ja": optimised_jar(english, packed=True),
        "./usr/lib/firefox-esr/de.xpi": optimised_jar(german, packed=True),
    }
    for path, jar in jars.items():
        monkeypatch.setattr(corpus_sources, "_files", lambda deb, one=(path, jar): iter([one]))
        assert set(read_package(tmp_path / "any.deb")) == {"global/x.properties|a"}


def test_package_names_follow_each_project() -> None:
    spanish = Language("es", "Spanish", "Romance", mozilla="es-es")
    assert spanish.packages() == [
        "libreoffice-help-es",
        "libreoffice-l10n-es",
        "firefox-esr-l10n-es-es",
        "thunderbird-l10n-es-es",
    ]


def test_files_come_out_of_a_package_unpacked_by_dpkg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand in for dpkg-deb with a script that prints a tar, so no Debian is needed."""
    page = b'<p id="par_1" class="paragraph">Some text</p>'
    archive = tmp_path / "files.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("./usr/help/de/text/swriter/x.html", "./usr/help/de/other.css"):
            member = tarfile.TarInfo(name)
            member.size = len(page)
            tar.addfile(member, io.BytesIO(page))
    script = tmp_path / "dpkg-deb"
    script.write_text(f'#!/bin/sh\ncat "{archive}"\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert read_package(tmp_path / "any.deb") == {"swriter/x.html|par_1": "Some text"}
