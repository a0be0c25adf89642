"""Prepare a self-contained run folder from a recipe of sequence labelling.

recipe.yaml  tasks.json  best/config.json  best/tokenizer.json (and related files)
data/train/*.npy  data/valid/*.npy  data/test.jsonl  data/account.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.run.contents import TaggedSentence
from gradvac.experiment.run.folder import TaskInfo, any_recipe, run_recipe, task_infos
from gradvac.experiment.run.sums import check_sums, write_sums
from gradvac.experiment.tagging.recipe import FineTuningSection, LanguageSection, TaggingRecipe
from gradvac.experiment.training.job import Prepared
from gradvac.reading import read_lines
from gradvac.tagging.encoder import (
    check_encoder,
    fingerprint,
    open_tokenizer,
    save_shape,
)
from gradvac.tagging.encoding import counted_by_sentence, encode_tagged
from gradvac.tagging.labels import check_labels, common_labels, renamed
from gradvac.tagging.readers import Tagged, check_overlap, read_tagged
from gradvac.tagging.store import load_sentences, save_sentences
from gradvac.text.account import Account
from gradvac.text.languages import family, resource_levels
from gradvac.writing import replacing, share, write_json

PARTS = ("train", "valid", "test")
FOLLOWING = ("warmup", "validate_every", "checkpoint_every")  # derived from the steps, unless given
SHAPE = "best"  # with the parameters it is a Hugging Face folder


def as_scheduled(recipe: TaggingRecipe, folder: Path) -> TaggingRecipe:
    """The recipe with steps; derived keys that it does not set are those of the run."""
    training, kept = scheduled(recipe, task_infos(folder)).training, any_recipe(folder).training
    given = recipe.training.model_fields_set
    own = {k: getattr(kept, k) for k in FOLLOWING if k not in given}
    return recipe.model_copy(update={"training": training.model_copy(update=own)})


def open_tagging(folder: Path) -> Prepared[TaggingRecipe, Any]:
    """Open a prepared run folder; RunError says what is missing or does not match."""
    recipe = run_recipe(folder, TaggingRecipe)
    tokenizer = open_tokenizer(str(folder / SHAPE))
    mark = fingerprint(tokenizer)
    train, valid = (
        {t: counted_by_sentence(s) for t, s in load_sentences(folder / "data" / p, mark).items()}
        for p in ("train", "valid")
    )
    return Prepared(folder, recipe, tokenizer, task_infos(folder), train, valid)


def scheduled(recipe: TaggingRecipe, tasks: Mapping[str, TaskInfo]) -> TaggingRecipe:
    """The recipe with its epochs as steps, and derived values for keys that it does not set.

    RecipeError if it sets both, and they contradict.
    """
    training, batches = recipe.training, recipe.batches
    given = training.model_fields_set
    a_step = batches.sentences * batches.accumulate
    epoch = math.ceil(sum(info.pairs for info in tasks.values()) / a_step)
    changes: dict[str, Any] = {}
    if training.epochs is not None:
        changes["steps"] = math.ceil(epoch * training.epochs)
        _one_of_two(training, "steps", changes["steps"], "epochs")
    steps = changes.get("steps", training.steps)
    if training.warmup_share is not None:
        changes["warmup"] = max(1, round(steps * training.warmup_share))
        _one_of_two(training, "warmup", changes["warmup"], "warmup_share")
    changes |= {
        key: min(epoch, steps) for key in ("validate_every", "checkpoint_every") if key not in given
    }
    return recipe.model_copy(update={"training": training.model_copy(update=changes)})


def _one_of_two(training: FineTuningSection, key: str, value: int, other: str) -> None:
    """RecipeError for a key that contradicts another key of the recipe."""
    found = getattr(training, key)
    if key in training.model_fields_set and found != value:
        raise RecipeError(
            f"training.{key}: found {found}, and training.{other}: {getattr(training, other)} "
            f"makes it {value}; leave {key} out, or set training.{other} to null"
        )


def read_language(
    section: LanguageSection,
    account: Account,
    limit: int | None = None,
    held_out: int | None = None,
) -> dict[str, list[Tagged]]:
    """The tagged sentences of one language by part, up to the maximum of the recipe."""
    found: dict[str, list[Tagged]] = {}
    for part in PARTS:
        found[part] = []
        for file in getattr(section, part):
            sentences = read_tagged(file.path, file.format or section.format, account, file.split)
            first, last = file.rows or (0, len(sentences))
            found[part] += sentences[first:last]
        found[part] = renamed(found[part], section.map) if section.map else found[part]
    limits = {"train": section.max_sentences or limit, "valid": held_out, "test": held_out}
    return {part: sentences[: limits[part]] for part, sentences in found.items()}


def test_sentences(folder: Path) -> dict[str, list[tuple[list[str], list[str]]]]:
    """Words and tags of the test sentences of a run, by language."""
    found: dict[str, list[tuple[list[str], list[str]]]] = {}
    file = folder / "data" / "test.jsonl"
    with suppress(FileNotFoundError):  # runs of earlier versions have no sums
        check_sums(folder / "data", ["test.jsonl"])
    for number, line in enumerate(read_lines(file, TaggedSentence), 1):
        if len(line["words"]) != len(line["tags"]):
            raise RunError(f"{file}:{number}: as many tags as words are needed")
        found.setdefault(line["task"], []).append((line["words"], line["tags"]))
    return found


def prepare_text(
    recipe: TaggingRecipe, folder: Path, say: Callable[[str], None]
) -> dict[str, TaskInfo]:
    """Read, check and encode all text of a recipe; returns the data of each task."""
    check_encoder(recipe.model.encoder)  # before all text is read
    data, account = recipe.data, Account(recipe.data.on_problem)
    texts = {
        code: read_language(own, account, data.max_sentences, data.max_held_out)
        for code, own in data.languages.items()
    }
    if empty := [code for code, own in texts.items() if not own["train"]]:
        raise RecipeError(f"data.languages: no training sentence for {', '.join(empty)}")
    for code, own in texts.items():
        check_overlap(code, own, account)
    labels = data.fixed_labels()
    if labels is None:
        labels = common_labels({code: [*own["train"]] for code, own in texts.items()})
    for own in texts.values():
        for part in PARTS:
            check_labels(own[part], labels)
    say(str(account))
    with new_text(folder) as (new, shape):
        save_shape(recipe.model.encoder, shape, labels, recipe.model.dropout)
        tokenizer = open_tokenizer(str(shape))
        sizes = _encode(texts, "train", tokenizer, labels, data.max_tokens, new, say)
        _encode(texts, "valid", tokenizer, labels, data.max_tokens, new, say)
        with (new / "test.jsonl").open("w", encoding="utf-8") as out:
            for code, own in texts.items():
                for s in own["test"]:
                    line = {"task": code, "words": s.words, "tags": s.tags}
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
        write_json(new / "account.json", account.to_dict())
        write_sums(new, ["test.jsonl"])
    levels = resource_levels(sizes, data.levels)
    return {code: TaskInfo(n, levels[code], family(code)) for code, n in sizes.items()}


@contextmanager
def new_text(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Folders to write the ``data`` of a run and the shape of its model; both appear complete.

    Other files in the folder of the shape, such as parameters, are kept.
    """
    with replacing(folder / "data") as new:
        new.mkdir()
        shape = new.with_name(SHAPE)
        shape.mkdir()
        yield new, shape
        share(shape, folder / SHAPE)


def _encode(
    texts: Mapping[str, Mapping[str, list[Tagged]]],
    part: str,
    tokenizer: Any,
    labels: list[str],
    limit: int,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, int]:
    """Encode a part of the text; returns the number of sentences by language."""
    encoded = {}
    for code, own in texts.items():
        if not own[part]:
            continue
        encoded[code], _ = encode_tagged(own[part], tokenizer, labels, limit)
        pieces, whole = len(encoded[code]), len(own[part])
        if pieces > whole:
            say(f"{part} {code}: {whole:,} sentences became {pieces:,} of at most {limit} subwords")
    save_sentences(folder / part, encoded, fingerprint(tokenizer))
    return {code: len(side) for code, side in encoded.items()}
