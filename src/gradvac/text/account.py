"""Counts every row that was read: kept, or left out for a reason, with places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gradvac.errors import CorpusError

Policy = Literal["drop", "fail"]
"""What happens to a row with a problem: it is counted and dropped, or it ends the reading."""

ABSENT = "not in both languages"
"""The reason for rows without text in both languages of a direction; shares do not count them."""

EXAMPLES = 3  # chosen here: enough to see a pattern, few enough to print


@dataclass(frozen=True, slots=True)
class AccountLine:
    """One line of an account: how many rows of `corpus` were left out for `reason`.

    The first line of each corpus has the reason "kept". `share`, in [0, 1], is relative to the rows
    that have both languages; it is 0 for rows that do not. `first` is the first place, as
    `file:line`, empty for kept rows.
    """

    corpus: str
    reason: str
    count: int
    share: float
    first: str


@dataclass(slots=True)
class _Tally:
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, where: str, count: int) -> None:
        self.count += count
        if len(self.first) < EXAMPLES:
            self.first.append(where)

    def to_dict(self) -> dict[str, Any]:
        return {"count": self.count, "first": list(self.first)}


@dataclass(slots=True)
class _Corpus:
    kept: int = 0
    dropped: dict[str, _Tally] = field(default_factory=dict)
    notes: dict[str, _Tally] = field(default_factory=dict)

    @property
    def read(self) -> int:
        return self.kept + sum(tally.count for tally in self.dropped.values())


class Account:
    """Counts rows by (corpus, reason), with the first few places of each reason.

    Every row is either kept or dropped for one reason, so the counts of a corpus add up to the
    rows that were read from it. Notes are counted separately.
    """

    def __init__(self, policy: Policy = "drop") -> None:
        if policy not in ("drop", "fail"):
            raise ValueError(f"policy is {policy!r}: allowed are 'drop' and 'fail'")
        self.policy: Policy = policy
        self._corpora: dict[str, _Corpus] = {}

    def start(self, corpus: str) -> None:
        """List `corpus` in the account, even if nothing is found in it."""
        self._of(corpus)

    def keep(self, corpus: str, count: int = 1) -> None:
        """Count rows of `corpus` as kept."""
        self._of(corpus).kept += count

    def drop(self, corpus: str, reason: str, where: str, count: int = 1) -> None:
        """Count rows left out by a rule; they are not errors and never end the reading."""
        self._of(corpus).dropped.setdefault(reason, _Tally()).add(where, count)

    def note(self, corpus: str, what: str, where: str, count: int = 1) -> None:
        """Count rows with a note, whether they are kept or not."""
        self._of(corpus).notes.setdefault(what, _Tally()).add(where, count)

    def noted(self, what: str | None = None, corpus: str | None = None) -> int:
        """Number of rows with the note `what`, or with any, in `corpus` or in all."""
        return self._counted({name: c.notes for name, c in self._corpora.items()}, what, corpus)

    def problem(
        self, corpus: str, reason: str, where: str, detail: str = "", count: int = 1
    ) -> None:
        """Count rows that cannot be read, or raise CorpusError where the policy is "fail"."""
        self.drop(corpus, reason, where, count)
        if self.policy == "fail":
            raise CorpusError(f"{where}: {reason}" + (f": {detail}" if detail else ""))

    def kept(self, corpus: str | None = None) -> int:
        """Rows kept in `corpus`, or in all."""
        return sum(c.kept for name, c in self._corpora.items() if corpus in (None, name))

    def read(self, corpus: str | None = None) -> int:
        """Rows seen in `corpus`, or in all: those kept and those left out."""
        return sum(c.read for name, c in self._corpora.items() if corpus in (None, name))

    def dropped(self, reason: str | None = None, corpus: str | None = None) -> int:
        """Rows left out, for `reason` or for any, in `corpus` or in all."""
        return self._counted({name: c.dropped for name, c in self._corpora.items()}, reason, corpus)

    @staticmethod
    def _counted(
        tallies: dict[str, dict[str, _Tally]], reason: str | None, corpus: str | None
    ) -> int:
        return sum(
            tally.count
            for name, own in tallies.items()
            for why, tally in own.items()
            if corpus in (None, name) and reason in (None, why)
        )

    def table(self) -> list[AccountLine]:
        """Lines to print: corpora in order of first use, in each "kept", then reasons by count.

        Rows not in both languages come last.
        """
        lines: list[AccountLine] = []
        for name, corpus in self._corpora.items():
            absent = corpus.dropped.get(ABSENT, _Tally()).count
            fit = max(corpus.read - absent, 1)
            lines.append(AccountLine(name, "kept", corpus.kept, corpus.kept / fit, ""))
            order = lambda item: (item[0] == ABSENT, -item[1].count)
            lines += [
                AccountLine(name, why, t.count, t.count / fit if why != ABSENT else 0, t.first[0])
                for why, t in sorted(corpus.dropped.items(), key=order)
            ]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The whole account as JSON types."""
        return {
            "policy": self.policy,
            "corpora": {
                name: {
                    "read": corpus.read,
                    "kept": corpus.kept,
                    "dropped": {why: tally.to_dict() for why, tally in corpus.dropped.items()},
                    **_notes(corpus),
                }
                for name, corpus in self._corpora.items()
            },
        }

    def __str__(self) -> str:
        lines = self.table()
        corpora = max((len(line.corpus) for line in lines), default=0)
        reasons = max((len(line.reason) for line in lines), default=0)
        told = [
            f"{line.corpus:<{corpora}}  {line.reason:<{reasons}}  {line.count:>11,}  "
            f"{'' if line.reason == ABSENT else f'{line.share:.1%}':>6}  {line.first}".rstrip()
            for line in lines
        ]
        told += [
            f"note: {name}: {what}: {tally.count:,} rows, the first at {tally.first[0]}"
            for name, corpus in self._corpora.items()
            for what, tally in corpus.notes.items()
        ]
        return "\n".join(told)

    def _of(self, corpus: str) -> _Corpus:
        found = self._corpora.get(corpus)
        if found is None:
            found = self._corpora[corpus] = _Corpus()
        return found


def _notes(corpus: _Corpus) -> dict[str, Any]:
    """The notes of a corpus, if there are any: accounts of earlier versions have none."""
    notes = {what: tally.to_dict() for what, tally in corpus.notes.items()}
    return {"notes": notes} if notes else {}
