"""Turn a raw pair of interface or help texts into clean sentence pairs, or say why not."""

import html
import re
import unicodedata
from collections.abc import Iterator

MIN_WORDS = 3
MAX_CHARACTERS = 400  # about 100 subwords: longer help paragraphs are mostly lists run together

SCRIPTS = {
    "cyrillic": re.compile(r"[\u0400-\u052f]"),
    "devanagari": re.compile(r"[\u0900-\u097f]"),
    "latin": re.compile(r"[A-Za-z\u00aa-\u024f\u1e00-\u1eff]"),
}
SCRIPT_OF = {"ru": "cyrillic", "kk": "cyrillic", "hi": "devanagari", "ne": "devanagari"}

_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
# A pattern language of its own in each project; `{}` stands for all of them, so that both sides
# can be compared and a model sees one symbol. Alternatives, in order: Fluent and brace
# placeholders, LibreOffice's $(ARG1) and %FILENAME, $name$, printf with and without position.
_PLACEHOLDER = re.compile(
    r"""\{\s*[-$\w.]*(?:\([^()]*\))?[^{}"]*\}
      | \$\(\w+\) | \$\{\w+\} | \$[A-Za-z_]\w*\$? | %[A-Z]{2}[A-Z_]*\b | %\{\w+\}
      | %\(\w+\)[sd] | %\d+\$?-?\d*[SsDdluiC]*(?![\w%]) | %[.\d]*l?[SsdDiux](?!\w) | \#\d+\b""",
    re.VERBOSE,
)
_FLUENT_LITERAL = re.compile(r'\{\s*"([^"]*)"\s*\}')
_INVISIBLE = re.compile(r"[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_TRAILING_ACCELERATOR = re.compile(r"\s*\([&~_]\w\)")
_CODE = re.compile(
    r"https?:|www\.|\w\(\)|::|[=<>{}\\|;]{2}|[{}\\<>|^`_~]|\w/\w+/|[a-z]\.[a-z]+\.[a-z]"
    r"|[a-z][A-Z][a-z]+[A-Z]|^\s*[-.]\w|%\w|=\s*\w*\(|;\S|[#$@]"
)
# One digit is often spelled out or moved ("5th level"); longer numbers are the same everywhere.
_NUMBER = re.compile(r"\d{2,}")
_WORD = re.compile(r"[^\W\d_]+")
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

    `catalogue` says that the text comes from LibreOffice's interface, where `~` and `_` mark the
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
    """Pair the sentences of two paragraphs if both split alike, else the paragraphs."""
    left, right = sentences(english), sentences(translation)
    alike = len(left) == len(right) and all(
        length_plausible(a, b) for a, b in zip(left, right, strict=True)
    )
    yield from zip(left, right, strict=True) if alike else [(english, translation)]


def length_plausible(english: str, translation: str) -> bool:
    """Whether the two lengths in characters are what translations of one another have."""
    # Short texts vary more: "Undo" is "Rückgängig machen". The constant lets them.
    low, high = sorted((len(english) + 10, len(translation) + 10))
    return high <= 2.2 * low


def words(text: str) -> list[str]:
    """Runs of letters."""
    return _WORD.findall(text)


def rejection(english: str, translation: str, code: str) -> str | None:
    """Why this cleaned pair is no good for training, or None if it is."""
    bare = english.replace("{}", " ")
    bare_translation = translation.replace("{}", " ")
    if len(words(bare)) < MIN_WORDS:
        return "fewer than 3 English words"
    if not translation:
        return "empty translation"
    if max(len(english), len(translation)) > MAX_CHARACTERS:
        return "longer than 400 characters"
    if english.count("{}") != translation.count("{}"):
        return "placeholders differ"
    if any(_CODE.search(side.replace("{}", "\ufffc")) for side in (english, translation)):
        return "code or leftover markup"
    if sorted(_NUMBER.findall(english)) != sorted(_NUMBER.findall(translation)):
        return "numbers differ"
    if sum(c.isalpha() or c.isspace() for c in bare) < 0.75 * len(bare):
        return "under three quarters letters"
    if not _script_plausible(bare, "latin", 0.95):
        return "English side in another script"
    # Names of programs stay Latin in every script; nothing else may creep into a Latin text.
    script = SCRIPT_OF.get(code, "latin")
    if not _script_plausible(bare_translation, script, 0.95 if script == "latin" else 0.5):
        return "translation in another script"
    if _left_in_english(bare, bare_translation):
        return "left in English"
    if not length_plausible(english, translation):
        return "lengths implausible"
    return None


def _script_plausible(text: str, script: str, share: float) -> bool:
    letters = words(text)
    total = sum(map(len, letters))
    return total > 0 and len(SCRIPTS[script].findall("".join(letters))) >= share * total


def _left_in_english(english: str, translation: str) -> bool:
    # Latin-script words of three letters or more; names of programs may stay.
    theirs = {word for word in words(translation.casefold()) if len(word) > 2 and word.isascii()}
    ours = set(words(english.casefold()))
    everything = {word for word in words(translation.casefold()) if len(word) > 2}
    return english == translation or len(theirs & ours) > 0.6 * len(everything)
