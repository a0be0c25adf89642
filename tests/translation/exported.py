"""Models and text for the tests of exports."""

import functools
import lzma
from typing import Any

import torch

from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.translation.model_folder import FoundModel, find_model
from gradvac.translation.search import beam_search
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer
from gradvac.translation.vocabulary import Vocabulary, train_vocabulary

KINDS = [(norm, activation) for norm in ("pre", "post") for activation in ("relu", "gelu")]


@functools.cache
def toy_vocabulary() -> Vocabulary:
    text = ["the cat sat on the mat", "a dog saw my cat", "dogs saw mats and cats"]
    return train_vocabulary({"fr": text, "de": text}, size=283)


def toy(norm: Any, activation: Any, seed: int = 0) -> Transformer:
    """A random model with every parameter away from where it began, so that none can be lost."""
    torch.manual_seed(seed)
    shape = dict(d_model=16, d_ffn=24, heads=2, encoder_layers=3, decoder_layers=2)
    config = TransformerConfig(
        len(toy_vocabulary()), **shape, norm=norm, activation=activation, dropout=0.3
    )
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@functools.cache
def shipped() -> FoundModel:
    return find_model(resolve("shipped:start"))


def shipped_sources(each: int, languages: str = "de fr ru tr") -> list[list[int]]:
    """The first sentences of the shipped test set in each language, to go into English."""
    with lzma.open(resolve("shipped:corpus") / "test.tsv.xz", "rt", encoding="utf-8") as file:
        codes, *rows = [line.rstrip("\n").split("\t") for line in file]
    columns = [[row[codes.index(c)] for row in rows] for c in languages.split()]
    texts = [text for column in columns for text in [t for t in column if t][:each]]
    return [shipped().vocabulary.encode_source(text, "en") for text in texts]


def padded(sources: list[list[int]]) -> torch.Tensor:
    rows = [torch.tensor(ids) for ids in sources]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def ours(
    model: Transformer, vocabulary: Vocabulary, sources: list[list[int]], beam: int = 1
) -> list[list[int]]:
    """What our own search finds."""
    v = vocabulary
    found = beam_search(
        model, padded(sources), bos=v.bos, eos=v.eos, forbidden=v.forbidden, beam=beam
    )
    return [list(best.tokens) for best, *_ in found]
