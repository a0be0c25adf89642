"""The Transformer of Vaswani et al. 2017 with one shared embedding, for many languages at once.

Shape letters: ``B`` sentences, ``S`` source length, ``T`` target length, ``N`` rows (tokens, or
hypotheses in a search), ``d`` model width, ``H`` heads, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradvac.translation.loss import smoothed_cross_entropy


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that fixes the shape and the regularisation of a `Transformer`.

    Raises ValueError when a value is out of range or ``heads`` does not divide ``d_model``.
    """

    vocabulary_size: int
    d_model: int
    d_ffn: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["relu", "gelu"] = "relu"
    pad: int = 0
    # Conditional language-specific routing, see gradvac.translation.clsr; no tags: none
    clsr_tags: tuple[int, ...] = ()
    clsr_hidden: int = 128
    clsr_budget: float = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "clsr_tags", tuple(self.clsr_tags))  # a list, from JSON
        sizes = ("vocabulary_size", "d_model", "d_ffn", "heads", "encoder_layers", "decoder_layers")
        for name in sizes:
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0.0 <= (value := getattr(self, name)) < 1.0:
                raise ValueError(f"{name} is {value}; it must lie in [0, 1)")
        if self.d_model % self.heads or self.d_model % 2:
            raise ValueError(
                f"d_model is {self.d_model}, heads is {self.heads}; "
                "d_model must be even and a multiple of heads"
            )
        if self.norm not in ("pre", "post"):
            raise ValueError(f"norm is {self.norm!r}; allowed: 'pre', 'post'")
        if self.activation not in ("relu", "gelu"):
            raise ValueError(f"activation is {self.activation!r}; allowed: 'relu', 'gelu'")
        if not 0 <= self.clsr_budget <= 1 or self.clsr_hidden < 1:
            raise ValueError(
                f"clsr_budget is {self.clsr_budget}, clsr_hidden is {self.clsr_hidden}; they must "
                "lie in [0, 1] and be at least 1"
            )
        if not 0 <= self.pad < self.vocabulary_size:
            raise ValueError(f"pad is {self.pad}; it must lie in [0, {self.vocabulary_size})")


class Shape(TypedDict):
    """The sizes of a preset, to be completed to a `TransformerConfig`."""

    d_model: int
    d_ffn: int
    heads: int
    encoder_layers: int
    decoder_layers: int


PRESETS: dict[str, Shape] = {
    # 3.8 M parameters with 8,000 subwords: half precision and vocabulary fit in 8 MiB.
    "tiny": Shape(d_model=192, d_ffn=640, heads=4, encoder_layers=3, decoder_layers=2),
    "small": Shape(d_model=256, d_ffn=1024, heads=4, encoder_layers=4, decoder_layers=4),
    # Vaswani et al. 2017, table 3, "base".
    "base": Shape(d_model=512, d_ffn=2048, heads=8, encoder_layers=6, decoder_layers=6),
    # Chen et al. 2018a, table 1, "Trans. Big", the model of Wang et al. 2021. The 375 M they
    # count hold three untied 32k matrices; with one tied 64k matrix it is 343 M.
    "big": Shape(d_model=1024, d_ffn=8192, heads=16, encoder_layers=6, decoder_layers=6),
}


