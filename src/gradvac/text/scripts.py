"""Scripts by ISO 15924 code: those a language is written in, those of a text's letters.

The script in a tag counts (`sr_Latn`); else those that CLDR lists; if it lists none, any script is
accepted. Unicode gives the script of each character (`Script_Extensions`).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import cache

import regex
from langcodes import Language
from langcodes.data_dicts import ALL_SCRIPTS, LIKELY_SUBTAGS
from langcodes.tag_parser import LanguageTagError

# ISO 15924 codes for several scripts together, or for styles of one (UAX 24, section 2.3).
_TOGETHER = {
    "Hans": "Hani", "Hant": "Hani", "Hanb": "Hani Bopo", "Jpan": "Hani Hira Kana",
    "Hrkt": "Hira Kana", "Kore": "Hang Hani", "Jamo": "Hang", "Aran": "Arab", "Latf": "Latn",
    "Latg": "Latn", "Cyrs": "Cyrl", "Syre": "Syrc", "Syrj": "Syrc", "Syrn": "Syrc", "Geok": "Geor",
}  # fmt: skip
# More scripts in use today, from languageData of CLDR's supplemental data; langcodes has only
# those that a territory implies (sr_ME is Latin).
_ALSO = {
    "Latn": "ber cr crh iu kk oj shi tt ug zgh",
    "Cyrl": "az bs crh gag kaa ku ro tk ttt uz",
    "Arab": "ace bjn crh ff ha kaa knc kr ky man min ms so sw tg tk tr uz wo",
    "Deva": "gom kok ks sat sd snd", "Tfng": "ber kab rif shi taq thv thz tmh ttq tzm",
    "Adlm": "ff fuf fuv", "Mtei": "mni", "Beng": "sat", "Orya": "sat", "Cans": "cr iu oj",
    "Hebr": "lad yi", "Java": "jv", "Sund": "su", "Bali": "ban", "Bugi": "bug mak", "Mong": "mn",
}  # fmt: skip
_LETTERS = regex.compile(r"\p{L}+")
_WORD = regex.compile(r"\p{L}[\p{L}\p{M}]*")
_ASCII = regex.compile(r"[A-Za-z]+")


@cache
def scripts_of(tag: str) -> frozenset[str]:
    """The scripts a language may be written in; empty if none is known."""
    named, base = _named(tag)
    if named:
        return _single([named])
    code = _code(base)
    likely = [tag for key, tag in LIKELY_SUBTAGS.items() if key.split("-")[0] == code]
    also = [script for script, own in _ALSO.items() if {base, code} & {*own.split()}]
    return _single([*(tag.split("-")[1] for tag in likely), *also])


@cache
def usual_scripts(tag: str) -> frozenset[str]:
    """The scripts that CLDR gives to a tag without a script (`sr` is Cyrillic)."""
    named, base = _named(tag)
    likely = LIKELY_SUBTAGS.get(_code(base), "")
    return _single([named] if named else likely.split("-")[1:2])


def _named(tag: str) -> tuple[str | None, str]:
    """The script in a tag, and its language."""
    base, *parts = tag.replace("-", "_").split("_")
    titles = (part.title() for part in parts)
    return next((t for t in titles if t in _TOGETHER or t in _singles()), None), base


def _code(base: str) -> str:
    try:
        return Language.get(base, normalize=True).language or ""
    except LanguageTagError:
        return ""


def _single(scripts: Iterable[str]) -> frozenset[str]:
    every = {one for script in scripts for one in _TOGETHER.get(script, script).split()}
    return frozenset(every & {*_singles()})


@cache
def _singles() -> dict[str, regex.Pattern[str]]:
    """The scripts that Unicode assigns to characters, each with the pattern of its own."""
    found = {}
    for script in sorted(ALL_SCRIPTS - _TOGETHER.keys() - {"Zinh", "Zyyy", "Zzzz"}):
        try:
            found[script] = regex.compile(rf"\p{{Script={script}}}")
        except regex.error:  # not in Unicode, or not yet
            continue
    return found


@cache
def _pattern(scripts: frozenset[str]) -> regex.Pattern[str]:
    names = [rf"\p{{Script_Extensions={script}}}" for script in sorted(scripts)]
    return regex.compile(f"[{''.join(names)}]+")


def letters_of(text: str) -> str:
    """The letters of a text, in order."""
    return "".join(_LETTERS.findall(text))


def words(text: str) -> list[str]:
    """Runs of letters with their marks."""
    return _WORD.findall(text)


def script_plausible(text: str, scripts: frozenset[str], share: float) -> bool:
    """Whether a text has a letter, and at least `share` of its letters are of these scripts.

    If `scripts` is empty: whether there is a letter.
    """
    letters = letters_of(text)
    if not letters or not scripts:
        return bool(letters)
    pattern = _pattern(scripts)
    if pattern.fullmatch(letters):
        return True
    return len(letters) - len(pattern.sub("", letters)) >= share * len(letters)


def in_script(code: str, text: str) -> bool:
    """Whether half of a text's letters are of a script of its language, or it has no letter.

    Half, because names and quotations are often in another script than the text around them.
    """
    return not letters_of(text) or script_plausible(text, scripts_of(code), 0.5)


@cache
def script_of_character(character: str) -> str:
    """The code of a character's script; "Zyyy" if it has none, or several have it in common."""
    if _ASCII.fullmatch(character):
        return "Latn"
    found = (script for script, own in _singles().items() if own.match(character))
    return next(found, "Zyyy")


def script_in(texts: Iterable[str]) -> str | None:
    """The script of most letters of these texts; None if no letter has one."""
    counts = Counter(map(script_of_character, letters_of(" ".join(texts))))
    counts.pop("Zyyy", None)
    return max(counts, key=lambda script: counts[script], default=None)


def script(sentences: Sequence[str]) -> str:
    """The commonest first word of the letters' Unicode names: LATIN, CYRILLIC, DEVANAGARI ..."""
    letters = Counter(c for text in sentences for c in text if c.isalpha())
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[unicodedata.name(letter, "UNKNOWN").split()[0]] += count
    return scripts.most_common(1)[0][0] if scripts else "UNKNOWN"


def mostly_english(english: AbstractSet[str], translation: str) -> bool:
    """Whether more than 0.6 of the words of a translation are among the English ones.

    Words of three letters or more count, and only Latin ones are compared.
    """
    long = {word for word in words(translation.casefold()) if len(word) > 2}
    return sum(word.isascii() and word in english for word in long) > 0.6 * len(long)
