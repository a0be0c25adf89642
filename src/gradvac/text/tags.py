"""Converts language tags of any spelling (`fra_Latn`, `fr_FR`, `fre`, `zh_CN`) to one code each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations

from gradvac.errors import RunError
from gradvac.text.languages import ENGLISH, is_code, is_known

# CLDR's `pt` is the Portuguese of Brazil; corpora (TED, Debian) have `pt-br` beside `pt`.
_HOME = {"pt": "PT"}


def language_code(tag: str) -> str | None:
    """The code of a BCP-47 tag, or of a looser spelling; None if it names no language.

    The shortest tag, by CLDR's likely subtags, with underscores instead of hyphens, since a hyphen
    separates the languages of a direction: `fr`, `zh_Hans`, `sr_Latn`, `pt_BR`. A territory that
    implies a script is replaced by it (`zh_CN`); the likely territory is removed (`fr_FR`).
    """
    try:
        from langcodes import Language, standardize_tag
        from langcodes.tag_parser import LanguageTagError
    except ImportError as e:
        raise RunError("language tags need langcodes: pip install 'gradvac[toolkit]'") from e
    if not is_code(tag.replace("-", "_")) or not tag[:2].isalpha():
        return None
    try:
        found = Language.get(standardize_tag(tag))
    except LanguageTagError:
        return None
    if not found.is_valid() or not found.language:
        return None
    base = found.language
    if len(base) == 3 and not is_known(base):  # `lvs` is the Latvian usually called `lv`
        base = Language.get(standardize_tag(base, macro=True)).language or base
    bare = Language.make(base).maximize()
    full = Language.make(base, script=found.script, territory=found.territory).maximize()
    named = full.script != bare.script or (base == "zh" and (found.script or found.territory))
    script = full.script if named else None
    likely = Language.make(base, script=full.script).maximize().territory
    territory = found.territory if found.territory != _HOME.get(base, likely) else None
    return "_".join(part for part in (base, script, territory) if part)


def merged(rows: Iterable[Iterable[str]]) -> dict[str, str]:
    """Tags -> codes of all rows of a file, each row given as its tags; other cells are left out.

    Regions of a language (`en-US` beside `en-GB`, `en` beside `en-US`) are one language if no row
    has two of them. English never keeps its region: other languages are paired with it.
    """
    codes: dict[str, str | None] = {}
    together: set[frozenset[str]] = set()
    seen: set[frozenset[str]] = set()
    for row in rows:
        tags = frozenset(row)
        if tags not in seen:
            seen.add(tags)
            codes |= {tag: language_code(tag) for tag in row if tag not in codes}
            together |= {frozenset(pair) for pair in combinations(tags, 2)}
    found = {tag: code for tag, code in codes.items() if code}
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for tag, code in found.items():
        groups["_".join(p for p in code.split("_") if not _is_region(p))].append(tag)
    for bare, tags in groups.items():
        apart = not any(frozenset(pair) in together for pair in combinations(tags, 2))
        if apart and (len(tags) > 1 or bare == ENGLISH):
            found |= dict.fromkeys(tags, bare)
    return found


def _is_region(part: str) -> bool:
    return part.isdigit() or (len(part) == 2 and part.isupper())
