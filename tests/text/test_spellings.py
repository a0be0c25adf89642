"""Files that spell a language in other ways than the run."""

from pathlib import Path

import pytest

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.load import parse_recipe
from gradvac.text.account import Account
from gradvac.text.blocks import Row
from gradvac.text.readers import read_blocks, read_rows
from gradvac.text.sources import Source
from gradvac.text.spellings import Spellings


def test_the_first_spelling_is_that_of_the_run() -> None:
    said: list[str] = []
    spellings = Spellings(["en", "zho_Hans"], said.append)
    row = Row({"eng_Latn": "a", "zh": "b", "fra_Latn": "c"}, "f:3")
    assert spellings.row(row) == Row({"en": "a", "zho_Hans": "b", "fra_Latn": "c"}, "f:3")
    assert spellings.row(Row({"en": "a", "fr": "b"}, "g:1")).texts == {"en": "a", "fra_Latn": "b"}
    assert said == [
        "f:3: 'eng_Latn' is read as 'en'",
        "f:3: 'zh' is read as 'zho_Hans'",
        "g:1: 'fr' is read as 'fra_Latn'",
    ]


def test_two_codes_of_one_row_stay_apart() -> None:
    spellings = Spellings(["en"], pytest.fail)
    row = Row({"en": "colour", "en_US": "color"}, "f:1")
    assert spellings.row(row) == row
    assert spellings.row(Row({"en_US": "a", "fr": "b"}, "f:2")).texts == {"en_US": "a", "fr": "b"}


def test_blocks_are_read_as_their_rows_are(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text("eng_Latn\tzho_Hans\nopen\t打开\n a  b\tc\n", encoding="utf-8")
    by_row = [Spellings(["en"], str).row(row) for row in read_rows(Source(path=file), Account())]
    said: list[str] = []
    spellings = Spellings(["en"], said.append)
    (block,) = read_blocks(Source(path=file), Account())
    found = spellings.block(block)
    assert list(found.items()) == by_row and found.languages == ("en", "zho_Hans")
    assert said == [f"{file}:1: 'eng_Latn' is read as 'en'"]


def test_a_header_may_spell_what_is_wanted_in_another_way(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text("eng_Latn\tzh-Hans\tfra_Latn\na\tb\tc\n", encoding="utf-8")
    (row,) = read_rows(Source(path=file, languages=("zh", "en")), Account())
    assert row.texts == {"en": "a", "zh": "b"}
    (row,) = read_rows(Source(path=file), Account())
    assert row.texts == {"eng_Latn": "a", "zh_Hans": "b", "fra_Latn": "c"}


def test_words_of_three_letters_are_no_header(tmp_path: Path) -> None:
    """`fin` and `mal` are Finnish and Malayalam by ISO 639-3, and French words."""
    file = tmp_path / "a.tsv"
    file.write_text("fin\tmal\na\tb\n", encoding="utf-8")
    rows = read_rows(Source(path=file, languages=("en", "fr")), Account())
    assert [row.texts for row in rows] == [{"en": "fin", "fr": "mal"}, {"en": "a", "fr": "b"}]


def test_tags_with_hyphens_are_tags() -> None:
    paths = {"en": "a", "zh-Hans": "b"}
    data = {"train": [{"format": "text", "paths": paths}], "languages": ["zh-Hans"]}
    found = parse_recipe({"data": data}, "r").data
    assert (found.languages, found.train[0].paths) == (["zh_Hans"], {"en": "a", "zh_Hans": "b"})
    paths["zh_Hans"] = "c"
    with pytest.raises(RecipeError, match="zh-Hans, zh_Hans: a language is named twice"):
        parse_recipe({"data": data}, "r")
