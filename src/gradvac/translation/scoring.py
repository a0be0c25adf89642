"""BLEU and chrF++ by sacreBLEU, per direction and averaged as in the papers."""

from __future__ import annotations

import statistics
import unicodedata
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sacrebleu.metrics.chrf import CHRF

from gradvac.text.identify import OffTarget
from gradvac.text.languages import Direction, family, is_english
from gradvac.translation.tokenizers import bleu_metric, tokenizer

Side = Literal["all", "en-any", "any-en", "other", "zero-shot"]
SIDES: dict[str, str] = {"any-en": "Any->En", "en-any": "En->Any", "other": "X->Y"}
"""The groups of trained directions, as named in tables."""
SubsetKind = Literal["all", "level", "family"]


@dataclass(frozen=True)
class Score:
    """Corpus scores, 0 to 100, with the signatures that make them comparable (Post 2018)."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    sentences: int


def score(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> Score:
    """Score translations against one reference each: BLEU, and chrF++ (chrF with word bigrams).

    ``tokenize`` is the tokenizer for BLEU, see `bleu_metric`. Both sides are compared in Unicode
    NFC: another encoding of the same characters is not an error. Raises ValueError if there is
    nothing to score or the lengths differ.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(
            f"{len(hypotheses)} hypotheses and {len(references)} references: "
            "needed are equally many, and at least one"
        )
    bleu, chrf = bleu_metric(tokenize), CHRF(word_order=2)
    hypotheses, references = canonical(hypotheses), canonical(references)
    return Score(
        bleu.corpus_score(hypotheses, [references]).score,
        chrf.corpus_score(hypotheses, [references]).score,
        str(bleu.get_signature()),
        str(chrf.get_signature()),
        len(references),
    )


def canonical(texts: Sequence[str]) -> list[str]:
    """The texts in Unicode NFC, which changes the encoding of characters, not the characters."""
    return [unicodedata.normalize("NFC", text) for text in texts]


@dataclass(frozen=True)
class Average:
    """Unweighted mean of the scores of some directions.

    ``side`` is the position of English, or "zero-shot"; ``subset`` names a resource level or a
    language family, by ``kind``, or is "all" for all directions of the side.
    """

    side: Side
    kind: SubsetKind
    subset: str
    directions: int
    bleu: float
    chrf: float


@dataclass(frozen=True)
class Remark:
    """A note on a score: ``count`` sentences of ``of`` (a direction or file).

    ``scored`` says whether they were scored anyway; ``first`` has the first places.
    """

    of: str
    what: str
    count: int
    scored: bool
    first: tuple[str, ...] = ()


