"""Languages by tag: names, families, scripts, tokenizers; directions and resource levels.

`language` takes any tag, as spelled in a recipe, a file or FLORES (`zh`, `zho_Hans`, `pt-BR`), and
returns everything known about the language.

Families are those of Wang et al. 2021, Table 4 (ten families of 25 languages), in the order of
that table; German, French and Spanish share the branch "Western European" there. Languages the
paper does not have join one of its families or one of the families listed after them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from gradvac.errors import RecipeError

ENGLISH = "en"
"""The code of the language that most others are paired with."""

Wanted = Literal["to_en", "from_en", "both"] | Sequence[str]
"""Directions as a recipe asks for them: those into English, out of it, or each by its name."""

ResourceLevel = Literal["high", "medium", "low"]

# One family per line, in the order of the heat maps; languages in the order of Table 4, then those
# that are not in the table.
_TABLE = """
Western European: fr French, es Spanish, de German, en English, it Italian, pt Portuguese,\
 nl Dutch, ca Catalan, gl Galician, oc Occitan, ro Romanian, la Latin, sv Swedish, da Danish,\
 no Norwegian, nb Norwegian Bokmål, nn Norwegian Nynorsk, is Icelandic, fo Faroese, fy Frisian,\
 lb Luxembourgish, af Afrikaans, yi Yiddish
West Slavic: pl Polish, cs Czech, sk Slovak, hsb Upper Sorbian, dsb Lower Sorbian
South Slavic: mk Macedonian, bg Bulgarian, sl Slovenian, hr Croatian, sr Serbian, bs Bosnian
East Slavic: uk Ukrainian, be Belarusian, ru Russian
Baltic: lv Latvian, lt Lithuanian
Uralic: et Estonian, fi Finnish, hu Hungarian, se Northern Sami
Indo-Iranian: hi Hindi, mr Marathi, gu Gujarati, ne Nepali, bn Bengali, pa Punjabi, ur Urdu,\
 or Odia, as Assamese, si Sinhala, sd Sindhi, sa Sanskrit, fa Persian, ps Pashto, ku Kurdish,\
 tg Tajik
Turkic: kk Kazakh, ky Kyrgyz, tr Turkish, az Azerbaijani, uz Uzbek, tk Turkmen, tt Tatar,\
 ba Bashkir, ug Uyghur
Benue-Congo: sw Swahili, zu Zulu, xh Xhosa, yo Yoruba, ig Igbo, rw Kinyarwanda, sn Shona,\
 st Southern Sotho, tn Tswana, nso Northern Sotho, ts Tsonga, ve Venda, ss Swati, ny Chichewa,\
 lg Ganda, ln Lingala
Malayo-Polynesian: id Indonesian, ms Malay, jv Javanese, su Sundanese, tl Tagalog, fil Filipino,\
 ceb Cebuano, mg Malagasy, mi Maori, haw Hawaiian, sm Samoan
Celtic: ga Irish, gd Scottish Gaelic, cy Welsh, br Breton
Hellenic: el Greek
Albanian: sq Albanian
Armenian: hy Armenian
Kartvelian: ka Georgian
Basque: eu Basque
Afro-Asiatic: ar Arabic, he Hebrew, mt Maltese, am Amharic, ti Tigrinya, ha Hausa, so Somali,\
 om Oromo, kab Kabyle
Dravidian: ta Tamil, te Telugu, kn Kannada, ml Malayalam
Mongolic: mn Mongolian
Sino-Tibetan: zh Chinese, yue Cantonese, my Burmese, bo Tibetan, dz Dzongkha
Japonic: ja Japanese
Koreanic: ko Korean
Austroasiatic: vi Vietnamese, km Khmer
Kra-Dai: th Thai, lo Lao
Constructed: eo Esperanto, ia Interlingua
"""


# The other languages of FLORES-200, in the same families (NLLB Team et al. 2022, table 1): creoles
# are in the family of the language that most of their words come from.
_FURTHER = """
Western European: ast Asturian, fur Friulian, lij Ligurian, li Limburgish, lmo Lombard,\
 sc Sardinian, scn Sicilian, vec Venetian, ht Haitian Creole, kea Kabuverdianu, pap Papiamento,\
 tpi Tok Pisin
