"""CLSR (Zhang et al., ICLR 2021): a Transformer that learns language-specific routing of tokens.

After every sub-layer (attention without its output projection, or feed-forward) a gate chooses for
each token between a projection shared by all languages and one of the target language::

    G(x) = w2 . relu(W1 x + b1) + b2            x: input of the sub-layer
    gate = sigmoid(G(x) + alpha(t) noise)       in training, noise ~ N(0, 1)
    gate = 1 if G(x) >= 0 else 0                otherwise
    out  = gate (y W_language) + (1 - gate) (y W_shared)
    alpha(t) = 5 t / T                          t of T training steps
    loss = tokens' loss + | mean gate - budget |    mean over tokens and sub-layers

Each sub-layer has its own shared projection; each language has one projection for the whole encoder
and one for the whole decoder: 2 d^2 parameters. The growing noise pushes gates to 0 or 1. The
language is read from the target tag at the start of a source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from gradvac.sending import on_host, to_device
from gradvac.translation.layers import (
    Attention,
    DecoderLayer,
    Encoded,
    EncoderLayer,
    FeedForward,
    LayerMemory,
    LayerPast,
)
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer

LARGEST_NOISE = 5.0  # alpha at the end of training
OF_LANGUAGES = "languages."  # prefix of the names of language-specific parameters


Places = tuple[list[int], list[Tensor], Tensor]
"""Languages, the rows of each, and what puts rows back that stand language by language."""


class Routing:
    """What the gates of a model share: the batch's languages, the noise, the gates' sums."""

    def __init__(self) -> None:
        self.language_B = torch.zeros(0, dtype=torch.int64)  # of the sentences, on the host
        self.token_BT = torch.zeros(0, 0, dtype=torch.bool)  # True if not padding
        self.alpha = 0.0
        self._of: Tensor | None = None
        self._found: dict[tuple[int, torch.device], Places] = {}
        self.clear()

    def places(self, rows: int, device: torch.device) -> Places:
        """Return where the rows of each language are, without a wait for the device.

        In a search there is a row for each hypothesis, sorted by sentence.
        """
        if self._of is not self.language_B:
            self._of, self._found = self.language_B, {}
        if (rows, device) not in self._found:
            language = self.language_B.repeat_interleave(rows // len(self.language_B))
            present = language.unique().tolist()
            own = [(language == l).nonzero().squeeze(1) for l in present]
            sent = [to_device(x, device, known=True) for x in (*own, torch.cat(own).argsort())]
            self._found[rows, device] = present, sent[:-1], sent[-1]
        return self._found[rows, device]

    def clear(self) -> None:
        """Remove the gates counted so far."""
        self.gates: list[Tensor] = []  # sum over the tokens of each sub-layer
        self.tokens: list[Tensor] = []

    def mean(self) -> Tensor:
        """Mean gate over tokens and sub-layers since :meth:`clear`."""
        return torch.stack(self.gates).sum() / torch.stack(self.tokens).sum()


class Route(nn.Module):
    """One gate, and its choice for each token."""

    def __init__(
        self, config: TransformerConfig, routing: Routing, languages: nn.ModuleList
    ) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.clsr_hidden)
        self.down = nn.Linear(config.clsr_hidden, 1)
        self._shared = (routing, languages)  # in a tuple, so that it is not in this module's state

    def forward(self, x_BTd: Tensor, y_BTd: Tensor, shared: nn.Linear) -> Tensor:
        """Project ``y`` for each token by the gate of its ``x``, ``[B, T, d]``."""
        routing, languages = self._shared
        score_BT1 = self.down(torch.relu(self.up(x_BTd)))
        if self.training:
            gate_BT1 = (score_BT1 + routing.alpha * torch.randn_like(score_BT1)).sigmoid()
            routing.gates.append((gate_BT1.squeeze(-1) * routing.token_BT).sum())
            routing.tokens.append(routing.token_BT.sum())
        else:
            gate_BT1 = (score_BT1 >= 0).to(y_BTd.dtype)
        present, places, order = routing.places(len(y_BTd), y_BTd.device)
        if len(present) == 1:
            own = languages[present[0]](y_BTd)
        else:
            parts = [languages[l](y_BTd[rows]) for l, rows in zip(present, places, strict=True)]
            own = torch.cat(parts)[order]
        return gate_BT1 * own + (1 - gate_BT1) * shared(y_BTd)


class RoutedAttention(Attention):
    """Attention whose output projection is the shared one."""

    def __init__(self, config: TransformerConfig, route: Route) -> None:
        super().__init__(config)
        self.route = route

    def project(self, x_BTd: Tensor, found_BTd: Tensor) -> Tensor:
        """Return the output of the shared or the language's projection, ``[B, T, d]``."""
        return self.route(x_BTd, found_BTd, self.o)


