"""Tagged sentences as numbers, and their batches.

A subword of a sentence is stored as one number, 1 + id * (L + 1) + label, where label is 0 for a
subword without a label and 1 + n for label n of L. So a sentence is one row of a matrix, and 0 is
padding for any tokenizer. Only the first subword of a word has a label, as in Devlin et al.
2019 and Wang et al. 2021, appendix G.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradvac.data.batches import Batch, TaskBatch
from gradvac.data.encoded import EncodedTask, Sentences
from gradvac.tagging.readers import Tagged

IGNORED = -100  # as PyTorch and transformers mark positions without a label
AT_ONCE = 1000  # sentences given to a tokenizer together


@dataclass(frozen=True)
class TokenBatch(TaskBatch):
    """Sentences of several tasks, padded on the right.

    ``ids`` [B, S], ``mask`` [B, S] (1 at subwords), ``labels`` [B, S] (`IGNORED` where there is no
    loss).
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor

    @property
    def counted(self) -> Tensor:
        """True at positions with a label, ``[B, S]``."""
        return self.labels != IGNORED

    @property
    def padding(self) -> float:
        """Share of the positions that are padding."""
        return 1 - int(self.mask.sum()) / self.mask.numel()

    def of_task(self, index: int) -> TokenBatch:
        """The sentences of one task, without columns that are all padding."""
        rows = self.task == index
        width = int(self.mask[rows].sum(1).max())
        return TokenBatch(
            self.ids[rows, :width],
            self.mask[rows, :width],
            self.labels[rows, :width],
            task=self.task[rows],
            sentence=self.sentence[rows],
            tasks=self.tasks,
        )


def token_batch(drawn: Batch, labels: int, padding_id: int) -> TokenBatch:
    """Decode a batch of stored numbers; ``labels`` is L, 0 for text without labels."""
    stored = drawn.source
    mask = stored != 0
    of_label = torch.where(mask, (stored - 1) % (labels + 1), 0)
    return TokenBatch(
        ids=torch.where(mask, (stored - 1) // (labels + 1), padding_id),
        mask=mask.long(),
        labels=torch.where(of_label > 0, of_label - 1, IGNORED),
        task=drawn.task,
        sentence=drawn.sentence,
        tasks=drawn.tasks,
    )


def encode_tagged(
    sentences: Sequence[Tagged], tokenizer: Any, labels: Sequence[str], max_tokens: int
) -> tuple[Sentences, np.ndarray]:
    """Encode sentences; also returns the sentence index of each encoded part [N], ascending.

    A sentence of more than ``max_tokens`` subwords, special ones included, is cut between words
    into several, as in XTREME, so that every word keeps its label. A word that the tokenizer turns
    into nothing becomes its unknown symbol; a word longer than ``max_tokens`` loses its end.
    """
    index = {label: n + 1 for n, label in enumerate(labels)}
    stored, owner = [], []
    for ids, firsts, n in _subwords(sentences, tokenizer, max_tokens):
        numbers = np.array(ids, dtype=np.int64) * (len(labels) + 1) + 1
        for place, word in firsts:
            numbers[place] += index[sentences[n].tags[word]]
        stored.append(numbers.tolist())
        owner.append(n)
    return Sentences.of(stored), np.array(owner, dtype=np.int64)


def counted_by_sentence(side: Sentences) -> EncodedTask:
    """A task for the sampler, which counts target tokens: each sentence has one."""
    n = len(side)
    return EncodedTask(side, Sentences(np.ones(n, np.int32), np.arange(n + 1)))


def _subwords(
    sentences: Sequence[Tagged], tokenizer: Any, max_tokens: int
) -> Iterator[tuple[list[int], list[tuple[int, int]], int]]:
    """Subword ids, (position, word) of every first subword, and the sentence, part by part."""
    begin, end = _special(tokenizer)
    room = max_tokens - len(begin) - len(end)
    for start in range(0, len(sentences), AT_ONCE):
        part = sentences[start : start + AT_ONCE]
        found = tokenizer(
            [list(s.words) for s in part], is_split_into_words=True, add_special_tokens=False
        )
        for n, sentence in enumerate(part):
            ids, words = found["input_ids"][n], found.word_ids(n)
            pieces: list[list[int]] = [[] for _ in sentence.words]
            for token, word in zip(ids, words, strict=True):
                pieces[word].append(token)
            inner, firsts = [], []
            for word, piece in enumerate(pieces):
                piece = piece[:room] or [tokenizer.unk_token_id]
                if len(inner) + len(piece) > room:
                    yield begin + inner + end, firsts, start + n
                    inner, firsts = [], []
                firsts.append((len(begin) + len(inner), word))
                inner += piece
            yield begin + inner + end, firsts, start + n


def encode_text(texts: Sequence[str], tokenizer: Any, max_tokens: int) -> Sentences:
    """Encode sentences without labels, each cut after ``max_tokens`` subwords."""
    begin, end = _special(tokenizer)
    room = max_tokens - len(begin) - len(end)
    stored = []
    for start in range(0, len(texts), AT_ONCE):
        part = list(texts[start : start + AT_ONCE])
        for ids in tokenizer(part, add_special_tokens=False)["input_ids"]:
            stored.append([i + 1 for i in [*begin, *ids[:room], *end]])
    return Sentences.of(stored)


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids a tokenizer puts before and after a sentence."""
    begin = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    return [begin] * (begin is not None), [end] * (end is not None)


def masked(
    batch: TokenBatch,
    *,
    probability: float,
    mask_id: int,
    special: Sequence[int],
    vocabulary_size: int,
    rng: np.random.Generator,
) -> TokenBatch:
    """Mask subwords for prediction: Devlin et al. 2019, section 3.1.

    Each that is not ``special`` is chosen with ``probability``; of those 80% become the mask, 10%
    a random subword, 10% are unchanged. If none is chosen in a sentence, its first subword is, so
    that every task of the batch has a loss.
    """
    draw = rng.random((2, *batch.ids.shape))
    usable = batch.mask.bool() & ~torch.isin(batch.ids, torch.tensor(list(special)))
    chosen = usable & (torch.from_numpy(draw[0]) < probability)
    none = ~chosen.any(1) & usable.any(1)
    first = usable.long().argmax(1)
    chosen[none, first[none]] = True
    way = torch.from_numpy(draw[1])
    random = torch.from_numpy(rng.integers(0, vocabulary_size, tuple(batch.ids.shape)))
    ids = torch.where(chosen & (way < 0.8), mask_id, batch.ids)
    ids = torch.where(chosen & (way >= 0.8) & (way < 0.9), random, ids)
    labels = torch.where(chosen, batch.ids, IGNORED)
    return replace(batch, ids=ids, labels=labels)
