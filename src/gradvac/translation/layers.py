"""The layers of the Transformer of Vaswani et al. 2017, and their caches for decoding.

Shape letters: ``B`` sentences, ``S`` source length, ``T`` target length, ``N`` rows (tokens, or
hypotheses in a search), ``d`` model width, ``H`` heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradvac.sending import on_host
from gradvac.translation.shapes import TransformerConfig


class Attention(nn.Module):
    """Multi-head attention; separate projections, so that geometry can measure each."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d = config.d_model
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))

    def split(self, x_BTd: Tensor) -> Tensor:
        """Return ``[B, H, T, d/H]``, a view."""
        return x_BTd.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x_BSd: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of ``x``, ``[B, H, S, d/H]``."""
        return self.split(self.k(x_BSd)), self.split(self.v(x_BSd))

    def forward(
        self,
        x_BTd: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Return ``[B, T, d]``; ``mask`` broadcasts to ``[B, H, T, S]``, True where to attend."""
        dropout = self.dropout if self.training else 0.0
        query = self.split(self.q(x_BTd))
        if query.dtype == torch.bfloat16 and query.device.type == "cpu":
            # Measured with torch 2.13: on a CPU the backward of bfloat16 attention takes nine times
            # as long as fp32, most of what bfloat16 saves elsewhere.
            with torch.autocast("cpu", enabled=False):
                y_BHTd = F.scaled_dot_product_attention(
                    query.float(), keys.float(), values.float(), mask, dropout, causal
                ).bfloat16()
        else:
            y_BHTd = F.scaled_dot_product_attention(query, keys, values, mask, dropout, causal)
        return self.project(x_BTd, y_BHTd.transpose(1, 2).flatten(2))

    def project(self, x_BTd: Tensor, found_BTd: Tensor) -> Tensor:
        """Return the output from the heads' concatenated results, for the queries of ``x``."""
        return self.o(found_BTd)


class FeedForward(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ffn)
        self.down = nn.Linear(config.d_ffn, config.d_model)
        self.activation = F.relu if config.activation == "relu" else F.gelu
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``, ``[..., d]``."""
        return self.down(self.dropout(self.activation(self.up(x))))


class Layer(nn.Module):
    """What encoder and decoder layers share: residual connections and position of the norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.dropout = nn.Dropout(config.dropout)

    def enter(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Return the input of the sublayer."""
        return norm(x) if self.pre else x

    def leave(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        """Return the residual stream after adding the sublayer's output ``y``."""
        x = x + self.dropout(y)
        return x if self.pre else norm(x)


class EncoderLayer(Layer):
    """Self-attention, then feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.self_attention = Attention(config)
        self.self_attention_norm = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.d_model)

    def forward(self, x_BSd: Tensor, mask: Tensor) -> Tensor:
        """Return ``[B, S, d]``; ``mask`` is ``[B, 1, 1, S]``, True at tokens."""
        y = self.enter(x_BSd, self.self_attention_norm)
        y = self.self_attention(y, *self.self_attention.keys_values(y), mask)
        x_BSd = self.leave(x_BSd, y, self.self_attention_norm)
        y = self.feed_forward(self.enter(x_BSd, self.feed_forward_norm))
        return self.leave(x_BSd, y, self.feed_forward_norm)


class DecoderLayer(Layer):
    """Self-attention over earlier target tokens, attention to the source, then feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.self_attention = Attention(config)
        self.self_attention_norm = nn.LayerNorm(config.d_model)
        self.cross_attention = Attention(config)
        self.cross_attention_norm = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.d_model)

    def remember(self, encoded: Encoded) -> LayerMemory:
        """Compute the keys and values of the source."""
        keys, values = self.cross_attention.keys_values(encoded.source_BSd)
        return LayerMemory(keys, values, encoded.mask, encoded.language)

    def forward(
        self, x_BTd: Tensor, memory: LayerMemory | Encoded, past: LayerPast | None
    ) -> Tensor:
        """Return ``[B, T, d]``; with a ``past`` the one new position attends to all of it."""
        if isinstance(memory, Encoded):
            memory = self.remember(memory)
        y = self.enter(x_BTd, self.self_attention_norm)
        keys, values = self.self_attention.keys_values(y)
        if past is None:
            y = self.self_attention(y, keys, values, causal=True)
        else:
            y = self.self_attention(y, *past.append(keys, values))
        x_BTd = self.leave(x_BTd, y, self.self_attention_norm)

        y = self.enter(x_BTd, self.cross_attention_norm)
        # Hypotheses of one sentence are query positions here, so its memory is never repeated.
        y_BTd = y.view(memory.keys.shape[0], -1, y.shape[-1]) if past is not None else y
        y = self.cross_attention(y_BTd, memory.keys, memory.values, memory.mask).view_as(y)
        x_BTd = self.leave(x_BTd, y, self.cross_attention_norm)

        y = self.feed_forward(self.enter(x_BTd, self.feed_forward_norm))
        return self.leave(x_BTd, y, self.feed_forward_norm)


class Encoded(NamedTuple):
    """The encoder's output ``[B, S, d]``; each decoder layer computes its own memory from it.

    This is done inside the layer: in training, the backward of a layer is then complete before that
    of the layer below begins, and a sharded layer is gathered by then. The mask is
    ``[B, 1, 1, S]``; ``language`` ``[B]``, on the host, is that of models that route by it.
    """

    source_BSd: Tensor
    mask: Tensor
    language: Tensor | None = None


@dataclass
class LayerMemory:
    """Source keys and values ``[B, H, S, d/H]`` of one decoder layer, mask ``[B, 1, 1, S]``.

    ``language`` ``[B]``, on the host, is that of models that route by it.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    language: Tensor | None = None


@dataclass
class LayerPast:
    """Self-attention keys and values ``[N, H, t, d/H]`` of the ``t`` tokens so far."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add one position and return all positions."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values


@dataclass
class Cache:
    """The state of incremental decoding: `Transformer.start` makes it, `step` extends it."""

    memory: list[LayerMemory]
    past: list[LayerPast] = field(default_factory=list)
    length: int = 0

    def reorder(self, rows: Tensor, sentences: Tensor | None = None) -> None:
        """Keep the hypotheses ``rows`` ``[N']``, and the memory of ``sentences`` ``[B']``.

        ``rows`` must list the hypotheses sentence by sentence, the same number for each kept
        sentence; ``sentences`` may be None while all sentences are kept.
        """
        for past in self.past:
            if past.keys is not None and past.values is not None:
                past.keys = past.keys.index_select(0, rows)
                past.values = past.values.index_select(0, rows)
        if sentences is not None:
            mask = self.memory[0].mask.index_select(0, sentences)
            language = self.memory[0].language
            language = None if language is None else language[on_host(sentences)]
            for memory in self.memory:
                memory.language = language
                memory.keys = memory.keys.index_select(0, sentences)
                memory.values = memory.values.index_select(0, sentences)
                memory.mask = mask
