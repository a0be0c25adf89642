"""The shape of a Transformer, and the named shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypedDict


@dataclass(frozen=True)
class TransformerConfig:
    """All values that fix the shape and the regularisation of a `Transformer`.

    Raises ValueError when a value is out of range or ``heads`` does not divide ``d_model``.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # for reading it from a file

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
        object.__setattr__(self, "clsr_tags", tuple(self.clsr_tags))  # JSON gives a list
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
    """The sizes of a preset, part of a `TransformerConfig`."""

    d_model: int
    d_ffn: int
    heads: int
    encoder_layers: int
    decoder_layers: int


PRESETS: dict[str, Shape] = {
    # 3.8 M parameters with 8,000 subwords: in half precision, with vocabulary, under 8 MiB.
    "tiny": Shape(d_model=192, d_ffn=640, heads=4, encoder_layers=3, decoder_layers=2),
    "small": Shape(d_model=256, d_ffn=1024, heads=4, encoder_layers=4, decoder_layers=4),
    # Vaswani et al. 2017, table 3, "base".
    "base": Shape(d_model=512, d_ffn=2048, heads=8, encoder_layers=6, decoder_layers=6),
    # Chen et al. 2018a, table 1, "Trans. Big", the model of Wang et al. 2021. Their 375 M include
    # three untied 32k matrices; with one tied 64k matrix it is 343 M.
    "big": Shape(d_model=1024, d_ffn=8192, heads=16, encoder_layers=6, decoder_layers=6),
}