class RoutedFeedForward(FeedForward):
    """Feed-forward, then the shared or the language's projection."""

    def __init__(self, config: TransformerConfig, route: Route) -> None:
        super().__init__(config)
        self.route = route
        self.shared = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``, ``[B, T, d]``."""
        return self.route(x, super().forward(x), self.shared)


class CLSRTransformer(Transformer):
    """The Transformer with a gate after every sub-layer; ``config.clsr_tags`` are its languages."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.routing = Routing()
        matrices = lambda: nn.ModuleList(
            nn.Linear(config.d_model, config.d_model, bias=False) for _ in config.clsr_tags
        )
        self.languages = nn.ModuleDict({"encoder": matrices(), "decoder": matrices()})
        for side, stack in (("encoder", self.encoder), ("decoder", self.decoder)):
            languages = cast(nn.ModuleList, self.languages[side])
            for layer in stack.layers:
                assert isinstance(layer, EncoderLayer | DecoderLayer)
                route = lambda languages=languages: Route(config, self.routing, languages)
                layer.self_attention = RoutedAttention(config, route())
                layer.feed_forward = RoutedFeedForward(config, route())
                if isinstance(layer, DecoderLayer):
                    layer.cross_attention = RoutedAttention(config, route())
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def language(self, source_BS: Tensor) -> Tensor:
        """Return the index of each sentence's target language, ``[B]``, on the host, from its tag.

        Raises ValueError if the model does not have the language of a tag.
        """
        known = on_host(source_BS)[:, :1] == torch.tensor(self.config.clsr_tags, device="cpu")
        if not bool(known.any(1).all()):
            raise ValueError("a source asks for a language that this model has no matrix of")
        return known.int().argmax(1)

    def encode(self, source_BS: Tensor) -> Tensor:
        """Return the encoder's output ``[B, S, d]``."""
        self.routing.language_B = self.language(source_BS)
        self.routing.token_BT = source_BS != self.config.pad
        return super().encode(source_BS)

    def encoded(self, source_BS: Tensor) -> Encoded:
        """Encode; the result includes the languages."""
        return super().encoded(source_BS)._replace(language=self.routing.language_B)

    def decode(
        self,
        target_in_BT: Tensor,
        memory: Iterable[LayerMemory | Encoded],
        past: list[LayerPast] | None = None,
        position: int = 0,
    ) -> Tensor:
        """Return the decoder's output ``[B, T, d]``."""

        def entering() -> Iterator[LayerMemory | Encoded]:
            for of_layer in memory:  # by now the encoder has run
                assert of_layer.language is not None
                self.routing.language_B = of_layer.language
                self.routing.token_BT = target_in_BT != self.config.pad
                yield of_layer

        return super().decode(target_in_BT, entering(), past, position)

    def begin_step(self, progress: float) -> None:
        """Set the noise, and remove the gates of passes that were not for training."""
        self.routing.alpha = min(LARGEST_NOISE, LARGEST_NOISE * progress)
        self.routing.clear()

    def auxiliary_loss(self) -> Tensor:
        """Return the distance of the mean gate from the budget, and restart counting."""
        loss = (self.routing.mean() - self.config.clsr_budget).abs()
        self.routing.clear()
        return loss


def make_transformer(config: TransformerConfig) -> Transformer:
    """Make the model of a configuration."""
    return CLSRTransformer(config) if config.clsr_tags else Transformer(config)
