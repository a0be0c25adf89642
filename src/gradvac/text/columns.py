"""Checks that each column is in its language: by script, or by an identifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from gradvac.errors import CorpusError, RunError
from gradvac.text.blocks import Row
from gradvac.text.identify import IDENTIFIABLE, Identifier, confusable, label
from gradvac.text.languages import LANGUAGES
from gradvac.text.scripts import in_script, letters_of, script_in, scripts_of

SAMPLE = 400
# Sentences judged together, and the share of such groups that must be in another language. Chosen
# here: single short sentences mislead an identifier, and a tenth of a good corpus is noise.
_LOT = 8
_WRONG = 0.7
# The share of rows, each clearly identified, that may be swapped.
_SOME = 0.15


def check_columns(name: str, rows: Sequence[Row], identifier: Identifier | None) -> None:
    """Check the first rows of the files called `name`; by script if there is no identifier.

    Raises:
        CorpusError: most of a column is in another script, or in the language of another column.
    """
    columns: dict[str, list[str]] = {}
    for row in rows:
        for code, text in row.texts.items():
            columns.setdefault(code, []).append(text)
    for code, texts in columns.items():
        wrong = [text for text in texts if not in_script(code, text)]
        if len(wrong) > _WRONG * len(texts):
            raise CorpusError(
                f"{_where(name, rows, code, wrong[0])}: the column {code!r} is written in "
                f"{script_in(wrong)} letters, not in {' or '.join(sorted(scripts_of(code)))}: "
                f"{wrong[0][:60]!r}{_swapped(code, columns)}"
            )
    labels = {label(code): code for code in columns}
    for code, texts in columns.items():
        if identifier is None or code in identifier.unknown:
            continue
        lots = Counter(
            identifier.identify(" ".join(texts[n : n + _LOT])) for n in range(0, len(texts), _LOT)
        )
        likeliest, count = lots.most_common(1)[0]
        found = labels.get(likeliest, code)  # it may be wrong about languages that are not here
        if found != code and count > _WRONG * lots.total() and lots.total() > 1:
            raise CorpusError(
                f"{_where(name, rows, code, texts[0])}: the column {code!r} is in {found!r}: "
                f"{texts[0][:60]!r}; are the languages swapped?"
            )
    if identifier is not None:
        for one, other in combinations([c for c in columns if c not in identifier.unknown], 2):
            _check_rows(rows, one, other, identifier)


def _check_rows(rows: Sequence[Row], one: str, other: str, identifier: Identifier) -> None:
    """Raise if the two columns are swapped in some of the rows."""
    swapped = [label(other), label(one)]
    if confusable(*swapped):
        return
    texts = [(row.where, [row.texts.get(code, "") for code in (one, other)]) for row in rows]
    long = [(w, pair) for w, pair in texts if min(len(letters_of(t)) for t in pair) > IDENTIFIABLE]
    wrong = [w for w, pair in long if [identifier.identify(text) for text in pair] == swapped]
    if len(wrong) > _SOME * len(long):
        raise CorpusError(
            f"{wrong[0]}: {one!r} is in {swapped[0]!r} and {other!r} in {swapped[1]!r}: they are "
            f"swapped in {len(wrong)} of the first {len(long)} rows long enough to tell"
        )


def check_header(name: str, codes: Sequence[str], rows: Sequence[Sequence[str]]) -> str | None:
    """Find which of all languages the columns of a file are in; `codes` are those of its header.

    Returns a note if that could not be checked.

    Raises:
        CorpusError: columns are swapped, or one is in another language.
    """
    try:
        identifier = Identifier({*LANGUAGES, *codes})
    except RunError as error:
        return f"{name}: columns were not checked: {error}"
    found = []
    for column, code in enumerate(codes):
        text = " ".join(row[column] for row in rows)
        unknown = code in identifier.unknown or len(text) < 4 * IDENTIFIABLE
        found.append(label(code) if unknown else identifier.identify(text))
    wrong = [
        (code, other)
        for code, other in zip(codes, found, strict=True)
        if not confusable(label(code), other)
    ]
    if not wrong:
        return None
    if len(wrong) == len(codes) == 2 and confusable(found[0], label(codes[1])):
        raise CorpusError(
            f"{name}:1: the columns are swapped: the header says {', '.join(codes)}, "
            f"the text is in {', '.join(found)}"
        )
    told = "; ".join(f"column {code!r} is in {other!r}" for code, other in wrong)
    raise CorpusError(f"{name}:1: {told}, by the first {len(rows)} rows")


def _swapped(code: str, columns: dict[str, list[str]]) -> str:
    for other, texts in columns.items():
        theirs = sum(bool(letters_of(text)) and in_script(code, text) for text in texts)
        if other != code and theirs > _WRONG * len(texts):
            return f"; the column {other!r} is: are the two swapped?"
    return ""


def _where(name: str, rows: Sequence[Row], code: str, text: str) -> str:
    row = next((row for row in rows if row.texts.get(code) == text), None)
    return row.where if row else name
