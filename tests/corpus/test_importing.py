"""Published corpora become a corpus folder: every layout; evaluation text held out; faults."""

import bz2
import csv
import gzip
import json
import lzma
import random
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvac.corpus.importing.build import Options, import_corpus
from gradvac.errors import CorpusError, RecipeError
from gradvac.experiment.recipe.load import load_recipe
from tests.corpus import published
from tests.corpus.published import lines, sentence, write


def run(out: Path, *sources: Path, **options) -> tuple[dict, str]:
    said: list[str] = []
    options = {"check": False, **options}  # it costs a second
    manifest = import_corpus(sources, out, Options(**options), said.append)
    return manifest, "\n".join(said)


def pairs(file: Path) -> set[tuple[str, ...]]:
    header, *rows = (tuple(line.split("\t")) for line in file.read_text().splitlines())
    assert header[0] == "en"
    return set(rows)


def expected(numbers, code: str = "fr") -> set[tuple[str, ...]]:
    return {(sentence("en", n), sentence(code, n)) for n in numbers}


def refused(tmp_path: Path, match: str, *sources: Path, **options) -> None:
    with pytest.raises(CorpusError, match=match):
        run(tmp_path / "out", *sources, **options)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out.*"))


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for inner in sorted(folder.iterdir()):
            out.write(inner, inner.name)
    return file


def tarred(folder: Path, file: Path) -> Path:
    with tarfile.open(file, "w:gz") as out:
        out.add(folder, folder.name)
    return file


def test_moses_from_a_zip_with_its_papers(tmp_path):
    folder = published.moses(tmp_path / "m", range(40))
    write(folder / "LICENSE", "free\n")
    manifest, said = run(tmp_path / "out", zipped(folder, tmp_path / "opus.zip"))
    assert pairs(tmp_path / "out" / "train" / "en-fr.tsv") == expected(range(40))
    assert manifest["pairs"]["train"] == {"fr": 40}
    assert manifest["sources"][0]["name"] == str(tmp_path / "opus.zip")
    assert f"{tmp_path / 'opus.zip'}/News.en-fr.en" in said and "moses, train: en, fr" in said
    assert "LICENSE: no parallel text recognised" in said
    tree = yaml.safe_load((tmp_path / "out" / "corpus.yaml").read_text())
    assert tree == {"data": {"train": [{"path": "train/en-fr.tsv"}]}}
    assert not (tmp_path / "out" / "work").exists()


def test_the_data_of_a_recipe_are_found_wherever_the_folder_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Path("out"), published.moses(tmp_path / "m", range(40)))
    (tmp_path / "other").mkdir()
    shutil.move("out", "other/moved")
    monkeypatch.chdir("/")
    recipe = load_recipe(tmp_path / "other" / "moved" / "corpus.yaml", ["name=x"])
    (source,) = recipe.data.train
    assert source.path == str(tmp_path / "other" / "moved" / "train" / "en-fr.tsv")


def test_opus_100_in_a_tar(tmp_path):
    folder = tmp_path / "opus-100-corpus"
    for code in ("fr", "ru"):
        for part, numbers in (
            ("train", range(30)),
            ("dev", range(30, 35)),
            ("test", range(35, 42)),
        ):
            for side in ("en", code):
                stem = f"supervised/en-{code}/opus.en-{code}-{part}"
                write(folder / f"{stem}.{side}", lines(side, numbers))
    for side in ("fr", "ru"):
        write(folder / f"zero-shot/fr-ru/opus.fr-ru-test.{side}", lines(side, range(50, 53)))
    manifest, said = run(tmp_path / "out", tarred(folder, tmp_path / "opus-100.tar.gz"))
    assert manifest["pairs"]["train"] == {"fr": 30, "ru": 30}
    assert manifest["pairs"]["valid"] == {"fr": 5, "ru": 5}
    assert manifest["pairs"]["test"] == {"fr": 10, "ru": 10}  # zero-shot rows are in both
    assert "opus100, test: fr, ru" in said
    rows = (tmp_path / "out" / "test.tsv").read_text().splitlines()
    assert rows[0].split("\t") == ["en", "fr", "ru"]
    assert f"\t{sentence('fr', 50)}\t{sentence('ru', 50)}" in rows


