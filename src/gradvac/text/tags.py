"""Language tags as files spell them (`fra_Latn`, `fr_FR`, `fre`, `zh_CN`) to one code each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations

from gradvac.errors import RunError
from gradvac.text.languages import ENGLISH, is_code, is_known

# CLDR takes `pt` for Brazil's Portuguese; corpora (TED, Debian) have `pt-br` beside it.
_HOME = {"pt": "PT"}


def language_code(tag: str) -> str | None:
    """The code of a BCP-47 tag, or of a looser spelling; None where it names no language.

    The shortest tag, by CLDR's likely subtags, with underscores for hyphens, since a hyphen stands
    between the languages of a direction: `fr`, `zh_Hans`, `sr_Latn`, `pt_BR`. A territory that
    implies a script becomes the script (`zh_CN`); one that is the likely one goes (`fr_FR`).
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
    if len(base) == 3 and not is_known(base):  # `lvs` is the Latvian that everybody calls `lv`
        base = Language.get(standardize_tag(base, macro=True)).language or base
    bare = Language.make(base).maximize()
    full = Language.make(base, script=found.script, territory=found.territory).maximize()
    named = full.script != bare.script or (base == "zh" and (found.script or found.territory))
    script = full.script if named else None
    likely = Language.make(base, script=full.script).maximize().territory
    territory = found.territory if found.territory != _HOME.get(base, likely) else None
    return "_".join(part for part in (base, script, territory) if part)


def merged(rows: Iterable[Iterable[str]]) -> dict[str, str]:
    """Tags -> codes of all the rows of a file, each row given as its tags; others are left out.

    Regions of a language (`en-US` beside `en-GB`, `en` beside `en-US`) are one language where no
    row has two of them, and English always is without its region: it is what others pair with.
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
