"""The laboratory's text, with a stand-in for the package that knows the words."""

import sys
from types import ModuleType

import pytest

from gradvac.translation.vocabulary import Vocabulary
from tools.numbers import LANGUAGES, LARGEST, SMALLEST_HELD_OUT, draw, main, words

PIECES = {"en": "one two three", "kz": "bir eki ush"}


def said(number, lang):
    """Digits as words of three."""
    of = PIECES.get(lang, f"{lang}a {lang}b {lang}c").split()
    return "  ".join(of[int(digit) % 3] for digit in str(number))


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("num2words")
    monkeypatch.setattr(module, "num2words", said, raising=False)
    monkeypatch.setitem(sys.modules, "num2words", module)
    monkeypatch.setattr("tools.numbers.version", lambda name: "0.0")


def test_no_number_is_in_two_sets_and_short_ones_are_as_frequent_as_long_ones():
    train, valid, test = draw(3000, 200, seed=1)
    assert len({*train, *valid, *test}) == 3400
    assert min(valid + test) >= SMALLEST_HELD_OUT and max(train + valid + test) <= LARGEST
    lengths = [sum(len(str(n)) == digits for n in train) for digits in (4, 5, 6)]
    assert max(lengths) < 1.4 * min(lengths)
    assert draw(3000, 200, seed=1) == (train, valid, test) != draw(3000, 200, seed=2)


def test_words_have_single_spaces_and_the_codes_of_the_package(package):
    assert words(12, "kk") == "eki ush" and words(10, "de") == "deb dea"


def test_the_folder_is_what_a_recipe_takes_and_the_same_again(
    package, tmp_path, monkeypatch, capsys
):
    said_again = []
    for name in ("a", "b"):
        flags = ["--train", "60", "--held-out", "5", "--pieces", "150"]
        monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / name), *flags])
        main()
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        said_again.append({p.relative_to(tmp_path / name): p.read_bytes() for p in files})
    assert said_again[0] == said_again[1]
    assert f"60 numbers in English and {len(LANGUAGES)} other languages" in capsys.readouterr().out
    head, *rows = (tmp_path / "a" / "test.tsv").read_text(encoding="utf-8").splitlines()
    assert head.split("\t") == ["en", *LANGUAGES] and len(rows) == 5
    train = (tmp_path / "a" / "train" / "en-kk.tsv").read_text(encoding="utf-8").splitlines()
    assert train[0] == "en\tkk" and len(train) == 61
    english, kazakh = (text.split() for text in train[1].split("\t"))
    of = dict(zip(PIECES["en"].split(), PIECES["kz"].split(), strict=True))
    assert [of[word] for word in english] == kazakh
    vocabulary = Vocabulary.load(tmp_path / "a" / "vocabulary.model")
    assert len(vocabulary) == 150 and set(vocabulary.languages) == {"en", *LANGUAGES}


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(SystemExit, match="pip install num2words"):
        words(1, "de")
