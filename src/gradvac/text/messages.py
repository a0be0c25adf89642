"""Turn a raw pair of interface or help texts into clean sentence pairs, or say why not."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from gradvac.text.scripts import mostly_english, script_plausible, usual_scripts, words

MIN_WORDS = 3
MAX_CHARACTERS = 400  # about 100 subwords: longer help paragraphs are mostly lists run together

LATIN = frozenset({"Latn"})

_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
# Each project has its own placeholder syntax; `{}` replaces all of them, so that both sides can be
# compared and a model sees one symbol. Alternatives, in order: Fluent and brace placeholders,
# LibreOffice's $(ARG1) and %FILENAME, $name$, printf with and without position.
_PLACEHOLDER = re.compile(
    r"""\{\s*[-$\w.]*(?:\([^()]*\))?[^{}"]*\}
      | \$\(\w+\) | \$\{\w+\} | \$[A-Za-z_]\w*\$? | %[A-Z]{2}[A-Z_]*\b | %\{\w+\}
      | %\(\w+\)[sd] | %\d+\$?-?\d*[SsDdluiC]*(?![\w%]) | %[.\d]*l?[SsdDiux](?!\w) | \#\d+\b""",
    re.VERBOSE,
)
# What programs in C, Python, Perl and Qt use in their messages; GCC quotes with %< and %>.
_PRINTF = re.compile(
    r"""%\([\w.-]+\)[-+\d.]*[a-zA-Z] | %<\w+> | %\d+\$[-+#'\d.*]*(?:hh|ll|[hlqjztL])?[a-zA-Z]
      | %[-+#'\d.*]*(?:hh|ll|[hlqjztL])?\+?[a-zA-Z](?![a-z]) | %[Ln]?\d+ | @\w+@""",
    re.VERBOSE,
)
# Qt marks any letter of a menu, "Sp&eichern"; a markup entity is not such a mark.
_ACCELERATOR = re.compile(r"&(?=[^\W\d_])(?!\w+;)")
_PARAGRAPHS = re.compile(r"\n\s*\n")
_FLUENT_LITERAL = re.compile(r'\{\s*"([^"]*)"\s*\}')
_INVISIBLE = re.compile(r"[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_TRAILING_ACCELERATOR = re.compile(r"\s*\([&~_]\w\)")
_CODE = re.compile(
    r"https?:|www\.|\w\(\)|::|[=<>{}\\|;]{2}|[{}\\<>|^`_~]|\w/\w+/|[a-z]\.[a-z]+\.[a-z]"
    r"|[a-z][A-Z][a-z]+[A-Z]|^\s*[-.]\w|%\w|=\s*\w*\(|;\S|[#$@]"
)
# One digit is often written as a word or moved ("5th level"); longer numbers are always the same.
_NUMBER = re.compile(r"\d{2,}")
_SENTENCE_END = re.compile(
    r"(?<=[.!?])([\"”»’)\]]*)\s+(?=[\"“«(\[¿¡]?[^\W\d_a-zа-яёіїєґәғқңөұүһ])|(?<=[।])()\s+"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:e\.g|i\.e|etc|vs|cf|Mr|Dr|St|No|vol|p|pp|ca|z\.\s?B|d\.\s?h|bzw|usw|u\.\s?a"
    r"|ex|p\.\s?ex|např|tzv|tj|apod|т\.\s?е|т\.\s?д|т\.\s?п|напр|др|см|por ej|p\. ej|esim|ts|vrt"
    r"|nt|jne|st|vb|örn|dll|dsb|[A-Z])\.$",
    re.IGNORECASE,
)


def clean(text: str, catalogue: bool) -> str:
    """Plain text of one message: no markup, no accelerators, `{}` for each placeholder.

    `catalogue` says that the text is from LibreOffice's interface, where `~` and `_` mark the
    letter that a menu underlines; elsewhere they are ordinary characters.
    """
    text = unicodedata.normalize("NFC", _TAG.sub("", text))
    text = _INVISIBLE.sub("", html.unescape(text))
    text = text.replace("\\n", " ").replace("\\t", " ").replace("%PRODUCTNAME", "LibreOffice")
    text = _TRAILING_ACCELERATOR.sub("", text)
    if catalogue:
        text = re.sub(r"~(?=\w)", "", text) if text.count("~") == 1 else text
        text = re.sub(r"_(?=[^\W_])", "", text) if text.count("_") == 1 else text
    text = re.sub(r"(?<!\w)&(?=\w)", "", text)
    text = _PLACEHOLDER.sub("{}", _FLUENT_LITERAL.sub(r"\1", text)).replace("%%", "%")
    return " ".join(text.split())


def message_pairs(english: str, translation: str, kind: str) -> Iterator[tuple[str, str]]:
    """Clean sentence pairs of one message of a kind of source (see `members`).

    Messages of programs may have several paragraphs, and their own placeholders.
    """
    left, right = _english_paragraphs(english, kind), _paragraphs(translation, kind)
    if len(left) != len(right):
        left, right = (" ".join(left),), (" ".join(right),)
    for one, other in zip(left, right, strict=True):
        yield from sentence_pairs(one, other)


def _paragraphs(text: str, kind: str) -> tuple[str, ...]:
    if kind != "catalogue":
        return (clean(text, kind == "libreoffice"),)
    return tuple(clean(_printf(part), True) for part in _PARAGRAPHS.split(text))


# The same English text is repeated for each language of a package.
_english_paragraphs = lru_cache(maxsize=1 << 15)(_paragraphs)


def _printf(text: str) -> str:
    if text.count("&") == 1:
        text = _ACCELERATOR.sub("", text)
    if "%" not in text and "@" not in text:
        return text
    text = re.sub("%[<>]", "'", text.replace("%%", "\ue000"))
    return _PRINTF.sub("{}", text).replace("\ue000", "%")


def sentences(text: str) -> list[str]:
    """Split a paragraph at sentence ends, not after an abbreviation."""
    found, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        piece = text[start : end.start()] + (end[1] or "")
        if not _ABBREVIATION.search(piece):
            found.append(piece.strip())
            start = end.end()
    return [*found, text[start:].strip()]


def sentence_pairs(english: str, translation: str) -> Iterator[tuple[str, str]]:
    """Pair the sentences of two paragraphs if number and lengths agree, else the paragraphs."""
    left, right = sentences(english), sentences(translation)
    alike = len(left) == len(right) and all(
        length_plausible(a, b) for a, b in zip(left, right, strict=True)
    )
    yield from zip(left, right, strict=True) if alike else [(english, translation)]


def length_plausible(english: str, translation: str) -> bool:
    """Whether the two lengths in characters are plausible for a translation."""
    # Short texts vary more: "Undo" is "Rückgängig machen". The constant allows this.
    low, high = sorted((len(english) + 10, len(translation) + 10))
    return high <= 2.2 * low


class _English(NamedTuple):
    """What the rules need of the English side, which is repeated for each language."""

    words: frozenset[str]
    length: int
    code: bool
    numbers: list[str]
    letters: bool
    latin: bool


@lru_cache(maxsize=1 << 15)
def _english(text: str) -> _English:
    bare = text.replace("{}", " ")
    return _English(
        frozenset(words(bare.casefold())),
        len(words(bare)),
        _has_code(text),
        sorted(_NUMBER.findall(text)),
        sum(c.isalpha() or c.isspace() for c in bare) >= 0.75 * len(bare),
        script_plausible(bare, LATIN, 0.95),
    )


def _has_code(text: str) -> bool:
    return _CODE.search(text.replace("{}", "\ufffc")) is not None


def rejection(english: str, translation: str, code: str, min_words: int = MIN_WORDS) -> str | None:
    """Why this cleaned pair is not used for training, or None if it is."""
    original = _english(english)
    bare = translation.replace("{}", " ")
    if original.length < min_words:
        return f"fewer than {min_words} English words"
    if not translation:
        return "empty translation"
    if max(len(english), len(translation)) > MAX_CHARACTERS:
        return "longer than 400 characters"
    if english.count("{}") != translation.count("{}"):
        return "placeholders differ"
    if original.code or _has_code(translation):
        return "code or leftover markup"
    if original.numbers != sorted(_NUMBER.findall(translation)):
        return "numbers differ"
    if not original.letters:
        return "under three quarters letters"
    if not original.latin:
        return "English side in another script"
    # Program names stay Latin in every script; a Latin text may contain no other script.
    scripts = usual_scripts(code) or LATIN
    if not script_plausible(bare, scripts, 0.95 if scripts == LATIN else 0.5):
        return "translation in another script"
    if english == translation or mostly_english(original.words, bare):
        return "left in English"
    if not length_plausible(english, translation):
        return "lengths implausible"
    return None
