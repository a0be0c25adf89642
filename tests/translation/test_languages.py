import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradvac.errors import RecipeError
from gradvac.translation.languages import (
    LANGUAGES,
    Direction,
    family,
    family_order,
    is_code,
    is_known,
    language,
    nearest_code,
    resource_levels,
)

# Wang et al. 2021, Table 4, typed from the paper: left column, then right column.
TABLE_4 = {
    "fr": "Western European", "es": "Western European", "de": "Western European",
    "pl": "West Slavic", "cs": "West Slavic",
    "mk": "South Slavic", "bg": "South Slavic",
    "uk": "East Slavic", "be": "East Slavic", "ru": "East Slavic",
    "lv": "Baltic", "lt": "Baltic",
    "et": "Uralic", "fi": "Uralic",
    "hi": "Indo-Iranian", "mr": "Indo-Iranian", "gu": "Indo-Iranian", "ne": "Indo-Iranian",
    "kk": "Turkic", "ky": "Turkic",
    "sw": "Benue-Congo", "zu": "Benue-Congo", "xh": "Benue-Congo",
    "id": "Malayo-Polynesian", "ms": "Malayo-Polynesian",
}  # fmt: skip


def test_families_and_their_order_are_those_of_the_paper() -> None:
    assert {code: family(code) for code in TABLE_4} == TABLE_4
    assert family_order(sorted(TABLE_4)) == list(TABLE_4)


def test_every_language_is_listed_once_and_families_are_contiguous() -> None:
    assert len(LANGUAGES) > 60
    families = [known.family for known in LANGUAGES.values()]
    changes = sum(a != b for a, b in itertools.pairwise(families))
    assert changes == len(set(families)) - 1
    assert all(is_code(code) and known.code == code for code, known in LANGUAGES.items())


def test_regions_and_scripts_belong_to_their_language() -> None:
    assert language("pt_BR").name == "Portuguese (BR)"
    assert family("sr_Latn") == "South Slavic"
    assert is_known("zh_TW")
    assert family_order(["pt_BR", "pt", "fr"]) == ["fr", "pt", "pt_BR"]


def test_unknown_codes_are_family_other_and_come_last() -> None:
    assert (language("qqq").name, family("qqq")) == ("qqq", "other")
    assert not is_known("qqq")
    assert family_order(["qqq", "th", "aaa", "fr"]) == ["fr", "th", "aaa", "qqq"]


def test_nearest_code() -> None:
    assert nearest_code("FR") == "; did you mean 'fr'?"
    assert nearest_code("%%%%") == ""


def test_direction_parses_its_own_name() -> None:
    direction = Direction.parse("pt_BR-en")
    assert (direction.source, direction.target, direction.name) == ("pt_BR", "en", "pt_BR-en")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fren", "'fren' is not a direction: allowed is SOURCE-TARGET"),
        ("pt-BR-en", "a region after an underscore as in 'pt_BR-en'"),
        ("fr-", "'' is not a language code: up to 35 letters, digits and underscores"),
        ("fr-e n", "'e n' is not a language code"),
        ("fr-é", "'é' is not a language code"),
        ("fr-en\n", r"'en\\n' is not a language code"),
        ("en-en", "'en-en' translates a language into itself"),
    ],
)
def test_what_is_no_direction(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Direction.parse(text)


@given(st.text())
def test_any_text_is_a_direction_or_a_recipe_error(text: str) -> None:
    try:
        assert Direction.parse(text).name == text
    except RecipeError as error:
        assert "direction" in str(error) or "language" in str(error)


def test_levels_of_a_corpus_with_a_natural_imbalance() -> None:
    sizes = {"fr-en": 40_000, "es-en": 38_000, "kk-en": 12_000, "uk-en": 11_000}
    sizes |= {"ne-en": 4_000, "ms-en": 3_000, "xh-en": 2_000}
    assert list(resource_levels(sizes).values()) == ["high"] * 2 + ["medium"] * 2 + ["low"] * 3


def test_level_bounds_belong_to_the_level_above() -> None:
    sizes = {"a": 800, "b": 400, "c": 399, "d": 100, "e": 99}
    assert list(resource_levels(sizes).values()) == ["high", "high", "medium", "medium", "low"]
    explicit = resource_levels({"a": 10, "b": 9, "c": 5, "d": 4}, (5, 10))
    assert list(explicit.values()) == ["high", "medium", "medium", "low"]


def test_the_papers_own_bounds_give_the_papers_levels() -> None:
    sizes = {"fr": 10**9, "hi": 5 * 10**7, "gu": 9 * 10**6, "xh": 10**5}
    levels = resource_levels(sizes, (1e7, 1e8))
    assert levels == {"fr": "high", "hi": "medium", "gu": "low", "xh": "low"}


def test_levels_of_little() -> None:
    assert resource_levels({}) == {}
    assert resource_levels({"a": 7}) == {"a": "high"}
    assert resource_levels({"a": 0, "b": 1}) == {"a": "low", "b": "high"}


@pytest.mark.parametrize("thresholds", [(10, 10), (10, 5), (0, 5), (-1, 5), (float("nan"), 5)])
def test_thresholds_increase(thresholds: tuple[float, float]) -> None:
    with pytest.raises(RecipeError, match="two increasing numbers of sentence pairs"):
        resource_levels({"a": 1}, thresholds)
