"""One code for each language of a run, for all spellings in its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from gradvac.text.blocks import Block, Row
from gradvac.text.languages import same_language


class Spellings:
    """Gives rows the codes of a run: those of ``first``, then the first one read.

    ``eng_Latn`` becomes ``en``, and `zho_Hans` `zh`, if the run has these; two codes of one row
    are never merged. ``say`` is called with each spelling that was changed.
    """

    def __init__(self, first: Iterable[str], say: Callable[[str], None]) -> None:
        self._codes, self._say = dict.fromkeys(first), say
        self._known: dict[tuple[str, ...], dict[str, str]] = {}

    def row(self, row: Row) -> Row:
        """The row with the codes of the run."""
        codes = self._of(tuple(row.texts), row.where)
        return Row({codes[c]: text for c, text in row.texts.items()}, row.where) if codes else row

    def block(self, block: Block) -> Block:
        """The block with the codes of the run."""
        codes = self._of(block.languages, f"{block.place}1")
        if not codes:
            return block
        mended = {n: self.row(row) for n, row in block.mended.items()}
        return replace(block, languages=tuple(codes[c] for c in block.languages), mended=mended)

    def _of(self, codes: tuple[str, ...], where: str) -> dict[str, str]:
        """The run's code for each code of a row; empty if they are the same."""
        if codes not in self._known:
            found = {code: self._one(code, codes, where) for code in codes}
            self._known[codes] = {} if all(a == b for a, b in found.items()) else found
        return self._known[codes]

    def _one(self, code: str, codes: tuple[str, ...], where: str) -> str:
        if code in self._codes:
            return code
        same = (c for c in self._codes if same_language(c, code))
        found = next(same, code)
        if found == code or found in codes:
            self._codes[code] = None
            return code
        self._say(f"{where}: {code!r} is read as {found!r}")
        return found
