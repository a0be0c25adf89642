"""The Transformer of Vaswani et al. 2017 with one shared embedding, for many languages.

Shape letters: ``B`` sentences, ``S`` source length, ``T`` target length, ``N`` rows (tokens, or
hypotheses in a search), ``d`` model width, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradvac.translation.layers import (
    Cache,
    DecoderLayer,
    Encoded,
    EncoderLayer,
    Layer,
    LayerMemory,
    LayerPast,
)
from gradvac.translation.loss import smoothed_cross_entropy
from gradvac.translation.shapes import TransformerConfig


class Stack(nn.Module):
    """Layers, and the final norm of a pre-norm stack."""

    def __init__(self, layers: list[Layer], config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()


class Transformer(nn.Module):
    """Encoder-decoder with one matrix for source embedding, target embedding and softmax.

    Vaswani et al. 2017 with sinusoidal positions; ``norm="pre"`` is the stabler variant that
    Chen et al. 2018a train. Encoder input is ``tag tokens eos``, decoder input ``bos tokens``,
    decoder output ``tokens eos``; padding is at the end.
    """

    positions: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.d_model)
        encoder: list[Layer] = [EncoderLayer(config) for _ in range(config.encoder_layers)]
        decoder: list[Layer] = [DecoderLayer(config) for _ in range(config.decoder_layers)]
        self.encoder, self.decoder = Stack(encoder, config), Stack(decoder, config)
        self.dropout = nn.Dropout(config.dropout)
        positions = sinusoids(256, config.d_model)
        self.register_buffer("positions", positions, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)

    def embed(self, tokens_BT: Tensor, start: int = 0) -> Tensor:
        """Return ``[B, T, d]`` for tokens at positions ``start, start + 1, ...``."""
        end = start + tokens_BT.shape[1]
        if end > len(self.positions):
            positions = sinusoids(2 * end, self.config.d_model)
            self.positions = positions.to(self.positions)
        x_BTd = self.embedding(tokens_BT) * math.sqrt(self.config.d_model)
        return self.dropout(x_BTd + self.positions[start:end])

    def encode(self, source_BS: Tensor) -> Tensor:
        """Return the encoder's output ``[B, S, d]``; its values at padding have no meaning."""
        mask, x_BSd = self.mask(source_BS), self.embed(source_BS)
        for layer in self.encoder.layers:
            x_BSd = layer(x_BSd, mask)
        return self.encoder.norm(x_BSd)

    def mask(self, source_BS: Tensor) -> Tensor:
        """Return ``[B, 1, 1, S]``, True at tokens and False at padding."""
        return (source_BS != self.config.pad)[:, None, None, :]

    def forward(self, source_BS: Tensor, target_in_BT: Tensor) -> Tensor:
        """Return the decoder's output ``[B, T, d]`` for known targets."""
        encoded = self.encoded(source_BS)
        return self.decode(target_in_BT, [encoded] * len(self.decoder.layers))

    def encoded(self, source_BS: Tensor) -> Encoded:
        """Encode for the decoder's layers."""
        mask = self.mask(source_BS)
        return Encoded(self.encode(source_BS), mask)

    def decode(
        self,
        target_in_BT: Tensor,
        memory: Iterable[LayerMemory | Encoded],
        past: list[LayerPast] | None = None,
        position: int = 0,
    ) -> Tensor:
        """Return the decoder's output ``[B, T, d]``."""
        x_BTd = self.embed(target_in_BT, position)
        for i, (layer, of_source) in enumerate(zip(self.decoder.layers, memory, strict=True)):
            x_BTd = layer(x_BTd, of_source, past[i] if past is not None else None)
        return self.decoder.norm(x_BTd)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return unnormalised log-probabilities ``[..., V]`` of hidden states ``[..., d]``."""
        return F.linear(hidden, self.embedding.weight)

    def token_losses(
        self,
        source_BS: Tensor,
        target_in_BT: Tensor,
        target_out_BT: Tensor,
        label_smoothing: float = 0.0,
        kept_N: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, negative log-likelihood (nats) and sentence index, each ``[N]``.

        The ``N`` target tokens that are not padding are in reading order. The softmax is computed
        only for them, so padding costs nothing there. The likelihood is without smoothing
        and without gradient; the loss mixes in ``label_smoothing`` of a uniform distribution
        over the vocabulary (Szegedy et al. 2016, section 7). ``kept_N`` are the places of these
        tokens in ``target_out_BT.flatten()``; on an accelerator, finding them here is a wait.
        """
        hidden_BTd = self(source_BS, target_in_BT)
        if kept_N is None:
            kept_N = (target_out_BT != self.config.pad).flatten().nonzero().squeeze(1)
        logits_NV = self.logits(hidden_BTd.flatten(0, 1).index_select(0, kept_N))
        gold_N = target_out_BT.flatten().index_select(0, kept_N)
        loss_N, nll_N = smoothed_cross_entropy(logits_NV, gold_N, label_smoothing)
        return loss_N, nll_N, kept_N // target_out_BT.shape[1]

    def begin_step(self, progress: float) -> None:
        """Called when a training step begins, at ``progress`` of training; does nothing here."""

    def auxiliary_loss(self) -> Tensor | None:
        """Return the loss added to the tokens' losses of the last forward pass, if any."""
        return None

    def start(self, source_BS: Tensor) -> Cache:
        """Encode, and compute the source keys and values of every decoder layer once."""
        encoded = self.encoded(source_BS)
        memory = [cast(DecoderLayer, layer).remember(encoded) for layer in self.decoder.layers]
        return Cache(memory, [LayerPast() for _ in memory])

    def step(self, tokens_N: Tensor, cache: Cache) -> Tensor:
        """Append one token to each hypothesis; return the logits ``[N, V]`` of the next.

        ``N`` is a multiple of the ``B`` sentences in the cache: hypotheses are sorted by sentence,
        the same number for each.
        """
        hidden_N1d = self.decode(tokens_N[:, None], cache.memory, cache.past, cache.length)
        cache.length += 1
        return self.logits(hidden_N1d[:, 0])


def sinusoids(length: int, d_model: int) -> Tensor:
    """Return the position encodings ``[length, d_model]`` of Vaswani et al. 2017, section 3.5.

    Sines fill the first half of the columns and cosines the second, as in tensor2tensor; the
    paper interleaves them, which differs only by a permutation of columns.
    """
    half = d_model // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(1e4) / half))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1).float()
