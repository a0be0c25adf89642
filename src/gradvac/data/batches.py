"""Batches drawn from all directions; they depend only on (seed, step, shares).

Sentences are drawn in pools: a pool is one multinomial draw over directions with the shares of
its phase (see `sampling`), sorted by length and cut into batches of equal target tokens, so that
padding stays small while every batch still mixes directions. Within a direction each epoch has a
new random order, which is computed when needed (see `permutation`): memory does not grow with the
corpus. A resumed run sees exactly the batches it would have seen without the interruption.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from gradvac.data.encoded import BOS, PAD, EncodedTask, Side
from gradvac.data.permutation import permuted
from gradvac.errors import RecipeError
from gradvac.sending import to_device


@dataclass(frozen=True, kw_only=True)
class TaskBatch(ABC):
    """Sentences of several tasks, padded on the right.

    ``task`` [B] index into ``tasks``, ``sentence`` [B] index within the task's corpus.
    """

    task: Tensor
    sentence: Tensor
    tasks: tuple[str, ...]

    @property
    @abstractmethod
    def counted(self) -> Tensor:
        """True where there is a loss, ``[B, T]``."""

    @cached_property
    def tokens(self) -> int:
        """Number of positions with a loss, over which the loss is averaged."""
        return int(self.counted.sum())

    @cached_property
    def kept(self) -> Tensor:
        """Where there is a loss, as ``row * T + column``, ascending, ``[N]``."""
        return self.counted.flatten().nonzero().squeeze(1)

    @cached_property
    def rows(self) -> Tensor:
        """The sentence of each of `kept`, ``[N]``."""
        return self.kept // self.counted.shape[1]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Positions with a loss, for each task that has a sentence here."""
        of_sentence = self.counted.sum(1)
        return {self.tasks[k]: int(of_sentence[self.task == k].sum()) for k in self.present}

    @cached_property
    def present(self) -> list[int]:
        """Indices of the tasks that have a sentence here, ascending."""
        return torch.unique(self.task).tolist()

    def first(self, count: int) -> Self:
        """The first ``count`` sentences, with their padding unchanged."""
        return self._changed(lambda x: x[:count])

    def to(self, device: torch.device) -> Self:
        """The same batch on ``device``, without a wait.

        What is counted of a batch is counted on the host: there every count is a wait.
        """
        moved = self._changed(lambda x: to_device(x, device, known=True))
        for name in ("kept", "rows"):  # cached properties
            object.__setattr__(moved, name, to_device(getattr(self, name), device, known=True))
        return moved

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: change(x) for k, x in own.items() if isinstance(x, Tensor)})


@dataclass(frozen=True)
class Batch(TaskBatch):
    """Sentences of several tasks, padded with 0 on the right.

    ``source`` [B, S], ``target_in`` [B, T] (begins with bos), ``target_out`` [B, T] (ends with
    eos).
    """

    source: Tensor
    target_in: Tensor
    target_out: Tensor

    @property
    def counted(self) -> Tensor:
        """True at target tokens, ``[B, T]``."""
        return self.target_out != PAD

    @property
    def padding(self) -> float:
        """Share of the positions of source and target that are padding."""
        cells = self.source.numel() + self.target_out.numel()
        return 1 - (int((self.source != PAD).sum()) + self.tokens) / cells if cells else 0.0

    def of_task(self, index: int) -> Batch:
        """The sentences of one task, without columns that are all padding."""
        rows = self.task == index
        source, target_out = self.source[rows], self.target_out[rows]
        s = int((source != PAD).sum(1).max())
        t = int((target_out != PAD).sum(1).max())
        return Batch(
            source[:, :s],
            self.target_in[rows, :t],
            target_out[:, :t],
            task=self.task[rows],
            sentence=self.sentence[rows],
            tasks=self.tasks,
        )


def _padded(sides: Mapping[int, Side], task: np.ndarray, sentence: np.ndarray) -> np.ndarray:
    """Row k is ``sentence[k]`` of the side of ``task[k]``, padded on the right."""
    parts = []
    for t, side in sides.items():
        rows = np.flatnonzero(task == t)
        parts.append((rows, side.lengths_of(sentence[rows]), side.gather(sentence[rows])))
    width = max((int(lengths.max()) for _, lengths, _ in parts), default=1)
    out = np.full((len(task), width), PAD, dtype=np.int64)
    for rows, lengths, ids in parts:
        column = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        out[np.repeat(rows, lengths), column] = ids
    return out


def collate(
    corpus: Mapping[str, EncodedTask],
    tasks: tuple[str, ...],
    task: np.ndarray,
    sentence: np.ndarray,
) -> Batch:
    """Build the batch of pairs ``(task[k], sentence[k])``."""
    present = {int(t): corpus[tasks[t]] for t in np.unique(task)}
    target = _padded({t: data.target for t, data in present.items()}, task, sentence)
    moved = np.concatenate([np.full((len(task), 1), BOS), target[:, :-1]], axis=1)
    return Batch(
        torch.from_numpy(_padded({t: d.source for t, d in present.items()}, task, sentence)),
        torch.from_numpy(np.where(target == PAD, PAD, moved)),
        torch.from_numpy(target),
        task=torch.from_numpy(task.astype(np.int64)),
        sentence=torch.from_numpy(sentence.astype(np.int64)),
        tasks=tasks,
    )


def in_order(
    corpus: Mapping[str, EncodedTask], tasks: tuple[str, ...], index: int, tokens: int
) -> Iterator[Batch]:
    """Every sentence of one task once, sorted by length, about ``tokens`` per batch."""
    data = corpus[tasks[index]]
    source, target = data.source.lengths, data.target.lengths
    order = np.lexsort((source, target))
    cells = np.maximum(source, target)[order]
    start = 0
    while start < len(order):
        stop, widest = start, 0
        while stop < len(order):
            widest = max(widest, int(cells[stop]))
            if stop > start and widest * (stop - start + 1) > tokens:
                break
            stop += 1
        rows = order[start:stop]
        yield collate(corpus, tasks, np.full(len(rows), index), rows)
        start = stop


def random_batch(
    corpus: Mapping[str, EncodedTask],
    tasks: tuple[str, ...],
    index: int,
    tokens: int,
    rng: np.random.Generator,
) -> Batch:
    """Random distinct sentences of one task, about ``tokens`` target tokens in all."""
    data = corpus[tasks[index]]
    count = min(len(data), max(1, round(tokens * len(data) / data.target.tokens)))
    rows = rng.choice(len(data), count, replace=False)
    return collate(corpus, tasks, np.full(count, index), rows)


@dataclass(frozen=True)
class Phase:
    """From batch ``first`` on, a drawn pair is of task ``i`` with probability ``shares[i]`` [N]."""

    first: int
    shares: np.ndarray