West Slavic: szl Silesian
Baltic: ltg Latgalian
Indo-Iranian: awa Awadhi, bho Bhojpuri, hne Chhattisgarhi, ks Kashmiri, mag Magahi, mai Maithili,\
 ckb Central Kurdish, pbt Southern Pashto, prs Dari
Turkic: crh Crimean Tatar, azb South Azerbaijani
Benue-Congo: bem Bemba, cjk Chokwe, kam Kamba, kmb Kimbundu, ki Kikuyu, kg Kongo, lua Luba-Kasai,\
 rn Rundi, tum Tumbuka, umb Umbundu
Kwa: ak Akan, tw Twi, ee Ewe, fon Fon
Gur: kbp Kabiyè, mos Mossi
Atlantic: ff Fula, fuv Nigerian Fulfulde, wo Wolof
Mande: bm Bambara, dyu Dyula
Ubangian: sg Sango
Nilotic: din Dinka, luo Luo, nus Nuer
Saharan: kr Kanuri
Malayo-Polynesian: ace Acehnese, ban Balinese, bjn Banjar, bug Buginese, fj Fijian, ilo Ilocano,\
 min Minangkabau, pag Pangasinan, war Waray
Afro-Asiatic: acm Mesopotamian Arabic, acq Ta'izzi-Adeni Arabic, aeb Tunisian Arabic,\
 ajp South Levantine Arabic, apc North Levantine Arabic, ars Najdi Arabic, ary Moroccan Arabic,\
 arz Egyptian Arabic, taq Tamasheq, tzm Central Atlas Tamazight
Sino-Tibetan: kac Jingpho, lus Mizo, mni Meitei
Austroasiatic: sat Santali
Kra-Dai: shn Shan
Aymaran: ay Aymara
Quechuan: qu Quechua, quy Ayacucho Quechua
Tupian: gn Guarani
"""


@dataclass(frozen=True, slots=True)
class Language:
    """What is known about the language of a tag.

    Attributes:
        code: the tag as it was given.
        name: in English, with region or script if the tag has them; the tag if it is unknown.
        family: "other" for a language of neither table.
        base: the code of the language alone, such as `zh` of `zho_Hans`.
        script: ISO 15924 code of its script: from the tag, else the usual one (CLDR's likely
            subtags); empty if unknown.
        region: empty unless the tag names another region than that of the bare language.
    """

    code: str
    name: str
    family: str
    base: str = ""
    script: str = ""
    region: str = ""

    @property
    def tokenizer(self) -> str:
        """SacreBLEU's name of the tokenizer for BLEU in this language; "13a" for most."""
        return _TOKENIZERS.get(self.script, "13a")


def _parse_table(table: str) -> dict[str, Language]:
    languages: dict[str, Language] = {}
    for line in table.strip().splitlines():
        family, members = line.split(": ")
        for member in members.split(", "):
            code, name = member.split(" ", 1)
            languages[code] = Language(code, name, family, code)
    return languages


LANGUAGES: Mapping[str, Language] = _parse_table(_TABLE)
"""Code -> language, family by family in the order of the paper."""

_ALL = LANGUAGES | _parse_table(_FURTHER)
_FAMILIES = list(dict.fromkeys(known.family for known in _ALL.values()))
_RANK = {
    code: rank
    for rank, code in enumerate(sorted(_ALL, key=lambda c: _FAMILIES.index(_ALL[c].family)))
}