def test_flores_ted_and_tmx_together_with_tags_of_their_own(tmp_path):
    sources = [
        published.flores(tmp_path / "flores", range(80, 85), "dev"),
        published.flores(tmp_path / "flores", range(90, 96), "devtest"),
        published.ted(tmp_path / "ted" / "all_talks_train.tsv", range(20)),
        published.tmx(tmp_path / "web.tmx", range(20, 50)),
    ]
    manifest, said = run(tmp_path / "out", *sources[1:])
    out = tmp_path / "out"
    assert pairs(out / "train" / "en-fr.tsv") == expected(range(50))
    assert pairs(out / "train" / "en-ru.tsv") == expected(range(0, 20, 2), "ru")
    assert manifest["pairs"]["valid"] == {"fr": 5, "ru": 5}
    assert manifest["pairs"]["test"] == {"fr": 6, "ru": 6}
    assert "flores, test: eng_Latn as en, fra_Latn as fr, rus_Cyrl as ru" in said
    assert "tmx, train: EN as en, FR-fr as fr" in said


def test_test_sets_of_wmt_in_both_forms(tmp_path):
    published.sgml(tmp_path / "s", range(6), "src", "en")
    published.sgml(tmp_path / "s", range(6), "ref", "fr")
    published.wmt_xml(tmp_path / "s" / "wmttest2022.en-fr.xml", range(10, 14))
    manifest, _ = run(tmp_path / "out", tmp_path / "s")
    assert manifest["pairs"] == {"train": {}, "valid": {}, "test": {"fr": 10}}
    rows = pairs(tmp_path / "out" / "test.tsv")
    assert rows == expected(range(10, 14)) | {
        (f"{e} & co", f"{f} & co") for e, f in expected(range(6))
    }


@pytest.mark.parametrize("form", ["jsonl", "parquet", "datasets"])
def test_records(tmp_path, form):
    records = [{"eng_Latn": sentence("en", n), "fr-FR": sentence("fr", n)} for n in range(12)]
    source = tmp_path / f"data.{form}"
    if form == "jsonl":
        write(source, "".join(json.dumps({"id": 1, "translation": r}) + "\n" for r in records))
    elif form == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist([{"translation": r} for r in records]), source)
    else:
        datasets = pytest.importorskip("datasets")
        made = datasets.Dataset.from_list([{"id": "1", "translation": r} for r in records])
        datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(source)
    _, said = run(tmp_path / "out", source)
    kept = range(1 if form == "datasets" else 0, 12)  # the first is in the test split
    assert pairs(tmp_path / "out" / "train" / "en-fr.tsv") == expected(kept)
    assert f"{form}, train: eng_Latn as en" in said


def test_no_evaluation_text_in_training_equal_or_nearly_so(tmp_path):
    held = sentence("en", 3)
    near = held.replace(held.split()[0], f"{held.split()[0]} indeed", 1)
    rows = [
        (sentence("en", 1), sentence("fr", 1)),
        (held.upper() + "!", sentence("fr", 50)),  # the same letters
        (near, sentence("fr", 51)),  # one word more
        (sentence("en", 52), sentence("fr", 3)),  # the translation is held out
        (sentence("en", 60), sentence("fr", 60)),  # kept out by --keep-out
    ]
    train = write(tmp_path / "a.tsv", "en\tfr\n" + "".join(f"{e}\t{f}\n" for e, f in rows))
    test = write(tmp_path / "test.tsv", f"en\tfr\n{held}\t{sentence('fr', 3)}\n")
    valid = write(tmp_path / "dev.tsv", f"en\tfr\n{held}?\t{sentence('fr', 4)}\n")
    more = write(tmp_path / "other.tsv", f"en\tfr\n{sentence('en', 60)}\t{sentence('fr', 60)}\n")
    manifest, _ = run(tmp_path / "out", train, test, valid, keep_out=(more,))
    assert pairs(tmp_path / "out" / "train" / "en-fr.tsv") == {rows[0]}
    assert manifest["pairs"]["valid"] == {}  # it was in the test set
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    dropped = report["corpora"]["training rows"]["dropped"]
    assert {reason: found["count"] for reason, found in dropped.items()} == {
        "English side held out": 2,
        "English side near a held-out one": 1,
        "translation held out": 1,
    }
    assert report["corpora"]["valid"]["dropped"]["in test text"]["first"] == [f"{valid}:2"]


