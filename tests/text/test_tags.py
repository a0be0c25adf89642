"""Tags of languages as corpora spell them, to one code each."""

import pytest

from gradvac.text.tags import language_code

# FLORES-200, OPUS-100, TED, OPUS, WMT and ISO 639-2/B; what they mean, by their own documentation.
SPELLINGS = {
    "fr": "fr fra fre fra_Latn fr_FR fr-FR",
    "zh": "zh zho chi",
    "zh_Hans": "zh_CN zh-cn zho_Hans zh-Hans cmn_Hans",
    "zh_Hant": "zh_TW zh-tw zho_Hant",
    "pt": "pt por por_Latn pt_PT",
    "pt_BR": "pt_BR pt-br",
    "fr_CA": "fr-ca",
    "lv": "lv lvs_Latn",
    "et": "et ekk_Latn est_Latn",
    "ms": "ms zsm_Latn",
    "ar": "ar arb_Arab",
    "sr": "sr srp_Cyrl",
    "sr_Latn": "sr_Latn",
    "nb": "nb nob_Latn",
    "ne": "ne npi_Deva",
    "sw": "sw swh_Latn",
    "kk": "kaz_Cyrl",
    "yue": "yue_Hant",
    "he": "iw heb_Hebr",
}


@pytest.mark.parametrize("code", SPELLINGS)
def test_every_spelling_has_the_same_code(code):
    assert {tag: language_code(tag) for tag in SPELLINGS[code].split()} == dict.fromkeys(
        SPELLINGS[code].split(), code
    )


@pytest.mark.parametrize("name", ["talk_name", "README", "score", "en-", "", "12", "x", "src tgt"])
def test_other_words_are_no_tags(name):
    assert language_code(name) is None