class Attention(nn.Module):
    """Multi-head attention with separate projections, so that geometry can tell them apart."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d = config.d_model
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))

    def split(self, x_BTd: Tensor) -> Tensor:
        """Return ``[B, H, T, d/H]``, a view."""
        return x_BTd.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x_BSd: Tensor) -> tuple[Tensor, Tensor]:
        """Return what queries look up in ``x``: keys and values ``[B, H, S, d/H]``."""
        return self.split(self.k(x_BSd)), self.split(self.v(x_BSd))

    def forward(
        self,
        x_BTd: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Return ``[B, T, d]``; ``mask`` broadcasts to ``[B, H, T, S]``, True where to look."""
        return self.o(self.attend(x_BTd, keys, values, mask, causal))

    def attend(
        self,
        x_BTd: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Return what the heads found, side by side, before it is projected: ``[B, T, d]``."""
        dropout = self.dropout if self.training else 0.0
        query = self.split(self.q(x_BTd))
        if query.dtype == torch.bfloat16 and query.device.type == "cpu":
            # Measured with torch 2.13: the backward of bfloat16 attention takes nine times that
            # of fp32 on a CPU, and eats most of what bfloat16 gains elsewhere.
            with torch.autocast("cpu", enabled=False):
                y_BHTd = F.scaled_dot_product_attention(
                    query.float(), keys.float(), values.float(), mask, dropout, causal
                ).bfloat16()
        else:
            y_BHTd = F.scaled_dot_product_attention(query, keys, values, mask, dropout, causal)
        return y_BHTd.transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """Two linear maps around an activation."""

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
    """What encoder and decoder layers share: residual connections and where the norm stands."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.dropout = nn.Dropout(config.dropout)

    def enter(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Return what the sublayer reads."""
        return norm(x) if self.pre else x

    def leave(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        """Return the residual stream after the sublayer wrote ``y``."""
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
    """Self-attention to what was written, attention to the source, then feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.self_attention = Attention(config)
        self.self_attention_norm = nn.LayerNorm(config.d_model)
        self.cross_attention = Attention(config)
        self.cross_attention_norm = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.d_model)

    def remember(self, encoded: Encoded) -> LayerMemory:
        """Project what is to be looked up in the source."""
        keys, values = self.cross_attention.keys_values(encoded.source_BSd)
        return LayerMemory(keys, values, encoded.mask, encoded.language)

    def forward(
        self, x_BTd: Tensor, memory: LayerMemory | Encoded, past: LayerPast | None
    ) -> Tensor:
        """Return ``[B, T, d]``; with a ``past`` the one new position sees all of it."""
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
        # Hypotheses of one sentence are query positions here: its memory is never repeated.
        y_BTd = y.view(memory.keys.shape[0], -1, y.shape[-1]) if past is not None else y
        y = self.cross_attention(y_BTd, memory.keys, memory.values, memory.mask).view_as(y)
        x_BTd = self.leave(x_BTd, y, self.cross_attention_norm)

        y = self.feed_forward(self.enter(x_BTd, self.feed_forward_norm))
        return self.leave(x_BTd, y, self.feed_forward_norm)


class Encoded(NamedTuple):
    """The encoder's output ``[B, S, d]``, of which each decoder layer makes a memory of its own.

    That happens inside the layer: the backward of training is then done with a layer before it
    begins with the one below, and a layer that is sharded is whole by then. The mask is
    ``[B, 1, 1, S]``; ``language`` ``[B]`` is there in models that route by language.
    """

    source_BSd: Tensor
    mask: Tensor
    language: Tensor | None = None


@dataclass
class LayerMemory:
    """Source keys and values ``[B, H, S, d/H]`` of one decoder layer, mask ``[B, 1, 1, S]``.

    ``language`` ``[B]`` is there in models that route by language.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    language: Tensor | None = None


@dataclass
class LayerPast:
    """Self-attention keys and values ``[N, H, t, d/H]`` of the ``t`` tokens written so far."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add one position and return all of them."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values


@dataclass
class Cache:
    """What incremental decoding remembers: `Transformer.start` makes it, `step` extends it."""

    memory: list[LayerMemory]
    past: list[LayerPast] = field(default_factory=list)
    length: int = 0

    def reorder(self, rows: Tensor, sentences: Tensor | None = None) -> None:
        """Keep the hypotheses ``rows`` ``[N']``, and of the memory the ``sentences`` ``[B']``.

        ``rows`` must list the hypotheses sentence by sentence, equally many for each kept
        sentence; ``sentences`` may stay None while all sentences are kept.
        """
        for past in self.past:
            if past.keys is not None and past.values is not None:
                past.keys = past.keys.index_select(0, rows)
                past.values = past.values.index_select(0, rows)
        if sentences is not None:
            mask = self.memory[0].mask.index_select(0, sentences)
            language = self.memory[0].language
            language = None if language is None else language.index_select(0, sentences)
            for memory in self.memory:
                memory.language = language
                memory.keys = memory.keys.index_select(0, sentences)
                memory.values = memory.values.index_select(0, sentences)
                memory.mask = mask


class Stack(nn.Module):
    """Layers, and the norm that closes a pre-norm stack."""

    def __init__(self, layers: list[Layer], config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()


class Transformer(nn.Module):
    """Encoder-decoder with one matrix for source embedding, target embedding and softmax.

    Vaswani et al. 2017 with sinusoidal positions; ``norm="pre"`` is the stabler variant that
    Chen et al. 2018a train. Encoder input is ``tag tokens eos``, decoder input ``bos tokens``,
    decoder output ``tokens eos``; padding stands at the end.
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
        """Return ``[B, T, d]`` for tokens that stand at positions ``start, start + 1, ...``."""
        end = start + tokens_BT.shape[1]
        if end > len(self.positions):
            positions = sinusoids(2 * end, self.config.d_model)
            self.positions = positions.to(self.positions)
        x_BTd = self.embedding(tokens_BT) * math.sqrt(self.config.d_model)
        return self.dropout(x_BTd + self.positions[start:end])

    def encode(self, source_BS: Tensor) -> Tensor:
        """Return the encoder's output ``[B, S, d]``; rows of padding hold nothing of meaning."""
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
        """Encode, for the decoder's layers."""
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, negative log-likelihood (nats) and sentence index, each ``[N]``.

        The ``N`` target tokens that are not padding stand in reading order. Only their rows
        reach the softmax, so padding costs nothing there. The likelihood is without smoothing
        and without gradient; the loss mixes in ``label_smoothing`` of a uniform distribution
        over the vocabulary (Szegedy et al. 2016, section 7).
        """
        hidden_BTd = self(source_BS, target_in_BT)
        kept_N = (target_out_BT != self.config.pad).flatten().nonzero().squeeze(1)
        logits_NV = self.logits(hidden_BTd.flatten(0, 1).index_select(0, kept_N))
        gold_N = target_out_BT.flatten().index_select(0, kept_N)
        loss_N, nll_N = smoothed_cross_entropy(logits_NV, gold_N, label_smoothing)
        return loss_N, nll_N, kept_N // target_out_BT.shape[1]

    def begin_step(self, progress: float) -> None:
        """Hear that a training step begins, at ``progress`` of the training; nothing to do here."""

    def auxiliary_loss(self) -> Tensor | None:
        """Return what training minimises beside the tokens' losses of the last forward pass."""
        return None

    def start(self, source_BS: Tensor) -> Cache:
        """Encode, and project the source keys and values of every decoder layer once."""
        encoded = self.encoded(source_BS)
        memory = [cast(DecoderLayer, layer).remember(encoded) for layer in self.decoder.layers]
        return Cache(memory, [LayerPast() for _ in memory])

    def step(self, tokens_N: Tensor, cache: Cache) -> Tensor:
        """Append one token to each hypothesis; return the logits ``[N, V]`` of the next.

        ``N`` is a multiple of the ``B`` sentences in the cache: hypotheses stand sentence by
        sentence, equally many for each.
        """
        hidden_N1d = self.decode(tokens_N[:, None], cache.memory, cache.past, cache.length)
        cache.length += 1
        return self.logits(hidden_N1d[:, 0])


def sinusoids(length: int, d_model: int) -> Tensor:
    """Return the position encodings ``[length, d_model]`` of Vaswani et al. 2017, section 3.5.

    Sines fill the first half of the columns and cosines the second, as tensor2tensor lays
    them out; the paper interleaves them, which is the same up to a permutation of columns.
    """
    half = d_model // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(1e4) / half))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1).float()