def test_tables_without_a_header_take_their_languages_from_the_name_or_the_user(tmp_path):
    text = "".join(f"{sentence('en', n)}\t{sentence('fr', n)}\n" for n in range(9))
    run(tmp_path / "a", write(tmp_path / "news.en-fr.tsv", text))
    run(tmp_path / "b", write(tmp_path / "news.tsv", text), languages=("en", "fr"))
    for name in "ab":
        assert pairs(tmp_path / name / "train" / "en-fr.tsv") == expected(range(9))
    refused(tmp_path, r"news\.tsv:1: 2 columns and no header .* --languages", tmp_path / "news.tsv")


@pytest.mark.parametrize("separator", [",", ";"])
def test_csv(tmp_path, separator):
    rows = [(f'{sentence("en", n)} "{n}"\n{separator} more', sentence("fr", n)) for n in range(30)]
    with (tmp_path / "web.csv").open("w", newline="") as out:
        csv.writer(out, delimiter=separator).writerows([("eng_Latn", "fr-FR"), *rows])
    _, said = run(tmp_path / "out", tmp_path / "web.csv")
    assert "csv, train: eng_Latn as en, fr-FR as fr" in said
    found = pairs(tmp_path / "out" / "train" / "en-fr.tsv")
    assert found == {(" ".join(a.split()), b) for a, b in rows}


def test_tsv_with_quoted_line_ends(tmp_path):
    rows = "".join(f'"{sentence("en", n)}\nand more"\t{sentence("fr", n)}\n' for n in range(30))
    table = write(tmp_path / "web.tsv", f"en\tfr\n{rows}")
    refused(tmp_path, r"web\.tsv:2: a cell in quotation marks goes on .*--quoted", table)
    run(tmp_path / "out", table, quoted=True)
    found = pairs(tmp_path / "out" / "train" / "en-fr.tsv")
    assert found == {(f"{a} and more", b) for a, b in expected(range(30))}


def test_escapes_of_moses(tmp_path):
    folder = published.moses(tmp_path / "m", range(40))
    file = folder / "News.en-fr.fr"
    file.write_text(file.read_text().replace(" ", " &apos; ").replace("a", "a @-@ b"))
    _, said = run(tmp_path / "kept", folder)
    assert "escapes of Moses (&apos; @-@); unescape: true" in said and ": 40 rows" in said
    run(tmp_path / "undone", folder, unescape=True)
    text = (tmp_path / "undone" / "train" / "en-fr.tsv").read_text()
    assert "&apos;" not in text and "@-@" not in text and "a-b" in text


def test_pairs_without_english_and_compressed_files(tmp_path):
    for code in ("fr", "ru"):
        (tmp_path / f"Europarl.{code}.gz").write_bytes(
            gzip.compress(lines(code, range(8)).encode())
        )
    manifest, _ = run(tmp_path / "out", *tmp_path.glob("*.gz"))
    assert manifest["pairs"]["train"] == {"fr-ru": 8}
    assert (tmp_path / "out" / "train" / "fr-ru.tsv").read_text().startswith("fr\tru\n")


FEW = st.lists(st.sampled_from("the old cat sat on a new red mat".split()), min_size=1, max_size=6)
TEXT = st.tuples(FEW.map(" ".join), st.sampled_from(["", "!", " 1"])).map("".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT.map(str.upper).map("un ".__add__)), min_size=1, max_size=12)


