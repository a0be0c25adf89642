"""Translates texts: batches of any directions through one model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import torch

from gradvac.text.blocks import is_blank
from gradvac.translation.search import beam_search
from gradvac.translation.transformer import Transformer
from gradvac.translation.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

MAX_SOURCE = 2048
"""Longest source in tokens that scoring translates whole: about a page. Chosen here, because
attention to it takes gigabytes."""


class Searcher(Protocol):
    """Translates instead of our `Transformer`: the same model in another library."""

    def search(
        self,
        sources: Sequence[Sequence[int]],
        vocabulary: Vocabulary,
        *,
        beam: int,
        length_penalty: float,
    ) -> list[list[int]]:
        """Return the best translation of each ``tag tokens eos``, token ids without eos."""
        ...


@dataclass
class Translator:
    """Translates sentences with a trained model.

    Args:
        model: on the device to be used.
        vocabulary: the one the model was trained with.
        beam: places in the beam; 1 is greedy search.
        length_penalty: alpha of `gradvac.translation.search.divisor`.
        batch_tokens: most source tokens in a batch, padding counted.
        max_source: longest source in tokens, tag and eos included; a longer one is cut, with a
            warning. Chosen far above a sentence: memory grows with its square.
        every: translate only one of this many batches, if other processes translate the rest.
        first: the first batch to translate, below ``every``.

    ``cut`` has the numbers of the sentences that the last call cut.
    """

    model: Transformer | Searcher
    vocabulary: Vocabulary
    beam: int = 5
    length_penalty: float = 0.6
    batch_tokens: int = 2048
    max_source: int = 512
    every: int = 1
    first: int = 0
    cut: list[int] = field(default_factory=list, init=False)

    def translate(self, sentences: Sequence[str], targets: Sequence[str]) -> list[str]:
        """Translate each sentence into the language code at the same index; order is kept.

        A sentence without visible characters becomes an empty one, and so does one of a batch
        that other processes translate.

        Raises:
            ValueError: the numbers of languages and sentences differ.
            RunError: the vocabulary has no tag for a language, or the model has diverged.
        """
        self.cut = []
        sources = {
            i: self._encode(sentence, target, i)
            for i, (sentence, target) in enumerate(zip(sentences, targets, strict=True))
            if not is_blank(sentence)
        }
        translations = [""] * len(sentences)
        for batch in islice(self.batches(sources), self.first, None, self.every):
            found = self._search([sources[i] for i in batch])
            for i, tokens in zip(batch, found, strict=True):
                translations[i] = self.vocabulary.decode(tokens)
        return translations

    def _search(self, sources: list[list[int]]) -> Sequence[Sequence[int]]:
        options = {"beam": self.beam, "length_penalty": self.length_penalty}
        if not isinstance(self.model, Transformer):
            return self.model.search(sources, self.vocabulary, **options)
        source_BS = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(ids) for ids in sources],
            batch_first=True,
            padding_value=self.vocabulary.pad,
        )
        found = beam_search(
            self.model,
            source_BS.to(self.model.embedding.weight.device),
            bos=self.vocabulary.bos,
            eos=self.vocabulary.eos,
            forbidden=self.vocabulary.forbidden,
            **options,
        )
        return [best.tokens for best, *_ in found]

    def _encode(self, sentence: str, target: str, index: int) -> list[int]:
        ids = self.vocabulary.encode_source(sentence, target)
        if len(ids) <= self.max_source:
            return ids
        self.cut.append(index)
        logger.warning(
            "sentence %d has %d tokens and is cut to max_source = %d",
            index + 1, len(ids), self.max_source,
        )  # fmt: skip
        return [*ids[: self.max_source - 1], self.vocabulary.eos]

    def batches(self, sources: dict[int, list[int]]) -> Iterator[list[int]]:
        """Yield sentence numbers, the longest first, so that too little memory fails at once."""
        batch: list[int] = []
        for i in sorted(sources, key=lambda i: -len(sources[i])):
            if batch and (len(batch) + 1) * len(sources[batch[0]]) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch
