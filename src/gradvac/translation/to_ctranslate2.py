"""A trained Transformer as a CTranslate2 model, and translation with it.

CTranslate2's own converter of Hugging Face folders assumes the original Marian and Pegasus models:
a decoder that starts from a zero vector or from padding, and a vocabulary whose last row must be
dropped. So its specification is filled directly from our parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gradvac.errors import RunError
from gradvac.translation.search import MAX_LENGTH_OFFSET, MAX_LENGTH_RATIO, divisor
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.to_huggingface import POSITIONS, refuse_routing
from gradvac.translation.transformer import sinusoids
from gradvac.translation.vocabulary import Vocabulary

QUANTIZATIONS = (
    "float32", "float16", "bfloat16", "int16", "int8", "int8_float32", "int8_float16",
    "int8_bfloat16",
)  # fmt: skip
# Added to the logits of tokens that a translation never contains. Their probability is 0 in any
# format: exp(-10^4) is 0, and 16 bits can hold -10^4.
_NEVER = -1e4


def load_library() -> ModuleType:
    """Return the module ``ctranslate2``; RunError without the extra."""
    try:
        import ctranslate2
    except ImportError as e:
        raise RunError("CTranslate2 is not installed: pip install 'gradvac[export]'") from e
    return ctranslate2


def write_ctranslate2(
    config: TransformerConfig,
    tensors: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    folder: Path,
    quantization: str = "float32",
) -> None:
    """Write a CTranslate2 model into ``folder``, and the vocabulary beside it.

    Raises RunError for a model that routes by language, an unknown ``quantization`` or when the
    extra is missing.
    """
    refuse_routing(config, "CTranslate2")
    if quantization not in QUANTIZATIONS:
        raise RunError(f"quantization {quantization!r}; allowed: {', '.join(QUANTIZATIONS)}")
    spec = _specification(config, tensors, vocabulary)
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(folder))
    vocabulary.save(folder / "vocabulary.model")


def _specification(
    config: TransformerConfig, tensors: Mapping[str, Tensor], vocabulary: Vocabulary
) -> Any:
    specs = load_library().specs
    layers = (config.encoder_layers, config.decoder_layers)
    activation = {"relu": specs.Activation.RELU, "gelu": specs.Activation.GELU}[config.activation]
    spec = specs.TransformerSpec.from_config(
        layers, config.heads, pre_norm=config.norm == "pre", activation=activation
    )
    fill = _Filler({k: v.detach().to("cpu", torch.float32) for k, v in tensors.items()})
    for side, stack, n in (("encoder", spec.encoder, 0), ("decoder", spec.decoder, 1)):
        embeddings = stack.embeddings[0] if side == "encoder" else stack.embeddings
        embeddings.weight = fill.tensors["embedding.weight"]
        stack.scale_embeddings = math.sqrt(config.d_model)
        stack.position_encodings.encodings = sinusoids(POSITIONS, config.d_model)
        for i in range(layers[n]):
            fill.layer(stack.layer[i], f"{side}.layers.{i}.", decoder=side == "decoder")
        if config.norm == "pre":
            fill.norm(stack.layer_norm, f"{side}.norm")
    bias = torch.zeros(config.vocabulary_size)
    bias[vocabulary.forbidden] = _NEVER
    spec.decoder.projection.weight = fill.tensors["embedding.weight"]
    spec.decoder.projection.bias = bias
    pieces = [vocabulary.pieces.id_to_piece(i) for i in range(len(vocabulary))]
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    spec.config.unk_token = pieces[vocabulary.unk]
    spec.config.bos_token = spec.config.decoder_start_token = pieces[vocabulary.bos]
    spec.config.eos_token = pieces[vocabulary.eos]
    return spec


@dataclass
class _Filler:
    """Copies our parameters into a specification."""

    tensors: Mapping[str, Tensor]

    def layer(self, spec: Any, name: str, decoder: bool) -> None:
        self.attention(spec.self_attention, name + "self_attention", ("qkv", "o"))
        if decoder:
            self.attention(spec.attention, name + "cross_attention", ("q", "kv", "o"))
        self.linear(spec.ffn.linear_0, name + "feed_forward.up")
        self.linear(spec.ffn.linear_1, name + "feed_forward.down")
        self.norm(spec.ffn.layer_norm, name + "feed_forward_norm")

    def attention(self, spec: Any, name: str, maps: Sequence[str]) -> None:
        for linear, letters in zip(spec.linear, maps, strict=True):
            self.linear(linear, *(f"{name}.{letter}" for letter in letters))
        self.norm(spec.layer_norm, name + "_norm")

    def linear(self, spec: Any, *names: str) -> None:
        """Stack the rows of several maps of the same input into one."""
        spec.weight = torch.cat([self.tensors[name + ".weight"] for name in names])
        spec.bias = torch.cat([self.tensors[name + ".bias"] for name in names])

    def norm(self, spec: Any, name: str) -> None:
        spec.gamma, spec.beta = self.tensors[name + ".weight"], self.tensors[name + ".bias"]


class ExportedModel:
    """A CTranslate2 model that replaces a `Transformer` in a `Translator`.

    Args:
        folder: output of `write_ctranslate2`.
        compute_type: number type of CTranslate2's calculations; ``int8`` also for a float32 folder.
        threads: per translation. Default: as many as PyTorch has.
    """

    def __init__(
        self, folder: Path, *, compute_type: str = "default", threads: int | None = None
    ) -> None:
        self.translator: Any = load_library().Translator(
            str(folder), compute_type=compute_type, intra_threads=threads or torch.get_num_threads()
        )

    def search(
        self,
        sources: Sequence[Sequence[int]],
        vocabulary: Vocabulary,
        *,
        beam: int,
        length_penalty: float,
    ) -> list[list[int]]:
        """Return the best translation of each source, token ids without eos.

        ``beam=1`` is the greedy search of `beam_search`, with the same length limits. A wider beam
        is CTranslate2's own search, which refills the place of a finished hypothesis and stops
        after ``beam`` of them; the best by our score is returned.
        """
        limits = [
            min(MAX_LENGTH_RATIO * len(source) + MAX_LENGTH_OFFSET, POSITIONS - 1)
            for source in sources
        ]
        results = self.translator.translate_batch(
            [[vocabulary.pieces.id_to_piece(i) for i in source] for source in sources],
            beam_size=beam,
            num_hypotheses=beam,
            length_penalty=0.0,
            return_scores=beam > 1,
            max_input_length=POSITIONS,
            max_decoding_length=max(limits),
        )
        best = []
        for result, limit in zip(results, limits, strict=True):
            found = result.hypotheses
            if beam > 1:
                lengths = [len(tokens) + 1 for tokens in found]  # eos counts
                scores = [
                    log_p / divisor(length, length_penalty)
                    for log_p, length in zip(result.scores, lengths, strict=True)
                ]
                found = [found[scores.index(max(scores))]]
            best.append([vocabulary.pieces.piece_to_id(p) for p in found[0][:limit]])
        return best