# Chinese as sacreBLEU does by default. For Japanese and Korean it uses MeCab, which is a heavy
# dependency: characters here. Characters also for scripts without spaces between words (line
# breaking class SA, and Tibetan: UAX #14), where 13a would take whole sentences as words. The
# signature of every score names the tokenizer.
_TOKENIZERS = {
    script: name
    for name, scripts in {
        "zh": "Hans Hant Hani Bopo",
        "char": "Jpan Hira Kana Hrkt Kore Hang Thai Laoo Khmr Mymr Tibt Lana Tale Talu Tavt Ahom",
    }.items()
    for script in scripts.split()
}
_WHOLE = {"Hang": "Kore"}  # FLORES names Hangul; CLDR's Korean includes Chinese characters
# CLDR's `pt` is the Portuguese of Brazil; corpora (TED, Debian) have `pt_BR` beside `pt`.
_HOME = {"pt": "PT"}
LONGEST_CODE = 35
"""Maximum length: RFC 5646, section 4.4.1, requires this of fields for language tags."""
_CODE = re.compile(rf"[A-Za-z0-9_]{{1,{LONGEST_CODE}}}")


def is_code(text: str) -> bool:
    """Whether `text` can be a language code: up to 35 ASCII letters, digits and underscores."""
    return _CODE.fullmatch(text) is not None


def is_known(code: str) -> bool:
    """Whether the table has the language of `code`, without region and script (`pt_BR`: `pt`)."""
    return _base(code) in LANGUAGES


@lru_cache(maxsize=4096)
def language(code: str) -> Language:
    """All that is known about the language of a tag, in any spelling."""
    tag = code.replace("_", "-")
    base, script, region = _parsed(tag)
    known = _ALL.get(base)
    if known is None:
        return Language(code, code, "other", base, script, region)
    said = tag.split("-")[1:]
    if tag.split("-")[0] != base:  # FLORES names the script of every language
        said = [part for part in said if part != _parsed(base)[1]]
    name = f"{known.name} ({'_'.join(said)})" if said else known.name
    return Language(code, name, known.family, base, script, region)


def _parsed(tag: str) -> tuple[str, str, str]:
    """Language, script and region of a tag with hyphens; the tag alone if it is not valid."""
    import langcodes  # imported here: it takes 0.25 s, too long for `gradvac --help`
    from langcodes.data_dicts import LIKELY_SUBTAGS
    from langcodes.tag_parser import LanguageTagError

    first = tag.split("-")[0]
    try:
        # Unchanged if a table has it: `tl` must not become `fil`.
        found = langcodes.Language.get(tag, normalize=first not in _ALL)
        base = found.language or first
        if base not in _ALL:  # `lvs` is the Latvian usually called `lv`
            wide = langcodes.Language.get(langcodes.standardize_tag(base, macro=True)).language
            base = wide if wide in _ALL else base
        whole = langcodes.Language.make(base, script=found.script, territory=found.territory)
        known = base in LIKELY_SUBTAGS  # CLDR treats any other code as English
        script = (found.script or (whole.maximize().script if known else None)) or ""
        bare = langcodes.Language.make(base, script=script).maximize()
    except LanguageTagError:
        return first if first in _ALL else tag, "", ""
    home = _HOME.get(base, bare.territory)
    # A territory that implies another script is replaced by that script, as in zh_TW.
    implied = not found.script and script != langcodes.Language.make(base).maximize().script
    region = "" if implied or found.territory in (None, home) else str(found.territory)
    return base, script, region


def same_language(code: str, other: str) -> bool:
    """Whether two tags are spellings of the same language, script and region."""
    if code == other:
        return True
    mine, theirs = (
        (x.base, _WHOLE.get(x.script, x.script), x.region) for x in map(language, (code, other))
    )
    return mine == theirs and bool(mine[1])


def is_english(code: str) -> bool:
    """Whether a tag is English, of any region."""
    return language(code).base == ENGLISH


def pivot(codes: Collection[str]) -> str:
    """The language that others are paired with: English if it is in the list, else the first."""
    return ENGLISH if ENGLISH in codes else next(iter(codes))


def family(code: str) -> str:
    """The language family of a tag, "other" for a language that is in neither table."""
    return language(code).family


