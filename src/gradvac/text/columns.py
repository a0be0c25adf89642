"""Is the language in its column? Scripts tell many apart, an identifier most of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from gradvac.corpus.importing.layouts import Piece
from gradvac.errors import CorpusError, RunError
from gradvac.text.filters import confusable
from gradvac.text.identify import Identifier
from gradvac.text.readers import Row
from gradvac.text.scripts import letters_of, script_in, script_plausible, scripts_of

SAMPLE = 400
# Sentences judged together, and the share of such lots that has to be in another language. Chosen
# here: single short sentences mislead an identifier, and a tenth of a good corpus is noise.
_LOT = 8
_WRONG = 0.7
# Letters of a text whose language is told alone, and the share of such rows that may be swapped.
_LONG = 25
_SOME = 0.15


def in_script(code: str, text: str) -> bool:
    """Whether half of the letters of a text are of a script of its language, or it has none."""
    return not letters_of(text) or script_plausible(text, scripts_of(code), 0.5)


def identifier_of(pieces: Sequence[Piece]) -> Identifier | None:
    """An identifier of all languages of the pieces; None without the extra."""
    try:
        return Identifier({code for piece in pieces for code in piece.languages.values()})
    except RunError:
        return None


def check_columns(piece: Piece, rows: Sequence[Row], identifier: Identifier | None) -> None:
    """Look at the first rows of a piece; without an identifier, at their scripts alone.

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
                f"{_where(piece, rows, code, wrong[0])}: the column {code!r} is written in "
                f"{script_in(wrong)} letters, not in {' or '.join(sorted(scripts_of(code)))}: "
                f"{wrong[0][:60]!r}{_swapped(code, columns)}"
            )
    labels = {code.split("_")[0]: code for code in columns}
    for code, texts in columns.items():
        if identifier is None or code in identifier.unknown:
            continue
        lots = Counter(
            identifier.identify(" ".join(texts[n : n + _LOT])) for n in range(0, len(texts), _LOT)
        )
        label, count = lots.most_common(1)[0]
        found = labels.get(label, code)  # of languages that are not here it may be mistaken
        if found != code and count > _WRONG * lots.total() and lots.total() > 1:
            raise CorpusError(
                f"{_where(piece, rows, code, texts[0])}: the column {code!r} is in {found!r}: "
                f"{texts[0][:60]!r}; are the languages swapped?"
            )
    if identifier is not None:
        for one, other in combinations([c for c in columns if c not in identifier.unknown], 2):
            _check_rows(rows, one, other, identifier)


def _check_rows(rows: Sequence[Row], one: str, other: str, identifier: Identifier) -> None:
    """Refuse two columns that change places in some of the rows."""
    if confusable(one.split("_")[0], other.split("_")[0]):
        return
    swapped = [identifier.label(other), identifier.label(one)]
    texts = [(row.where, [row.texts.get(code, "") for code in (one, other)]) for row in rows]
    long = [(w, pair) for w, pair in texts if min(len(letters_of(t)) for t in pair) > _LONG]
    wrong = [w for w, pair in long if [identifier.identify(text) for text in pair] == swapped]
    if len(wrong) > _SOME * len(long):
        raise CorpusError(
            f"{wrong[0]}: {one!r} is in {swapped[0]!r} and {other!r} in {swapped[1]!r}: they are "
            f"swapped in {len(wrong)} of the first {len(long)} rows long enough to tell"
        )


def _swapped(code: str, columns: dict[str, list[str]]) -> str:
    for other, texts in columns.items():
        theirs = sum(script_plausible(text, scripts_of(code), 0.5) for text in texts)
        if other != code and theirs > _WRONG * len(texts):
            return f"; the column {other!r} is: are the two swapped?"
    return ""


def _where(piece: Piece, rows: Sequence[Row], code: str, text: str) -> str:
    row = next((row for row in rows if row.texts.get(code) == text), None)
    return row.where if row else piece.name