@given(PAIRS, PAIRS, PAIRS)
@settings(max_examples=25)
def test_whatever_the_text_nothing_leaks_between_splits(tmp_path_factory, train, valid, test):
    """Compared with every held-out row, by letters and by words, as the manual says it."""
    folder = tmp_path_factory.mktemp("leak")
    for name, rows in {"train": train, "dev": valid, "test": test}.items():
        write(folder / f"{name}.tsv", "en\tfr\n" + "".join(f"{e}\t{f}\n" for e, f in rows))
    out = folder / "out"
    run(out, *(folder / f"{name}.tsv" for name in ("train", "dev", "test")))
    parts = {"train": "train/en-fr.tsv", "valid": "valid.tsv", "test": "test.tsv"}
    found = {
        part: pairs(out / name) if (out / name).exists() else set() for part, name in parts.items()
    }
    letters = lambda text: "".join(c for c in text.casefold() if c.isalpha())
    keys = {
        part: [{letters(pair[n]) for pair in found[part]} - {""} for n in (0, 1)] for part in parts
    }
    for n in (0, 1):
        assert not keys["train"][n] & (keys["valid"][n] | keys["test"][n])
        assert not keys["valid"][n] & keys["test"][n]
    words = lambda text: set(re.findall(r"[a-z]+", text.casefold()))
    for english, _ in found["train"]:
        for held, _ in found["valid"] | found["test"]:
            one, other = words(english), words(held)
            assert len(one & other) < 0.8 * len(one | other), (english, held)
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_truncated_archive_is_named(tmp_path, kind):
    folder = published.moses(tmp_path / "m", range(400))
    pack = zipped if kind == "zip" else tarred
    archive = pack(folder, tmp_path / f"opus.{kind}")
    archive.write_bytes(archive.read_bytes()[:-700])
    refused(tmp_path, rf"opus\.{kind}: truncated or broken archive", archive)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_of_several_streams_is_read_to_its_end(tmp_path, pack):
    """Each stream ends where a file of the archive does, so that nothing looks cut off."""
    plain = tmp_path / "plain.tar"
    with tarfile.open(plain, "w") as out:
        for code in ("en", "fr"):
            file = write(tmp_path / f"News.en-fr.{code}", lines(code, range(40)))
            out.add(file, file.name)
        end = out.getmember("News.en-fr.fr").offset
    data = plain.read_bytes()
    name = {gzip: "gz", bz2: "bz2", lzma: "xz"}[sys.modules[pack.__module__]]
    archive = tmp_path / "opus" / f"opus.tar.{name}"
    archive.parent.mkdir()
    archive.write_bytes(pack(data[:end]) + pack(data[end:]))
    run(tmp_path / "out", archive)
    assert pairs(tmp_path / "out" / "train" / "en-fr.tsv") == expected(range(40))


def test_a_member_that_leaves_the_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as out:
        out.writestr("../evil.en", "text\n")
    refused(tmp_path, r"x\.zip: member '\.\./evil\.en' points outside", tmp_path / "x.zip")
    assert not (tmp_path.parent / "evil.en").exists()


@pytest.mark.parametrize("codes", [("en", "ru"), ("en", "fr")])
def test_swapped_languages_are_named(tmp_path, codes):
    if codes == ("en", "fr"):
        pytest.importorskip("py3langid")
    one, other = codes
    write(tmp_path / "m" / f"a.{one}", lines(other, range(40)))
    write(tmp_path / "m" / f"a.{other}", lines(one, range(40)))
    refused(tmp_path, r"a\.en:1: the column 'en' .* swapped", tmp_path / "m", check=True)
    published.moses(tmp_path / "right", range(40), codes)
    run(tmp_path / "fine", tmp_path / "right", check=True)


@pytest.mark.parametrize("code", ["fr", "ru"])
def test_columns_that_are_swapped_in_every_other_row_are_named(tmp_path, code):
    pytest.importorskip("py3langid")
    rows = [(sentence("en", n), sentence(code, n)) for n in range(90)]
    rows[1::2] = [(b, a) for a, b in rows[1::2]]
    table = write(tmp_path / "a.tsv", f"en\t{code}\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    told = {  # of Cyrillic and Latin letters together, the identifier says Russian
        "fr": r"a\.tsv:3: 'en' is in 'fr' and 'fr' in 'en': they are swapped in 4\d of",
        "ru": r"a\.tsv:2: the column 'en' is in 'ru'.* swapped",
    }
    refused(tmp_path, told[code], table, check=True)


ARABIC = "ذهب الولد إلى المدرسة في الصباح مع أخيه الصغير وعاد في المساء إلى البيت الكبير".split()
TIFINAGH = "ⵜⴰⵎⴰⵣⵉⵖⵜ ⵜⴳⴰ ⵜⵓⵜⵍⴰⵢⵜ ⵏ ⵉⵎⴰⵣⵉⵖⵏ ⴳ ⵜⴰⵎⴰⵣⵖⴰ ⴷ ⵜⵉⵏⵉⵔⵉ ⴰⵢⵜ ⵡⴰⵡⴰⵍ".split()


def test_flores_in_the_scripts_of_its_tags(tmp_path):
    for n, (tag, words) in enumerate({"ary_Arab": ARABIC, "taq_Tfng": TIFINAGH}.items()):
        made = lambda k, words=words, n=n: " ".join(random.Random(k + n).sample(words, 8))
        for part, first in (("dev", 0), ("devtest", 50)):
            text = "".join(made(k) + "\n" for k in range(first, first + 20))
            write(tmp_path / "f" / part / f"{tag}.{part}", text)
    for part, first in (("dev", 0), ("devtest", 50)):
        write(tmp_path / "f" / part / f"eng_Latn.{part}", lines("en", range(first, first + 20)))
    manifest, _ = run(tmp_path / "out", tmp_path / "f", check=True)
    both = {"ary": 20, "taq_Tfng": 20}
    assert manifest["pairs"] == {"train": {}, "valid": both, "test": both}


