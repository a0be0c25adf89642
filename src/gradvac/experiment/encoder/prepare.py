"""Prepare a self-contained run folder from a recipe of an encoder.

recipe.yaml  tasks.json  best/config.json  best/tokenizer.json (and related files)
data/train/*.npy  data/valid/*.npy  data/account.json
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradvac.data.encoded import EncodedTask
from gradvac.errors import RecipeError
from gradvac.experiment.encoder.recipe import EncoderRecipe
from gradvac.experiment.run.folder import TaskInfo, run_recipe, task_infos
from gradvac.experiment.tagging.prepare import SHAPE, new_text, read_language
from gradvac.experiment.training.job import Prepared
from gradvac.tagging.encoder import fingerprint, open_tokenizer
from gradvac.tagging.encoding import encode_text
from gradvac.tagging.pretraining import build_encoder, save_encoder_shape, train_tokenizer
from gradvac.tagging.store import load_sentences, save_sentences
from gradvac.text.account import Account
from gradvac.text.cleaning import normalise
from gradvac.text.languages import family, resource_levels
from gradvac.translation.bitext import read_corpus
from gradvac.writing import write_json

Texts = dict[str, dict[str, None]]
"""The sentences of each language, in order, without duplicates."""


def open_encoder(folder: Path) -> Prepared[EncoderRecipe, Any]:
    """Open a prepared run folder; RunError says what is missing or does not match."""
    recipe = run_recipe(folder, EncoderRecipe)
    tokenizer = open_tokenizer(str(folder / SHAPE))
    mark = fingerprint(tokenizer)
    train, valid = (
        {t: EncodedTask(s, s) for t, s in load_sentences(folder / "data" / p, mark).items()}
        for p in ("train", "valid")
    )
    return Prepared(folder, recipe, tokenizer, task_infos(folder), train, valid)


def prepare_text(
    recipe: EncoderRecipe, folder: Path, say: Callable[[str], None]
) -> dict[str, TaskInfo]:
    """Read and encode all text of a recipe; returns the data of each task."""
    account = Account("drop")
    texts = _texts(recipe, account)
    say(str(account))
    for code, held_out in texts["valid"].items():  # no sentence is in both parts
        own = texts["train"].get(code, {})
        texts["train"][code] = {t: None for t in own if t not in held_out}
    train = {code: list(own) for code, own in sorted(texts["train"].items()) if own}
    if not train:
        raise RecipeError("data: no sentence to train on")
    section = recipe.vocabulary
    tokenizer = train_tokenizer(
        train,
        size=section.size,
        temperature=section.temperature,
        sample=section.sample,
        seed=recipe.seed,
    )
    model = build_encoder(len(tokenizer), recipe.model.of_bert(), recipe.seed)
    valid = {code: list(texts["valid"].get(code, {})) for code in train}
    with new_text(folder) as (new, shape):
        save_encoder_shape(shape, model, tokenizer)
        tokenizer = open_tokenizer(str(shape))
        for part, found in (("train", train), ("valid", valid)):
            encoded = {
                code: encode_text(own, tokenizer, recipe.data.max_tokens)
                for code, own in found.items()
                if own
            }
            save_sentences(new / part, encoded, fingerprint(tokenizer))
        write_json(new / "account.json", account.to_dict())
    sizes = {code: len(own) for code, own in train.items()}
    levels = resource_levels(sizes)
    return {code: TaskInfo(n, levels[code], family(code)) for code, n in sizes.items()}


def _texts(recipe: EncoderRecipe, account: Account) -> dict[str, Texts]:
    """The sentences of each part and language, those of parallel corpora first."""
    data = recipe.data
    found: dict[str, Texts] = {"train": {}, "valid": {}}
    for part, sources in (("train", data.parallel), ("valid", data.valid)):
        for row in read_corpus([s.source() for s in sources], account):
            for code, text in row.texts.items():
                if data.languages is None or code in data.languages:
                    found[part].setdefault(code, {})[normalise(text)] = None
    for code, section in data.tagged.items():
        tagged = read_language(section, account)
        for part, texts in found.items():
            for sentence in tagged[part]:
                texts.setdefault(code, {})[" ".join(sentence.words)] = None
    limits = {"train": data.max_sentences, "valid": data.max_held_out}
    return {
        part: {code: dict.fromkeys(list(own)[: limits[part]]) for code, own in texts.items()}
        for part, texts in found.items()
    }