class BatchPlan:
    """Which sentences step ``n`` trains on, for every ``n``; depends only on ``seed`` and phases.

    ``tokens`` is the desired number of target tokens per batch; ``pool`` batches are drawn and
    sorted together: a larger pool means less padding and less mixing of lengths within a batch.
    A pool never crosses a phase boundary or a multiple of ``period``, where phases may be added.
    """

    def __init__(
        self,
        corpus: Mapping[str, EncodedTask],
        *,
        tokens: int,
        seed: int,
        pool: int = 64,
        period: int | None = None,
    ) -> None:
        empty = [t for t, c in corpus.items() if not len(c)]
        if empty:
            raise RecipeError(f"no training sentences for: {', '.join(empty)}")
        self.corpus = dict(corpus)
        self.tasks = tuple(corpus)
        self.tokens, self.seed, self.pool, self.period = tokens, seed, pool, period
        self.sizes = np.array([len(c) for c in corpus.values()], dtype=np.int64)
        self.mean_lengths = np.array([c.target.tokens / len(c) for c in corpus.values()])
        self.phases: list[Phase] = []
        self._starts = [0]  # first batch of every pool drawn so far, and of the next
        self._drawn = [np.zeros(len(self.tasks), dtype=np.int64)]  # sentences before each start
        self._cut: tuple[int, list[tuple[np.ndarray, np.ndarray]]] = (-1, [])

    def add_phase(self, first: int, shares: np.ndarray) -> None:
        """Draw with ``shares`` [N], sum 1, from batch ``first`` on; the first phase starts at 0.

        Raises ValueError if that would change batches that may already have been trained on.
        """
        after = self.phases[-1].first + 1 if self.phases else 0
        if first < max(after, self._starts[-1]) or (first and not self.phases):
            raise ValueError(f"a phase cannot begin at batch {first}: what is there is drawn")
        self.phases.append(Phase(first, np.asarray(shares, dtype=np.float64)))

    def sentences_per_batch(self, shares: np.ndarray) -> float:
        """Average number of sentences with ``tokens`` target tokens, drawn with ``shares``."""
        return self.tokens / float(shares @ self.mean_lengths)

    def __call__(self, step: int, rank: int = 0, world: int = 1, together: bool = False) -> Batch:
        """The batch of ``step`` (from 0), or the part that ``rank`` of ``world`` trains on.

        The parts of the ranks are disjoint and together are the batch of a single rank. Each has
        about the same number of sentences of each task; with ``together``, each is a contiguous
        part of the batch with about the same number of target tokens, of as few tasks as possible.
        With more ranks than sentences some parts are empty.
        """
        task, sentence = self._chosen(step)
        own = slice(rank, None, world)
        if together and len(task) >= world:
            cuts = [0, *_cuts(self._lengths(task, sentence), world), len(task)]
            own = slice(cuts[rank], cuts[rank + 1])
        return collate(self.corpus, self.tasks, task[own], sentence[own])

    def target_tokens(self, step: int) -> int:
        """Target tokens of the whole batch of ``step``, without building it."""
        return int(self._lengths(*self._chosen(step)).sum())

    def _chosen(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Task and sentence of each pair of a batch."""
        while self._starts[-1] <= step:
            self._add_pool()
        number = bisect_right(self._starts, step) - 1
        if self._cut[0] != number:
            self._cut = (number, self._draw(number))
        return self._cut[1][step - self._starts[number]]

    def _lengths(self, task: np.ndarray, sentence: np.ndarray) -> np.ndarray:
        """Target tokens of pairs that are sorted by task."""
        sides = {t: self.corpus[self.tasks[t]].target for t in np.unique(task).tolist()}
        return np.concatenate([s.lengths_of(sentence[task == t]) for t, s in sides.items()])

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *what])

    def _add_pool(self) -> None:
        """Decide where the next pool ends and how many sentences of each task it holds."""
        start = self._starts[-1]
        shares = [phase.shares for phase in self.phases if phase.first <= start][-1]
        ends = [start + self.pool, *(p.first for p in self.phases if p.first > start)]
        if self.period:
            ends.append(start - start % self.period + self.period)
        batches = min(ends) - start
        count = max(batches, round(batches * self.sentences_per_batch(shares)))
        draw = self._rng(0, len(self._starts) - 1).multinomial(count, shares)
        self._starts.append(start + batches)
        self._drawn.append(self._drawn[-1] + draw)

    def _sentences(self, task: int, first: int, last: int) -> np.ndarray:
        """Sentences that draws ``first`` to ``last`` of ``task`` return, across epochs."""
        size, name = int(self.sizes[task]), zlib.crc32(self.tasks[task].encode())
        epoch, place = np.divmod(np.arange(first, last), size)
        drawn = [
            permuted(place[epoch == e], size, (self.seed, 1, name, int(e)))
            for e in np.unique(epoch)
        ]
        return np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)

    def _draw(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The batches of one pool, each as (task, sentence) index arrays."""
        first, last = self._drawn[number], self._drawn[number + 1]
        drawn = [self._sentences(t, int(first[t]), int(last[t])) for t in range(len(self.tasks))]
        data = self.corpus.values()
        source, target = (
            np.concatenate(
                [getattr(c, side).lengths_of(i) for c, i in zip(data, drawn, strict=True)]
            )
            for side in ("source", "target")
        )
        task = np.repeat(np.arange(len(self.tasks)), last - first)
        sentence = np.concatenate(drawn)
        rng = self._rng(2, number)
        order = np.lexsort((rng.random(len(task)), source, target, np.maximum(source, target)))
        batches = self._starts[number + 1] - self._starts[number]
        parts = np.split(order, _cuts(target[order], batches))
        # Sentences of a task are contiguous, so splitting gradients needs no copy of its rows.
        parts = [part[np.argsort(task[part], kind="stable")] for part in parts]
        return [(task[parts[k]], sentence[parts[k]]) for k in rng.permutation(batches)]


def _cuts(lengths: np.ndarray, batches: int) -> np.ndarray:
    """Where to cut sorted sentences into ``batches`` of equal tokens, none empty."""
    total = np.cumsum(lengths)
    k = np.arange(1, batches)
    cuts = np.maximum(np.searchsorted(total, total[-1] * k / batches, side="right"), k)
    for i in range(1, len(cuts)):
        cuts[i] = max(cuts[i], cuts[i - 1] + 1)
    return np.minimum(cuts, len(lengths) - batches + k)