def test_both_scripts_of_a_language_stay_and_no_check_drops_nothing(tmp_path):
    latin = str.maketrans("абвгдежзийклмнопрстуфхцчшщыэюяьё", "abvgdežzijklmnoprstufhcčšŝyèjâ'o")
    rows = [(sentence("en", n), sentence("ru", n)) for n in range(60)]
    rows[1::2] = [(a, b.translate(latin)) for a, b in rows[1::2]]
    text = "".join(f"{a}\t{b}\n" for a, b in rows)
    manifest, _ = run(tmp_path / "a", write(tmp_path / "a.tsv", f"en\tsr\n{text}"), check=True)
    assert manifest["pairs"]["train"] == {"sr": 60}
    table = write(tmp_path / "b.tsv", f"en\tfr\n{text}")
    assert run(tmp_path / "b", table)[0]["pairs"]["train"] == {"fr": 60}


def test_other_encodings_are_named(tmp_path):
    folder = published.moses(tmp_path / "m", range(40))
    (folder / "News.en-fr.fr").write_bytes(
        lines("fr", range(40)).replace("a", "é").encode("latin-1")
    )
    refused(tmp_path, r"News\.en-fr\.fr:1: invalid UTF-8: 40 lines, 100%", folder)
    (folder / "News.en-fr.fr").write_bytes(lines("fr", range(40)).encode("utf-16"))
    refused(tmp_path, r"News\.en-fr\.fr:1: this is UTF-16", folder)


def test_files_that_are_not_aligned_are_named(tmp_path):
    folder = published.moses(tmp_path / "m", range(40))
    write(folder / "News.en-fr.fr", lines("fr", range(39)))
    refused(tmp_path, r"News\.en-fr\.en:40: unequal numbers of lines", folder)


def units(*rows: dict[str, str]) -> str:
    made = "".join(
        f'<tu tuid="u{n}">'
        + "".join(f'<tuv xml:lang="{c}"><seg>{t}</seg></tuv>' for c, t in row.items())
        + "</tu>\n"
        for n, row in enumerate(rows)
    )
    return f'<?xml version="1.0"?>\n<tmx><header/><body>\n{made}</body></tmx>\n'


@pytest.mark.parametrize("form", ["tmx", "jsonl"])
def test_a_language_that_comes_late_is_there(tmp_path, form):
    """1,100 units of English and French, then 100 of English and Russian."""
    rows = [{"en": sentence("en", n), "fr": sentence("fr", n)} for n in range(1100)]
    rows += [{"en": sentence("en", n), "ru": sentence("ru", n)} for n in range(1100, 1200)]
    text = units(*rows) if form == "tmx" else "".join(json.dumps(r) + "\n" for r in rows)
    manifest, _ = run(tmp_path / "out", write(tmp_path / f"web.{form}", text))
    assert manifest["pairs"]["train"] == {"fr": 1100, "ru": 100}
    assert pairs(tmp_path / "out" / "train" / "en-ru.tsv") == expected(range(1100, 1200), "ru")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_tmx_in_utf_16(tmp_path, encoding):
    text = units(*({"en": sentence("en", n), "ru": sentence("ru", n)} for n in range(40)))
    mark = "" if encoding == "utf-16" else "\ufeff"
    (tmp_path / "web.tmx").write_bytes((mark + text).encode(encoding))
    run(tmp_path / "out", tmp_path / "web.tmx")
    assert pairs(tmp_path / "out" / "train" / "en-ru.tsv") == expected(range(40), "ru")


