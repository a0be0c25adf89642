import itertools

import langcodes
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from gradvac.errors import RecipeError
from gradvac.text.languages import (
    LANGUAGES,
    Direction,
    family,
    family_order,
    is_code,
    is_known,
    language,
    nearest_code,
    resource_levels,
    same_language,
)
from gradvac.translation.tokenizers import tokenizer

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


# The codes of FLORES-200 (NLLB Team et al. 2022, table 1), by its data set.
FLORES = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab
arb_Latn ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl
bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn
bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn
dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn ewe_Latn fao_Latn fij_Latn fin_Latn
fon_Latn fra_Latn fur_Latn fuv_Latn gaz_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn
hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn
ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor kaz_Cyrl
kbp_Latn kea_Latn khk_Cyrl khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kmr_Latn knc_Arab knc_Latn
kon_Latn kor_Hang lao_Laoo lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn lua_Latn
lug_Latn luo_Latn lus_Latn lvs_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Arab min_Latn mkd_Cyrl
mlt_Latn mni_Beng mos_Latn mri_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva nso_Latn nus_Latn
nya_Latn oci_Latn ory_Orya pag_Latn pan_Guru pap_Latn pbt_Arab pes_Arab plt_Latn pol_Latn por_Latn
prs_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Olck scn_Latn shn_Mymr sin_Sinh
slk_Latn slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn srp_Cyrl
ssw_Latn sun_Latn swe_Latn swh_Latn szl_Latn tam_Taml taq_Latn taq_Tfng tat_Cyrl tel_Telu tgk_Cyrl
tgl_Latn tha_Thai tir_Ethi tpi_Latn tsn_Latn tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng
uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr
yor_Latn yue_Hant zho_Hans zho_Hant zsm_Latn zul_Latn
""".split()


@pytest.mark.parametrize("code", FLORES)
def test_every_language_of_flores_has_a_family_and_its_script(code: str) -> None:
    found = language(code)
    assert found.family != "other" and found.script == code.split("_")[1]
    first = code.split("_")[0]
    macro = {langcodes.standardize_tag(first, macro=wide) for wide in (False, True)}
    assert found.base in {first, *macro}


def test_no_two_languages_of_flores_are_one() -> None:
    pairs = itertools.combinations(FLORES, 2)
    assert [p for p in pairs if same_language(*p)] == []


# FLORES-200, BCP-47, POSIX locales and ISO 639-2/B; what they mean, by their own documentation.
SPELLINGS = {
    "fr": "fr fra fre fra_Latn fr_FR fr-FR",
    "en": "en eng eng_Latn en-US",
    "zh": "zh zho chi cmn zh_CN zh-Hans zho_Hans cmn_Hans",
    "zh_Hant": "zh_TW zho_Hant zh-Hant-TW",
    "pt": "pt por por_Latn pt_PT",
    "pt_BR": "pt_BR pt-br",
    "en_GB": "en-GB",
    "sr": "sr srp_Cyrl sr-Cyrl-RS",
    "sr_Latn": "sr_Latn srp_Latn",
    "ko": "ko kor_Hang ko_KR",
    "ja": "ja jpn_Jpan",
    "ms": "ms zsm_Latn",
    "lv": "lv lvs_Latn",
    "he": "he iw heb_Hebr",
}


def test_spellings_of_one_language_are_the_same_and_of_others_not() -> None:
    owner = {tag: code for code, tags in SPELLINGS.items() for tag in tags.split()}
    for one, other in itertools.product(owner, repeat=2):
        assert same_language(one, other) == (owner[one] == owner[other]), (one, other)


@pytest.mark.parametrize(
    ("code", "name", "kin", "script", "cut"),
    [
        ("zho_Hans", "Chinese", "Sino-Tibetan", "Hans", "zh"),
        ("jpn_Jpan", "Japanese", "Japonic", "Jpan", "char"),
        ("tha_Thai", "Thai", "Kra-Dai", "Thai", "char"),
        ("eng_Latn", "English", "Western European", "Latn", "13a"),
        ("ja_Latn", "Japanese (Latn)", "Japonic", "Latn", "13a"),
        ("shn", "Shan", "Kra-Dai", "Mymr", "char"),
        ("lzh", "lzh", "other", "Hans", "zh"),  # in neither table, but CLDR knows its script
        ("srp_Latn", "Serbian (Latn)", "South Slavic", "Latn", "13a"),
        ("xx", "xx", "other", "", "13a"),
    ],
)
def test_what_follows_from_a_tag(code: str, name: str, kin: str, script: str, cut: str) -> None:
    found = language(code)
    assert (found.code, found.name, found.family) == (code, name, kin)
    assert (found.script, found.tokenizer, tokenizer(code)) == (script, cut, cut)


def test_scripts_without_spaces_are_cut_into_characters() -> None:
    """Those whose letters Unicode lets no line break by itself (UAX #14, class SA)."""
    letters = "".join(map(chr, range(0x110000)))
    for script in ("Thai", "Laoo", "Khmr", "Mymr", "Lana", "Tale", "Talu", "Tavt"):
        assert regex.search(rf"(?=\p{{Line_Break=SA}})\p{{Script={script}}}", letters)
        assert language(f"und_{script}").tokenizer == "char"
    for script in ("Latn", "Cyrl", "Deva", "Arab", "Ethi"):
        assert not regex.search(rf"(?=\p{{Line_Break=SA}})\p{{Script={script}}}", letters)
        assert language(f"und_{script}").tokenizer == "13a"


@given(st.text())
def test_any_text_has_a_language(text: str) -> None:
    assert language(text).code == text


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
