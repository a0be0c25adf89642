"""Beam search, batched over sentences of any direction; a beam of one is greedy search.

Shape letters: ``B`` sentences not yet finished, ``K`` hypotheses per sentence (the largest number
alive in any sentence), ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradvac.errors import RunError
from gradvac.translation.layers import Cache
from gradvac.translation.transformer import Transformer

# No translation has more tokens than ratio x source tokens + offset. Generous, because a word of a
# rare script may need many byte pieces.
MAX_LENGTH_RATIO, MAX_LENGTH_OFFSET = 2, 20


@dataclass(frozen=True, order=True)
class Hypothesis:
    """A finished translation: its score, its log-probability in nats, token ids without eos."""

    score: float
    log_probability: float
    tokens: tuple[int, ...]


def divisor(length: int, alpha: float) -> float:
    """Return ((5 + length) / 6)^alpha of Wu et al. 2016 (GNMT), equation 14; eos counts."""
    return ((5 + length) / 6) ** alpha


def beam_search(
    model: Transformer,
    source_BS: Tensor,
    *,
    bos: int,
    eos: int,
    forbidden: Tensor | Sequence[int] = (),
    beam: int = 5,
    length_penalty: float = 0.6,
    n_best: int = 1,
    min_length: int = 1,
    max_length_ratio: float = MAX_LENGTH_RATIO,
    max_length_offset: int = MAX_LENGTH_OFFSET,
) -> list[list[Hypothesis]]:
    """Return the ``n_best`` or fewer hypotheses of each source sentence, best first.

    A hypothesis scores its log-probability, eos included, over ``divisor(length, alpha)``. A
    finished one leaves the beam, which shrinks by one (Sutskever et al. 2014; Marian), so that
    a beam of one is greedy search. Log-probabilities only fall and the divisor only grows: no live
    hypothesis of log-probability s can end above ``s / divisor(longest allowed)``. A sentence
    leaves the batch when that bound, for its best live hypothesis, is not above the score of
    its ``n_best``-th finished one, so no hypothesis that could still win is removed.

    Args:
        model: in evaluation mode during the search; its mode is restored after it.
        source_BS: token ids ``tag tokens eos``, padded at the end.
        bos: first decoder input.
        eos: token that ends a hypothesis.
        forbidden: ids that are never produced: pad, unk, bos and the language tags.
        beam: places in the beam.
        length_penalty: alpha, not negative; 0 compares plain probabilities, larger values favour
            longer translations. 0.6 is in the range that Wu et al. 2016, table 2, find best.
        n_best: at most ``beam``.
        min_length: fewest tokens before eos.
        max_length_ratio: no translation has more than ``ratio x source tokens + offset`` tokens.
        max_length_offset: see ``max_length_ratio``.

    Raises:
        ValueError: an argument is out of range.
        RunError: the model gives no finite probability to any translation.
    """
    if not 1 <= n_best <= beam:
        raise ValueError(f"n_best is {n_best}; it must lie in [1, beam], and beam is {beam}")
    if not length_penalty >= 0:
        raise ValueError(f"length_penalty is {length_penalty}; it must not be negative")
    lengths = (source_BS != model.config.pad).sum(dim=1)
    limits = (lengths * max_length_ratio).long() + max_length_offset
    banned = torch.as_tensor(forbidden, dtype=torch.long, device=source_BS.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            beams = _Beams(model.start(source_BS), limits.clamp(min=1), beam, bos, length_penalty)
            while beams.sentences:
                logits_NV = model.step(beams.tokens_BKt[:, :, -1].flatten(), beams.cache)
                beams.advance(beams.allowed(logits_NV, eos, banned, min_length), eos)
                beams.drop_done(n_best)
    finally:
        model.train(training)
    if not all(beams.finished):
        raise RunError("the model gives no finite probability to any translation: it has diverged")
    return [sorted(found, reverse=True)[:n_best] for found in beams.finished]


@dataclass
class _Beams:
    """Live and finished hypotheses."""

    cache: Cache
    limits: Tensor  # [B] most tokens before eos
    beam: int
    bos: int
    alpha: float
    tokens_BKt: Tensor = field(init=False)  # tokens so far, bos first
    log_p_BK: Tensor = field(init=False)  # minus infinity in empty places
    places: Tensor = field(init=False)  # [B] places of the beam not used up by finished ones
    parents_BK: Tensor = field(init=False)  # place of each hypothesis one step before
    hypotheses: int = field(init=False, default=1)  # K of the step before
    sentences: list[int] = field(init=False)  # input index of each of the B
    finished: list[list[Hypothesis]] = field(init=False)  # for each input sentence

    def __post_init__(self) -> None:
        b, device = len(self.limits), self.limits.device
        self.tokens_BKt = torch.full((b, 1, 1), self.bos, device=device)
        self.log_p_BK = torch.zeros((b, 1), device=device, dtype=torch.float64)
        self.places = torch.full((b,), self.beam, device=device)
        self.sentences = list(range(b))
        self.finished = [[] for _ in range(b)]

    def allowed(self, logits_NV: Tensor, eos: int, banned: Tensor, min_length: int) -> Tensor:
        """Return log-probabilities ``[B, K, V]``, minus infinity where a token is not allowed."""
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        log_p_BKV = logits_NV.log_softmax(dim=-1, dtype=wide).unflatten(0, self.log_p_BK.shape)
        at_eos = log_p_BKV[:, :, eos].clone()
        log_p_BKV.index_fill_(2, banned, -torch.inf)
        written = self.tokens_BKt.shape[2] - 1
        if written < min_length:
            log_p_BKV[:, :, eos] = -torch.inf
        must_end = self.limits <= written
        if must_end.any():
            log_p_BKV[must_end] = -torch.inf
            log_p_BKV[must_end, :, eos] = at_eos[must_end]
        return log_p_BKV

    def advance(self, log_p_BKV: Tensor, eos: int) -> None:
        """Extend the best hypotheses by one token each; store those that ended."""
        most = int(self.places.max())
        # The best k overall are among the best k of each hypothesis.
        best_BKk, tokens_BKk = log_p_BKV.topk(min(most, log_p_BKV.shape[2]), dim=2)
        total = (self.log_p_BK[:, :, None] + best_BKk).flatten(1)
        log_p_BK, where_BK = total.topk(min(most, total.shape[1]), dim=1)
        parents_BK = where_BK // best_BKk.shape[2]
        new_BK = tokens_BKk.flatten(1).gather(1, where_BK)
        beyond = torch.arange(log_p_BK.shape[1], device=total.device) >= self.places[:, None]
        log_p_BK = log_p_BK.masked_fill(beyond | ~log_p_BK.isfinite(), -torch.inf)
        history = _pick(self.tokens_BKt, parents_BK)

        ended_BK = (new_BK == eos) & log_p_BK.isfinite()
        length = history.shape[2]  # includes bos but not eos
        for i, k in ended_BK.nonzero().tolist():
            log_p = log_p_BK[i, k].item()
            tokens = tuple(history[i, k, 1:].tolist())
            found = Hypothesis(log_p / divisor(length, self.alpha), log_p, tokens)
            self.finished[self.sentences[i]].append(found)
        self.places = self.places - ended_BK.sum(dim=1)
        self.log_p_BK = log_p_BK.masked_fill(ended_BK, -torch.inf)
        self.tokens_BKt = torch.cat((history, new_BK[:, :, None]), dim=2)
        self.parents_BK = parents_BK

    def drop_done(self, n_best: int) -> None:
        """Remove sentences in which no live hypothesis can win; reorder the cache."""
        bounds = self.log_p_BK.amax(dim=1) / ((5 + self.limits + 1) / 6) ** self.alpha
        keep = []
        for i, (sentence, bound) in enumerate(zip(self.sentences, bounds.tolist(), strict=True)):
            scores = sorted((found.score for found in self.finished[sentence]), reverse=True)
            to_beat = scores[n_best - 1] if len(scores) >= n_best else -math.inf
            if bound > to_beat:
                keep.append(i)
        kept = torch.tensor(keep, dtype=torch.long, device=self.limits.device)
        before, dropped = self.hypotheses, len(keep) < len(self.sentences)
        self.sentences = [self.sentences[i] for i in keep]
        if not keep:
            return
        # Live ones first; places that are empty in all sentences are not computed further.
        live_BK = self.log_p_BK[kept].isfinite()
        order_BK = live_BK.int().argsort(dim=1, descending=True, stable=True)
        order_BK = order_BK[:, : int(live_BK.sum(dim=1).max())]
        parents_BK = self.parents_BK[kept].gather(1, order_BK)
        rows = (kept[:, None] * before + parents_BK).flatten()
        if dropped or before > 1 or parents_BK.shape[1] > 1:
            self.cache.reorder(rows, kept if dropped else None)
        self.limits, self.places = self.limits[kept], self.places[kept]
        self.log_p_BK = self.log_p_BK[kept].gather(1, order_BK)
        self.tokens_BKt = _pick(self.tokens_BKt[kept], order_BK)
        self.hypotheses = self.log_p_BK.shape[1]


def _pick(tokens_BKt: Tensor, which_BK: Tensor) -> Tensor:
    """The hypotheses ``which`` of each sentence, in that order."""
    return tokens_BKt.gather(1, which_BK[:, :, None].expand(-1, -1, tokens_BKt.shape[2]))