def test_faults_of_tmx_name_the_unit(tmp_path):
    rows = [{"en": sentence("en", n), "fr": sentence("fr", n)} for n in range(30)]
    rows[7]["fr"] = "a\x7fb"
    file = write(tmp_path / "web.tmx", units(*rows))
    refused(tmp_path, r"web\.tmx:10 \(tuid 'u7'\): control character", file, on_problem="fail")
    file.write_text(units(*rows)[:-400])
    refused(tmp_path, r"not XML.*; the last unit begun is \(tuid 'u27'\)", file)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (("en-US", "en-GB"), {"fr": 40}),
        (("en", "en-US"), {"fr": 40}),
        (("en-GB", "en-GB"), {"fr": 40}),
        (("EN", "en-AU"), {"fr": 40}),
    ],
)
def test_regions_of_english_are_english(tmp_path, tags, found):
    rows = [{tags[n % 2]: sentence("en", n), "fr": sentence("fr", n)} for n in range(40)]
    manifest, _ = run(tmp_path / "out", write(tmp_path / "web.tmx", units(*rows)))
    assert manifest["pairs"]["train"] == found
    assert pairs(tmp_path / "out" / "train" / "en-fr.tsv") == expected(range(40))


def test_regions_are_one_language_unless_a_unit_has_both(tmp_path):
    tags = ("fr-FR", "fr-CA")
    one = [{"en": sentence("en", n), tags[n % 2]: sentence("fr", n)} for n in range(9)]
    manifest, _ = run(tmp_path / "one", write(tmp_path / "a.tmx", units(*one)))
    assert manifest["pairs"]["train"] == {"fr": 9}
    both = [
        {"en": sentence("en", n), "fr-FR": sentence("fr", n), "fr-CA": sentence("fr", n + 99)}
        for n in range(9)
    ]
    manifest, _ = run(tmp_path / "two", write(tmp_path / "b.tmx", units(*both)))
    assert manifest["pairs"]["train"] == {"fr": 9, "fr_CA": 9}
    same = [{"en": sentence("en", n), "en-US": "x y", "fr": sentence("fr", n)} for n in range(9)]
    manifest, said = run(tmp_path / "same", write(tmp_path / "c.tmx", units(*same)))
    assert manifest["pairs"]["train"] == {"fr": 9}
    assert f"note: {tmp_path / 'c.tmx'}: a second text in 'en' left out: 9 rows" in said


def test_a_file_given_twice_is_used_once_and_said(tmp_path):
    published.moses(tmp_path / "a", range(9))
    published.moses(tmp_path / "b", range(9))
    _, said = run(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert f"{tmp_path / 'b'}/News.en-fr.fr: the same content as {tmp_path / 'a'}" in said
    write(tmp_path / "a" / "News.en-fr.fr", lines("en", range(9)))
    refused(tmp_path / "x", r"News\.en-fr\.fr: have the same content: one language", tmp_path / "a")


def test_one_bad_line_is_counted_or_ends_it(tmp_path):
    rows = [f"{sentence('en', n)}\t{sentence('fr', n)}" for n in range(40)]
    rows[7] += "\textra"
    table = write(tmp_path / "t.tsv", "\n".join(["en\tfr", *rows]) + "\n")
    run(tmp_path / "lenient", table)
    assert len(pairs(tmp_path / "lenient" / "train" / "en-fr.tsv")) == 39
    refused(tmp_path, r"t\.tsv:9: wrong number of columns: 3 instead", table, on_problem="fail")


def test_entities_that_expand_are_refused_and_xml_that_ends_early_is_located(tmp_path):
    bomb = '<!DOCTYPE tmx [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>\n'
    file = published.tmx(tmp_path / "bomb.tmx", range(3), bomb)
    refused(tmp_path, r"bomb\.tmx:2: declares the entity 'a'", file)
    plain = published.tmx(tmp_path / "x.tmx", range(30), '<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n')
    plain.write_text(plain.read_text()[:-300])
    refused(tmp_path, r"x\.tmx:\d+: not XML, or cut off", plain)


def test_segments_missing_from_one_file_of_a_test_set_are_located(tmp_path):
    published.sgml(tmp_path / "s", range(6), "src", "en")
    published.sgml(tmp_path / "s", range(5), "ref", "fr")
    refused(tmp_path, r"-src\.en\.sgm:9: this segment is in one of the files alone", tmp_path / "s")


def test_what_is_not_there_and_what_is_there_already(tmp_path):
    refused(tmp_path, "no such file or folder", tmp_path / "nothing.zip")
    refused(tmp_path, "no parallel text found", write(tmp_path / "notes.md", "hello\n"))
    write(tmp_path / "full" / "file", "x")
    with pytest.raises(CorpusError, match="is there already"):
        run(tmp_path / "full", tmp_path / "notes.md")
    with pytest.raises(RecipeError, match="--format is 'tmy': allowed are moses"):
        Options(format="tmy")
