"""Cleaning rules on pairs written by hand, and against a literal slow version on random ones."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradvac.errors import CorpusError, RecipeError
from gradvac.text.account import Account
from gradvac.text.cleaning import CleaningRules, Pair, clean, text_key
from gradvac.text.readers import Row, read_rows
from gradvac.text.sources import Source


def rows_of(*pairs: tuple[str, str]) -> list[Row]:
    return [Row({"en": a, "fr": b}, f"a.tsv:{n}") for n, (a, b) in enumerate(pairs, 2)]


def run(
    *pairs: tuple[str, str], rules: CleaningRules | None = None, **options: object
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    account = Account()
    rules = rules or CleaningRules()
    kept = list(clean(rows_of(*pairs), "en", "fr", rules, account, **options))  # type: ignore[arg-type]
    assert account.read() == len(pairs)
    assert account.kept() == len(kept)
    return [(p.source, p.target) for p in kept], {
        line.reason: line.count for line in account.table() if line.reason != "kept"
    }


def test_text_is_composed_and_white_space_collapsed() -> None:
    kept, _ = run(("  Hello\u00a0\n world\u2028! ", "cafe\u0301\tnoir"))
    assert kept == [("Hello world !", "caf\u00e9 noir")]


@pytest.mark.parametrize(
    ("pair", "rules", "reason"),
    [
        (("a", " \u2029 "), {}, "empty side"),
        (("", "a"), {}, "empty side"),
        (("File Manager", "file  manager"), {}, "target copies source"),
        (("File Manager", "file  manager"), {"drop_copies": False}, None),
        (("STRASSE", "straße"), {}, "target copies source"),
        (("Ok", "D'accord"), {}, None),
        (("a", "bcd"), {"min_characters": 2}, "too few characters"),
        (("ab", "bcd"), {"min_characters": 2}, None),
        (("a" * 9, "b" * 8), {"max_characters": 8}, "too many characters"),
        (("a" * 8, "b" * 8), {"max_characters": 8}, None),
        (("a", "b c"), {"min_words": 2}, "too few words"),
        (("a d", "b c"), {"min_words": 2}, None),
        (("a b c", "d e"), {"max_words": 2}, "too many words"),
        (("a b", "c d"), {"max_words": 2}, None),
        # (90 + 10) / (15 + 10) is 4 exactly
        (("a" * 90, "b" * 15), {}, None),
        (("a" * 91, "b" * 15), {}, "length ratio"),
        (("b" * 15, "a" * 91), {}, "length ratio"),
        (("a" * 91, "b" * 15), {"max_ratio": float("inf")}, None),
        (("abc", "abcd"), {"max_ratio": 1.2, "ratio_smoothing": 0}, "length ratio"),
        (("abc", "abcd"), {"max_ratio": 1.2, "ratio_smoothing": 2}, None),
    ],
)
def test_rules(pair: tuple[str, str], rules: dict[str, float], reason: str | None) -> None:
    kept, dropped = run(pair, rules=CleaningRules(**rules))  # type: ignore[arg-type]
    assert dropped == ({reason: 1} if reason else {})
    assert len(kept) == (reason is None)


def test_duplicates_are_pairs_equal_after_normalisation() -> None:
    pairs = [("a b", "x"), ("a  b ", "x"), ("a b", "y"), ("A b", "x"), ("cafe\u0301", "x"),
             ("caf\u00e9", "x"), ("a b", "x")]  # fmt: skip
    kept, dropped = run(*pairs)
    assert kept == [("a b", "x"), ("a b", "y"), ("A b", "x"), ("caf\u00e9", "x")]
    assert dropped == {"duplicate": 3}
    kept, dropped = run(*pairs, rules=CleaningRules(drop_duplicates=False))
    assert len(kept) == 7
    assert not dropped


def test_duplicates_across_corpora_share_a_set() -> None:
    seen: set[int] = set()
    assert run(("a b", "x"), ("c", "y"), seen=seen)[1] == {}
    assert run(("c", "y"), ("d", "z"), seen=seen)[1] == {"duplicate": 1}
    assert len(seen) == 3


def test_a_shift_of_text_between_the_sides_is_no_duplicate() -> None:
    assert len(run(("a b", "c d"), ("a", "b c d"), ("a b c", "d"))[0]) == 3


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Page 12, line 3!", "pageline"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("cafe\u0301", "café"),
        ("snake_case", "snakecase"),
        ("12:30 — ", ""),
        ("Привет, мир", "приветмир"),
        ("日本語。", "日本語"),
    ],
)
def test_text_key(text: str, key: str) -> None:
    assert text_key(text) == key


DIFFERENT = """
दिन दान, मेल मूल, कर्म करम, কাল কুল, ਦਿਨ ਦਾਨ, દિન દાન, ଦିନ ଦାନ, தீ தா, దినం దానం, ದಿನ ದಾನ, ദിനം ദാനം
දින දාන, ที ที่, กำ กา, ນີ້ ນໍ້າ, កុក កូក, ကို ကာ, བོད བད, ẹ̀kọ́ ẹkọ, ކިޔާ ކުޔާ, ᨅᨗᨔ ᨅᨘᨔ, ꦩꦶꦭ ꦩꦸꦭ
"""


@pytest.mark.parametrize("pair", DIFFERENT.strip().replace("\n", ", ").split(", "))
def test_marks_that_carry_meaning_are_in_the_key(pair: str) -> None:
    one, other = pair.split()
    assert text_key(one) != text_key(other)
    assert text_key(one + "!") == text_key(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("كِتَابٌ", "كتاب"),
        ("שָׁלוֹם", "שלום"),
        ("замо\u0301к", "замок"),
        ("İSTANBUL", "istanbul"),
        ("❤\ufe0f葛\U000e0100", "葛"),
        ("ΐ", "Ϊ\u0301"),
        ("e\u0323\u0300", "ẹ̀"),
    ],
)
def test_marks_that_readers_do_without_are_not(one: str, other: str) -> None:
    assert text_key(one) == text_key(other)


@given(st.text(st.characters(categories=["L", "M", "N", "Z", "P", "Cf"]), max_size=20))
def test_the_key_is_letters_and_marks(text: str) -> None:
    """The categories of unicodedata; of marks only those of scripts that need them are asked."""
    key = text_key(text)
    assert all(unicodedata.category(c)[0] in "LM" for c in key)
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    optional = ("HEBREW", "ARABIC", "SYRIAC", "COMBINING", "VARIATION", "MONGOLIAN")
    needed = [
        c
        for c in folded
        if unicodedata.category(c)[0] == "L"
        or (unicodedata.category(c)[0] == "M" and not unicodedata.name(c).startswith(optional))
    ]
    found = iter(key)
    assert all(c in found for c in needed)  # in this order


def test_evaluation_text_is_kept_out_on_either_side() -> None:
    exclude = {text_key("Open the file."), text_key("Fermer"), text_key("42")}
    pairs = [
        ("open the FILE", "ouvrir"),
        ("close", "fermer !"),
        ("Open the files.", "ouvrir les fichiers"),
        ("17", "dix-sept"),
    ]
    kept, dropped = run(*pairs, exclude=exclude)
    assert kept == pairs[2:]
    assert dropped == {"in evaluation text": 2}


def test_rows_without_one_of_the_languages_are_counted() -> None:
    rows = [Row({"en": "a", "fr": "b"}, "x:1"), Row({"en": "a", "de": "b"}, "x:2")]
    account = Account()
    pairs = list(clean(rows, "fr", "en", CleaningRules(), account))
    assert pairs == [Pair("b", "a", "x:1")]
    (kept, missing) = account.table()
    assert (kept.corpus, kept.reason, kept.count, kept.share) == ("fr-en", "kept", 1, 1.0)
    assert (missing.reason, missing.first) == ("not in both languages", "x:2")
    account.drop("fr-en", "empty side", "x:3", 3)
    assert [(line.reason, line.count, line.share) for line in account.table()] == [
        ("kept", 1, 0.25), ("empty side", 3, 0.75), ("not in both languages", 1, 0)
    ]  # fmt: skip
    assert str(account).splitlines()[-1].split() == "fr-en not in both languages 1 x:2".split()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_words": 0}, "min_words is 0 and max_words is 200"),
        ({"min_characters": 9, "max_characters": 8}, "min_characters is 9 and max_characters is 8"),
        ({"max_ratio": 0.9}, "max_ratio is 0.9: allowed is 1 or more"),
        ({"max_ratio": float("nan")}, "max_ratio is nan"),
        ({"ratio_smoothing": -1}, "ratio_smoothing is -1"),
    ],
)
def test_rules_that_cannot_be(rules: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CleaningRules(**rules)  # type: ignore[arg-type]


def test_account_in_full(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"en\tfr\na\tb\na\tb\n\xff\n\nc\tC\na\tb\na\tb\na\tb\n")
    account = Account()
    rows = read_rows(Source(path=path), account)
    assert len(list(clean(rows, "en", "fr", CleaningRules(), account, corpus="train"))) == 1
    expected = {
        "policy": "drop",
        "corpora": {
            "train": {
                "read": 6,
                "kept": 1,
                "dropped": {
                    "duplicate": {"count": 4, "first": [f"{path}:{n}" for n in (3, 7, 8)]},
                    "target copies source": {"count": 1, "first": [f"{path}:6"]},
                },
            },
            str(path): {
                "read": 8,
                "kept": 6,
                "dropped": {
                    "invalid UTF-8": {"count": 1, "first": [f"{path}:4"]},
                    "empty line": {"count": 1, "first": [f"{path}:5"]},
                },
            },
        },
    }
    assert account.to_dict() == expected
    assert json.loads(json.dumps(account.to_dict())) == expected
    printed = [line.split() for line in str(account).splitlines()]
    assert ["train", "duplicate", "4", "66.7%", f"{path}:3"] in printed
    assert ["train", "kept", "1", "16.7%"] in printed
    assert [account.read("train"), account.kept(), account.dropped("duplicate")] == [6, 7, 4]


def test_an_account_of_nothing_still_lists_its_corpora() -> None:
    account = Account()
    assert str(account) == ""
    assert list(clean([], "en", "fr", CleaningRules(), account)) == []
    assert [(line.reason, line.count, line.share) for line in account.table()] == [("kept", 0, 0)]


def test_cleaning_rules_are_no_faults_under_the_policy_fail() -> None:
    account = Account("fail")
    assert list(clean(rows_of(("a", "a"), ("", "b")), "en", "fr", CleaningRules(), account)) == []
    with pytest.raises(CorpusError, match=r"^x:1: why: how$"):
        account.problem("c", "why", "x:1", "how")
    assert account.dropped() == 3


def literally(pairs: list[tuple[str, str]], rules: CleaningRules) -> list[tuple[str, str]]:
    """The rules one by one, as their names say, with no thought of speed."""
    done: list[tuple[str, str]] = []
    for a, b in pairs:
        a, b = (" ".join(unicodedata.normalize("NFC", x).split()) for x in (a, b))
        words = [len(a.split()), len(b.split())]
        sizes = [len(a), len(b)]
        smooth = [size + rules.ratio_smoothing for size in sizes]
        if (
            a
            and b
            and a.casefold() != b.casefold()
            and all(rules.min_characters <= n <= rules.max_characters for n in sizes)
            and all(rules.min_words <= n <= rules.max_words for n in words)
            and max(smooth) / min(smooth) <= rules.max_ratio
            and (a, b) not in done
        ):
            done.append((a, b))
    return done


texts = st.text(st.sampled_from("abAéß \u0301\u00a0\n1"), max_size=12)


@given(
    st.lists(st.tuples(texts, texts), max_size=12),
    st.builds(
        CleaningRules,
        min_characters=st.integers(1, 3),
        max_characters=st.integers(3, 12),
        min_words=st.integers(1, 2),
        max_words=st.integers(2, 4),
        max_ratio=st.sampled_from([1.0, 1.5, 2.0]),
        ratio_smoothing=st.sampled_from([0.0, 2.0]),
    ),
)
def test_clean_is_the_literal_version(pairs: list[tuple[str, str]], rules: CleaningRules) -> None:
    kept, dropped = run(*pairs, rules=rules)
    assert kept == literally(pairs, rules)
    assert sum(dropped.values()) == len(pairs) - len(kept)