@dataclass(frozen=True)
class DirectionScores:
    """The scores of every direction; ``levels`` gives resource levels of those that have one.

    ``zero_shot`` are the directions that were never trained, averaged separately; ``off_target``
    has the directions whose translations were identified.
    """

    directions: dict[str, Score]
    levels: dict[str, str]
    zero_shot: AbstractSet[str] = frozenset()
    off_target: dict[str, OffTarget] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()

    @property
    def notes(self) -> list[str]:
        """The remarks in words, one line per kind, those that were not scored first."""
        kinds: dict[tuple[bool, str], list[Remark]] = {}
        for remark in sorted(self.remarks, key=lambda r: r.scored):
            kinds.setdefault((remark.scored, remark.what), []).append(remark)
        return [
            f"{'' if scored else 'not scored: '}{what}: "
            + ", ".join(f"{r.of} {r.count:,}" for r in remarks)
            for (scored, what), remarks in kinds.items()
        ]

    @property
    def signatures(self) -> dict[str, str]:
        """Every signature in use, by its directions."""
        users: dict[str, list[str]] = {}
        for name, found in self.directions.items():
            users.setdefault(found.bleu_signature, []).append(name)
        most = max(users, key=lambda signature: len(users[signature]), default="")
        signatures = {
            "BLEU" if signature == most else f"BLEU {', '.join(names)}": f"BLEU|{signature}"
            for signature, names in users.items()
        }
        for found in self.directions.values():
            signatures["chrF++"] = f"chrF2++|{found.chrf_signature}"
        return signatures

    def averages(self) -> list[Average]:
        """Averages per side; within a side also per resource level and per language family.

        The family is that of the language that is not English; a direction without English
        counts for the family of its target. Empty sides and subsets are left out.
        Directions never trained count only for "zero-shot", which has no subsets.
        """
        trained = [name for name in self.directions if name not in self.zero_shot]
        sides: dict[Side, list[str]] = {"all": trained}
        for wanted in ("en-any", "any-en", "other"):
            sides[wanted] = [name for name in trained if side(name) == wanted]
        averages = []
        for name_of_side, names in sides.items():
            subsets: dict[tuple[SubsetKind, str], list[str]] = {}
            for name in names:
                subsets.setdefault(("all", "all"), []).append(name)
            for level in ("high", "medium", "low"):
                if members := [name for name in names if self.levels.get(name) == level]:
                    subsets["level", level] = members
            for name in names:
                subsets.setdefault(("family", family_of(name)), []).append(name)
            averages += [
                self._average(name_of_side, kind, subset, members)
                for (kind, subset), members in subsets.items()
            ]
        if self.zero_shot:
            averages.append(self._average("zero-shot", "all", "all", sorted(self.zero_shot)))
        return averages

    def _average(self, side: Side, kind: SubsetKind, subset: str, names: list[str]) -> Average:
        found = [self.directions[name] for name in names]
        bleu = statistics.fmean(score.bleu for score in found)
        chrf = statistics.fmean(score.chrf for score in found)
        return Average(side, kind, subset, len(names), bleu, chrf)

    def rows(self) -> list[dict[str, Any]]:
        """Return table rows: the directions, then per side its average and those of its levels.

        Keys: ``name``, ``kind`` ("direction", "side" or "level"), ``level`` ("zero-shot" for a
        direction never trained), ``family``, ``count`` (sentences of a direction, directions of an
        average), ``bleu``, ``chrf``.
        """
        rows: list[dict[str, Any]] = [
            {
                "name": name,
                "kind": "direction",
                "level": "zero-shot" if name in self.zero_shot else self.levels.get(name, ""),
                "family": family_of(name),
                "count": found.sentences,
                "bleu": found.bleu,
                "chrf": found.chrf,
            }
            for name, found in self.directions.items()
        ]
        for average in self.averages():
            if average.kind != "family":
                rows.append(
                    {
                        "name": average.side,
                        "kind": "side" if average.kind == "all" else "level",
                        "level": average.subset,
                        "family": "",
                        "count": average.directions,
                        "bleu": average.bleu,
                        "chrf": average.chrf,
                    }
                )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types; ``unscored`` are the remarks on what was left out."""
        return {
            "directions": {
                name: {
                    "bleu": found.bleu,
                    "chrf": found.chrf,
                    "sentences": found.sentences,
                    "level": self.levels.get(name),
                    "family": family_of(name),
                    "bleu_signature": found.bleu_signature,
                    "chrf_signature": found.chrf_signature,
                    **({"zero_shot": True} if name in self.zero_shot else {}),
                    **self._identified(name),
                }
                for name, found in self.directions.items()
            },
            "averages": [asdict(average) for average in self.averages()],
            "signatures": self.signatures,
            "unscored": [asdict(remark) for remark in self.remarks if not remark.scored],
            "remarks": [asdict(remark) for remark in self.remarks if remark.scored],
        }

    def _identified(self, name: str) -> dict[str, float]:
        found = self.off_target.get(name)
        if found is None:
            return {}
        return {"off_target": found.rate, "off_target_of_references": found.of_references}


def side(direction: str) -> Side:
    """Return the position of English in ``fr-en``, "any-en"; "other" for a single language."""
    if "-" not in direction:
        return "other"
    parsed = Direction.parse(direction)
    if is_english(parsed.source):
        return "en-any"
    return "any-en" if is_english(parsed.target) else "other"


def family_of(direction: str) -> str:
    """Return the family of the language that is not English; of the target if neither is."""
    if "-" not in direction:
        return family(direction)
    parsed = Direction.parse(direction)
    return family(parsed.source if is_english(parsed.target) else parsed.target)


def score_directions(
    hypotheses: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    levels: Mapping[str, str] | None = None,
    tokenize: str | None = None,
    zero_shot: AbstractSet[str] = frozenset(),
) -> DirectionScores:
    """Score each direction, such as ``fr-en``.

    ``levels`` gives the resource level of directions ("high", "medium", "low"); ``tokenize``
    None uses `tokenizer` of the target language; ``zero_shot`` names the directions that were
    never trained. Raises ValueError, naming the direction, if hypotheses and references do not
    cover the same sentences.
    """
    if missing := sorted(set(hypotheses) ^ set(references)):
        raise ValueError(f"hypotheses or references are missing for {', '.join(missing)}")
    directions = {}
    for name, translated in hypotheses.items():
        used = tokenize or tokenizer(Direction.parse(name).target)
        try:
            directions[name] = score(translated, references[name], used)
        except ValueError as e:
            raise ValueError(f"{name}: {e}") from e
    known = {k: v for k, v in (levels or {}).items() if k in directions}
    return DirectionScores(directions, known, zero_shot & directions.keys())
