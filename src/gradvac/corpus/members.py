"""The files of a package with text to translate: their kind and language.

The same table chooses packages from the index of contents and files from a package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gradvac.text.languages import ENGLISH, is_known

# Countries whose variety is the default when a translation names a country; a translation for
# another country (fr_CA, es_MX) is another text of the same language and is left out.
_HOME = {
    "ar": "AR SA EG", "bg": "BG", "bn": "BD IN", "ca": "ES", "cs": "CZ", "da": "DK", "de": "DE",
    "el": "GR", "es": "ES", "et": "EE", "eu": "ES", "fa": "IR", "fr": "FR", "gl": "ES",
    "hi": "IN", "nb": "NO", "ne": "NP", "nl": "NL", "nn": "NO", "ru": "RU", "sv": "SE",
    "sw": "TZ KE", "ta": "IN", "te": "IN", "ur": "PK",
}  # fmt: skip
_ALIASES = {
    "C": ENGLISH, "en_US": ENGLISH, "nb_NO": "nb", "no": "nb", "pt_PT": "pt", "pt_BR": "pt_BR",
    "in": "id", "iw": "he", "fil": "tl", "zh": "zh_CN", "zh_Hans": "zh_CN", "zh_Hant": "zh_TW",
    "zh_CN": "zh_CN", "zh_TW": "zh_TW",
}  # fmt: skip
_CODE = re.compile(r"([a-z]{2,3})(?:[_-]([A-Za-z]{2,4}))?(?:\.[\w-]+)?")


def language_of(tag: str) -> str | None:
    """Our code of a locale name (`de`, `de_DE.UTF-8`, `pt-BR`, `C`); None if we have none.

    Other scripts and varieties (`sr@latin`, `fr_CA`, `en_GB`) have none.
    """
    found = _CODE.fullmatch(tag) if tag != "C" else None
    if tag == "C":
        return ENGLISH
    if found is None:
        return None
    base, country = found[1], found[2] or ""
    alias = _ALIASES.get(f"{base}_{country.upper() if len(country) == 2 else country}")
    if country and alias is None:
        home = _HOME.get(base)
        if base in (ENGLISH, "pt", "zh", "sr") or len(country) != 2:
            return None
        if home is not None and country.upper() not in home.split():
            return None
    code = alias or _ALIASES.get(base, base)
    return code if is_known(code) else None


@dataclass(frozen=True, slots=True)
class Member:
    """A file with text: its kind, its document (the same in all languages), its language."""

    kind: str
    document: str
    language: str


# Kind -> pattern with `language` and what names the document. The order matters.
_PATTERNS = {
    "libreoffice-help": re.compile(
        r"usr/share/libreoffice/help/(?P<language>[\w-]+)/(?P<document>text/.+\.html)"
    ),
    "libreoffice": re.compile(
        r"usr/lib/libreoffice/program/resource/(?P<language>[\w@-]+)/LC_MESSAGES/"
        r"(?P<document>[^/]+)\.mo"
    ),
    "catalogue": re.compile(
        r".+/(?P<language>[\w@.-]+)/LC_MESSAGES/(?P<document>[^/]+)\.(?:mo|gmo)"
    ),
    "mozilla": re.compile(r".+/langpack-(?P<language>[\w-]+)@(?P<document>[a-z]+)[\w.-]*\.xpi"),
    "mozilla-english": re.compile(
        r"usr/(?:lib|share)/(?P<document>firefox|thunderbird)(?:-esr)?/(?:browser/)?omni\.ja"
    ),
    "help": re.compile(
        r"usr/share/help/(?P<language>[\w@.-]+)/(?P<document>.+\.(?:page|docbook|xml))"
    ),
    "messages": re.compile(r"(?P<document>usr/.+/i18n(?:/.+)?)/(?P<language>[\w-]+)\.json"),
}


def classify(path: str) -> Member | None:
    """The text in the file at `path` of a package, None for any other file."""
    path = path.removeprefix("./")
    for kind, pattern in _PATTERNS.items():
        if (found := pattern.fullmatch(path)) is not None:
            groups = found.groupdict()
            tag = groups.get("language", "C")
            if kind == "messages":  # MediaWiki writes pt-br, zh-hans
                base, _, rest = tag.partition("-")
                tag = f"{base}-{rest.upper() if len(rest) == 2 else rest.title()}" if rest else tag
            language = language_of(tag)
            return Member(kind, groups["document"], language) if language else None
    return None
