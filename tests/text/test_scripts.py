"""Scripts of tags and letters, by the names that unicodedata has for characters."""

import sys
import unicodedata
from functools import cache

import pytest
from fontTools import unicodedata as font_unicodedata

from gradvac.text.scripts import (
    in_script,
    script_in,
    script_of_character,
    script_plausible,
    scripts_of,
)
from gradvac.text.tags import language_code

# The tags of FLORES-200 that are not in Latin letters, by the first word of the names of letters.
FLORES = {
    "ARABIC": "acm_Arab acq_Arab aeb_Arab ajp_Arab apc_Arab arb_Arab ars_Arab ary_Arab arz_Arab "
    "azb_Arab ckb_Arab kas_Arab knc_Arab pbt_Arab pes_Arab prs_Arab snd_Arab uig_Arab urd_Arab "
    "ace_Arab bjn_Arab min_Arab",
    "DEVANAGARI": "awa_Deva bho_Deva hin_Deva hne_Deva kas_Deva mag_Deva mai_Deva mar_Deva "
    "npi_Deva san_Deva",
    "CYRILLIC": "bak_Cyrl bel_Cyrl bul_Cyrl kaz_Cyrl khk_Cyrl kir_Cyrl mkd_Cyrl rus_Cyrl srp_Cyrl "
    "tat_Cyrl tgk_Cyrl ukr_Cyrl",
    "BENGALI": "asm_Beng ben_Beng mni_Beng",
    "TIBETAN": "bod_Tibt dzo_Tibt",
    "TIFINAGH": "taq_Tfng tzm_Tfng",
    "ETHIOPIC": "amh_Ethi tir_Ethi",
    "HEBREW": "heb_Hebr ydd_Hebr",
    "MYANMAR": "mya_Mymr shn_Mymr",
    "CJK": "zho_Hans zho_Hant yue_Hant jpn_Jpan",
    "HIRAGANA": "jpn_Jpan",
    "KATAKANA": "jpn_Jpan",
    "HANGUL": "kor_Hang",
    "OL": "sat_Olck",
    "ARMENIAN": "hye_Armn", "GEORGIAN": "kat_Geor", "GREEK": "ell_Grek", "GUJARATI": "guj_Gujr",
    "GURMUKHI": "pan_Guru", "KANNADA": "kan_Knda", "KHMER": "khm_Khmr", "LAO": "lao_Laoo",
    "MALAYALAM": "mal_Mlym", "ORIYA": "ory_Orya", "SINHALA": "sin_Sinh", "TAMIL": "tam_Taml",
    "TELUGU": "tel_Telu", "THAI": "tha_Thai",
    "LATIN": "fra_Latn ace_Latn taq_Latn knc_Latn crh_Latn srp_Latn uzn_Latn kmr_Latn",
}  # fmt: skip
TAGS = [(name, tag) for name, tags in FLORES.items() for tag in tags.split()]


@cache
def letters(name: str) -> str:
    """The first letters of a script, by the first word of their names."""
    every = map(chr, range(0x41, 0x20000))
    own = [c for c in every if c.isalpha() and unicodedata.name(c, "").split(" ")[0] == name]
    return "".join(own[:40])


@pytest.mark.parametrize(("name", "tag"), TAGS)
def test_flores_tags_are_in_the_script_they_name(name: str, tag: str) -> None:
    code = language_code(tag)
    assert code is not None and in_script(code, letters(name)) and in_script(tag, letters(name))
    other = "GREEK" if name != "GREEK" else "THAI"
    assert not in_script(code, letters(other))


@pytest.mark.parametrize(
    ("code", "names"),
    [
        *((code, "CYRILLIC LATIN") for code in ("sr", "uz", "az", "bs")),
        *((code, "ARABIC DEVANAGARI") for code in ("ks", "sd")),
        ("kk", "CYRILLIC ARABIC"), ("pa", "GURMUKHI ARABIC"), ("mn", "CYRILLIC MONGOLIAN"),
        ("ku", "LATIN ARABIC"), ("tzm", "LATIN TIFINAGH"),
    ],
)  # fmt: skip
def test_languages_with_two_scripts_may_have_either(code: str, names: str) -> None:
    for name in names.split():
        assert in_script(code, letters(name)), name
    assert not in_script(code, letters("THAI"))
    assert not in_script(f"{code}_Latn", letters("CYRILLIC"))


def test_a_language_nobody_knows_may_have_any() -> None:
    assert scripts_of("qqq") == scripts_of("x") == frozenset()
    assert in_script("qqq", letters("THAI")) and in_script("qqq", "letters")


def test_every_letter_has_the_script_of_unicode() -> None:
    """As fontTools has it, a table of its own; younger characters aside."""
    every = [chr(n) for n in range(0, sys.maxunicode, 7) if chr(n).isalpha()]
    theirs = {c: font_unicodedata.script(c) for c in every}
    sure = [c for c, script in theirs.items() if script not in ("Zyyy", "Zinh", "Zzzz")]
    assert [c for c in sure if script_of_character(c) != theirs[c]] == []
    assert len(sure) > 10_000


def test_share_and_script_of_a_text() -> None:
    assert script_in(["Привет, Linux", "мир"]) == "Cyrl" and script_in(["12 !"]) is None
    assert script_plausible("абвx", frozenset({"Cyrl"}), 0.75)
    assert not script_plausible("абвxy", frozenset({"Cyrl"}), 0.75)
    assert not script_plausible("12", frozenset({"Cyrl"}), 0)
    assert script_plausible("कि", frozenset({"Deva"}), 1)  # a vowel sign is no letter
