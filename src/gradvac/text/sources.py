"""Sources of parallel text: files, format and languages, checked before they are read.

| format  | files                        | languages                                        |
|---------|------------------------------|--------------------------------------------------|
| `tsv`   | `path`                       | header of codes, or `languages` column by column |
| `csv`   | as `tsv`                     | as `tsv`; cells may be in quotation marks        |
| `text`  | `paths`, one per language    | the keys of `paths`; line n translates line n    |
| `jsonl` | `path`                       | keys of each object, or of its "translation"     |
| `mo`    | `paths`, one per translation | the keys of `paths`, from `msgid_language`       |
| `po`    | as `mo`                      | as `mo`                                          |

All are UTF-8 (catalogues may name another charset) and may be compressed with gzip, xz or bzip2.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gradvac.errors import RecipeError
from gradvac.text.languages import ENGLISH, is_code, nearest_code
from gradvac.text.textfiles import COMPRESSED, LINE_LIMIT

FORMATS = ("tsv", "text", "jsonl", "mo", "po", "csv")


@dataclass(frozen=True, slots=True)
class Source:
    """Files that hold parallel text; see the table at the top of this module.

    Exactly one of `path` and `paths` is given. `format` None is inferred from the suffix.
    `languages` names the columns of a TSV without header, or picks columns or keys.
    `line_limit` is in bytes; a longer line is a problem of its row. `check` False skips the check
    that columns belong together (`alignment`); `quoted` says that TSV cells may be in quotation
    marks, as in CSV; `unescape` undoes Moses' escapes of special characters (`escapes`).

    Raises:
        RecipeError: a format that does not exist or does not fit, or a code that is no language.
    """

    format: str | None = None
    path: Path | None = None
    paths: Mapping[str, Path] | None = None
    languages: tuple[str, ...] | None = None
    msgid_language: str = ENGLISH
    line_limit: int = LINE_LIMIT
    check: bool = True
    quoted: bool = False
    unescape: bool = False

    def __post_init__(self) -> None:
        if (self.path is None) == (self.paths is None) or self.paths == {}:
            raise RecipeError("a source needs either path (one file) or paths (language: file)")
        set_ = object.__setattr__
        if self.path is not None:
            set_(self, "path", Path(self.path))
        if self.paths is not None:
            set_(self, "paths", {code: Path(path) for code, path in self.paths.items()})
        if self.languages is not None:
            set_(self, "languages", tuple(self.languages))
        set_(self, "format", _infer_format(self) if self.format is None else self.format)
        _check(self)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order given."""
        return (self.path,) if self.path is not None else tuple((self.paths or {}).values())

    @property
    def name(self) -> str:
        """The name under which an account counts this source: its files."""
        return ", ".join(str(path) for path in self.files)


def _infer_format(source: Source) -> str:
    suffixes = {
        (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.removeprefix(".")
        for path in source.files
    }
    found = suffixes.pop()
    if not suffixes and found in FORMATS:
        return found
    if source.paths is not None:
        return "text"
    raise RecipeError(
        f"{source.name}: the suffix {found!r} names no format; rename the file or set format: "
        f"allowed are {', '.join(FORMATS)}{_nearest(found)}"
    )


def _nearest(text: str) -> str:
    found = difflib.get_close_matches(text.lower(), FORMATS, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def _check(source: Source) -> None:
    if source.format not in FORMATS:
        raise RecipeError(
            f"format is {source.format!r}: allowed are {', '.join(FORMATS)}"
            f"{_nearest(str(source.format))}"
        )
    by_language = source.format in ("text", "mo", "po")
    if by_language and source.paths is None:
        raise RecipeError(
            f"{source.name}: format {source.format} needs paths (language: file), as in "
            f"paths: {{fr: {source.path}}}"
        )
    if not by_language and source.path is None:
        raise RecipeError(f"{source.name}: format {source.format} needs path (one file)")
    if source.quoted and source.format not in ("tsv", "csv"):
        raise RecipeError(f"{source.name}: quoted is for tsv and csv, not for {source.format}")
    codes = [*(source.paths or ()), *(source.languages or ()), source.msgid_language]
    for code in codes:
        if not is_code(code):
            raise RecipeError(
                f"{code!r} is not a language code: "
                f"letters, digits and underscores are allowed{nearest_code(code)}"
            )
    named = source.paths if source.format == "text" else source.languages
    if named is not None and len(set(named)) < max(2, len(named)):
        raise RecipeError(f"languages are {tuple(named)}: allowed are two or more different codes")
    if source.format in ("mo", "po") and source.msgid_language in (source.paths or ()):
        raise RecipeError(
            f"paths has {source.msgid_language!r}, which is the language of the msgids"
        )
