"""A trained Transformer as a folder that Hugging Face's transformers opens without gradvac.

Two of its architectures compute the same as ours, parameter by parameter:

- ``norm="post"``: Marian.
- ``norm="pre"``: Pegasus, which is Marian with the norms before the sublayers and one after the
  last layer. M2M-100 is not equivalent: its sinusoids have other frequencies, begin at position
  ``pad + 1`` and are computed at loading, so a file cannot replace them.

The tokenizer is Marian's: the SentencePiece model itself, and ``>>xx<<`` before the text for the
language to translate into, as in the models of OPUS-MT.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gradvac.data.encoded import BOS, EOS, PAD, UNK
from gradvac.errors import RunError
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import sinusoids
from gradvac.translation.vocabulary import Vocabulary

# A source of 512 tokens may give 2 x 512 + 20 and eos (translate.Translator, search.beam_search)
POSITIONS = 1056

_ARCHITECTURES = {
    "pre": ("pegasus", "PegasusForConditionalGeneration"),
    "post": ("marian", "MarianMTModel"),
}
# Our name -> their name, for each part of a parameter's name that differs.
_PARTS = {
    "embedding": "shared",
    "self_attention": "self_attn",
    "self_attention_norm": "self_attn_layer_norm",
    "cross_attention": "encoder_attn",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "feed_forward_norm": "final_layer_norm",
    "norm": "layer_norm",
    "up": "fc1",
    "down": "fc2",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "out_proj",
}


def refuse_routing(config: TransformerConfig, target: str) -> None:
    """Raise RunError if the model routes by language: no other library has such layers."""
    if config.clsr_tags:
        raise RunError(
            f"clsr: a model with routing by language (CLSR) has no counterpart in {target}; only "
            "models without model.clsr can be exported there"
        )


def write_huggingface(
    config: TransformerConfig, tensors: Mapping[str, Tensor], vocabulary: Vocabulary, folder: Path
) -> None:
    """Write model, generation settings and tokenizer into ``folder``, in float32.

    Raises RunError for a shape that no architecture of transformers computes exactly.
    """
    refuse_routing(config, "Hugging Face transformers")
    _write_json(folder / "config.json", model_config(config))
    _write_json(folder / "generation_config.json", _generation_config(vocabulary))
    save_file(model_tensors(config, tensors), folder / "model.safetensors", {"format": "pt"})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # else owner-only
    _write_tokenizer(vocabulary, folder)


def model_config(config: TransformerConfig) -> dict[str, Any]:
    """Return the contents of ``config.json``."""
    kind, name = _ARCHITECTURES[config.norm]
    return {
        "architectures": [name],
        "model_type": kind,
        "tokenizer_class": "MarianTokenizer",
        "dtype": "float32",
        "vocab_size": config.vocabulary_size,
        "d_model": config.d_model,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.d_ffn,
        "decoder_ffn_dim": config.d_ffn,
        "activation_function": config.activation,  # "gelu" is the exact version in both
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "scale_embedding": True,
        "tie_word_embeddings": True,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "decoder_start_token_id": BOS,
        "forced_eos_token_id": EOS,
    }


def model_tensors(config: TransformerConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters in float32 under the names of transformers."""
    renamed = {
        "model." + _renamed(name): tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in tensors.items()
    }
    for side in ("encoder", "decoder"):
        positions = sinusoids(POSITIONS, config.d_model)
        renamed[f"model.{side}.embed_positions.weight"] = positions
    renamed["final_logits_bias"] = torch.zeros(1, config.vocabulary_size)
    return renamed


def _renamed(name: str) -> str:
    return ".".join(_PARTS.get(part, part) for part in name.split(".") if part != "feed_forward")


def _generation_config(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "decoder_start_token_id": BOS,
        "forced_eos_token_id": EOS,
        "suppress_tokens": vocabulary.forbidden,
        "min_new_tokens": 1,  # no translation is empty
        "max_new_tokens": 512,  # transformers stops at 20 unless told otherwise
        "num_beams": 1,
    }


def _write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
    pieces = [vocabulary.pieces.id_to_piece(i) for i in range(len(vocabulary))]
    for language in vocabulary.languages:
        pieces[vocabulary.tag_id(language)] = f">>{language}<<"
    ids = {piece: i for i, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        raise RunError("a piece of the vocabulary is spelt >>xx<<, like a tag of the tokenizer")
    _write_json(folder / "vocab.json", ids)
    for side in ("source", "target"):
        (folder / f"{side}.spm").write_bytes(vocabulary.model)
    config = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": None,
        "target_lang": None,
        "separate_vocabs": False,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # </s> in a text is text
        "unk_token": pieces[UNK],
        "eos_token": pieces[EOS],
        "pad_token": pieces[PAD],
    }
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(file: Path, tree: dict[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