def family_order(codes: Iterable[str]) -> list[str]:
    """Codes sorted as in the paper's heat maps: family by family, unknown ones last by code."""
    return sorted(codes, key=lambda code: (_RANK.get(language(code).base, len(_RANK)), code))


def nearest_code(code: str) -> str:
    """A hint `; did you mean 'xx'?` for a code that is not in the table, or an empty string."""
    found = difflib.get_close_matches(code.lower().replace("-", "_"), LANGUAGES, n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def _base(code: str) -> str:
    return code.split("_", 1)[0]


@dataclass(frozen=True, slots=True, order=True)
class Direction:
    """A translation direction; its name is the name of the task.

    Raises:
        RecipeError: a code has other characters than ASCII letters, digits and underscores, or
            both are the same.
    """

    source: str
    target: str

    def __post_init__(self) -> None:
        for code in (self.source, self.target):
            if not is_code(code):
                raise RecipeError(
                    f"{code[:60]!r} is not a language code: up to {LONGEST_CODE} letters, digits "
                    "and underscores are allowed, as in 'fr' or 'pt_BR'"
                )
        if self.source == self.target:
            raise RecipeError(f"{self.name!r} translates a language into itself")

    @property
    def name(self) -> str:
        """The task name, `fr-en`."""
        return f"{self.source}-{self.target}"

    @classmethod
    def parse(cls, text: str) -> Direction:
        """The direction named `text`, such as `fr-en`."""
        codes = text.split("-")
        if len(codes) != 2:
            raise RecipeError(
                f"{text!r} is not a direction: allowed is SOURCE-TARGET as in 'fr-en', "
                "with a region after an underscore as in 'pt_BR-en'"
            )
        return cls(*codes)


def directions(wanted: Wanted, languages: Sequence[str]) -> list[Direction]:
    """The directions of ``languages`` that a recipe wants: into English first, sorted by code."""
    if not isinstance(wanted, str):
        return [Direction.parse(name) for name in wanted]
    named = (code for code in languages if same_language(code, ENGLISH))
    english = ENGLISH if ENGLISH in languages else next(named, ENGLISH)
    others = sorted({*languages} - {english})
    into = [Direction(code, english) for code in others]
    out_of = [Direction(english, code) for code in others]
    return {"to_en": into, "from_en": out_of, "both": into + out_of}[wanted]


# Chosen here. The paper's bounds (1e8 and 1e7 pairs, appendix A) are 1/10 and 1/100 of its largest
# task, on data spread over four orders of magnitude; public corpora for the same languages spread
# over two or less, where those bounds would leave no low-resource task. At 1/2 and 1/8, the 26
# languages that Debian's catalogues pair with English fall into 7 high, 7 medium, 12 low, near the
# paper's own 7, 8 and 10; and a corpus of 40k, 12k and 2-4k pairs has all three levels.
HIGH_SHARE = 1 / 2
MEDIUM_SHARE = 1 / 8


def resource_levels(
    sizes: Mapping[str, int], thresholds: tuple[float, float] | None = None
) -> dict[str, ResourceLevel]:
    """Resource level of each task from its number of sentence pairs.

    `thresholds` (a, b) in sentence pairs: low < a <= medium < b <= high. Without them, b is
    half of the largest task and a an eighth of it.

    Raises:
        RecipeError: thresholds are not 0 < a < b.
    """
    if not sizes:
        return {}
    if thresholds is None:
        largest = max(sizes.values())
        thresholds = (largest * MEDIUM_SHARE, largest * HIGH_SHARE)
    elif not 0 < thresholds[0] < thresholds[1]:
        raise RecipeError(
            f"thresholds of resource levels are {tuple(thresholds)}: "
            "allowed are two increasing numbers of sentence pairs, as in (10000, 100000)"
        )
    medium, high = thresholds
    return {
        task: "high" if size >= high else "medium" if size >= medium else "low"
        for task, size in sizes.items()
    }
