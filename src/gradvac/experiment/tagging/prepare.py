"""From a recipe of sequence labelling to a run folder that needs nothing else.

recipe.yaml  tasks.json  best/config.json  best/tokenizer.json (and what belongs to it)
data/train/*.npy  data/valid/*.npy  data/test.jsonl  data/account.json
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.contents import TaggedSentence
from gradvac.experiment.prepare import TaskInfo, task_infos
from gradvac.experiment.recipe import any_recipe, dump_recipe
from gradvac.experiment.sections import BaseRecipe
from gradvac.experiment.shared_text import link
from gradvac.experiment.sums import check_sums, write_sums
from gradvac.experiment.tagging.recipe import LanguageSection, TaggingRecipe
from gradvac.reading import read_lines
from gradvac.tagging.encoder import (
    check_encoder,
    fingerprint,
    labels_of,
    open_tokenizer,
    save_shape,
)
from gradvac.tagging.encoding import counted_by_sentence, encode_tagged
from gradvac.tagging.labels import check_labels, common_labels, renamed
from gradvac.tagging.readers import Tagged, read_tagged
from gradvac.tagging.store import load_sentences, save_sentences
from gradvac.translation.account import Account
from gradvac.translation.encoded import EncodedTask
from gradvac.translation.languages import family, resource_levels

PARTS = ("train", "valid", "test")
SHAPE = "best"  # beside its parameters it makes a folder that Hugging Face opens


@dataclass(frozen=True)
class PreparedTagging:
    """The text side of a run, ready to train on, encoded as in `gradvac.tagging.encoding`."""

    folder: Path
    recipe: TaggingRecipe
    labels: list[str]
    fingerprint: str
    padding_id: int
    tasks: dict[str, TaskInfo]
    train: dict[str, EncodedTask]
    valid: dict[str, EncodedTask]

    @property
    def levels(self) -> dict[str, str]:
        """Task -> resource level."""
        return {name: info.level for name, info in self.tasks.items()}


def prepare_tagging(
    recipe: TaggingRecipe, folder: Path, store: Path | None, say: Callable[[str], None]
) -> PreparedTagging:
    """Build (or reopen) the text side of a run; with ``store``, share what is read with other runs.

    ``say`` receives lines for the user. A folder of another recipe is refused with the keys that
    differ.
    """
    if (folder / "tasks.json").exists():
        same_recipe(scheduled(recipe, task_infos(folder)), folder)
        return open_tagging(folder)
    text = folder if store is None else store / f"text-{_key(recipe)}"
    if not (text / "tasks.json").exists():
        _write_text(recipe, text, say)
    if text != folder:
        for part in ("data", SHAPE):
            shutil.copytree(text / part, folder / part, copy_function=link, dirs_exist_ok=True)
    resolved = scheduled(recipe, task_infos(text))
    (folder / "recipe.yaml").write_text(dump_recipe(resolved), encoding="utf-8")
    if text != folder:
        link(text / "tasks.json", folder / "tasks.json")  # last: all is there
    return open_tagging(folder)


def open_tagging(folder: Path) -> PreparedTagging:
    """Reopen a prepared run folder; RunError says what is missing or does not fit."""
    recipe = any_recipe(folder)
    if not isinstance(recipe, TaggingRecipe):
        raise RunError(f"{folder}: not a run of sequence labelling")
    tokenizer = open_tokenizer(str(folder / SHAPE))
    mark = fingerprint(tokenizer)
    train, valid = (
        {t: counted_by_sentence(s) for t, s in load_sentences(folder / "data" / p, mark).items()}
        for p in ("train", "valid")
    )
    return PreparedTagging(
        folder,
        recipe,
        labels_of(folder / SHAPE),
        mark,
        tokenizer.pad_token_id or 0,
        task_infos(folder),
        train,
        valid,
    )


def scheduled(recipe: TaggingRecipe, tasks: Mapping[str, TaskInfo]) -> TaggingRecipe:
    """The recipe with its epochs as steps, and what follows from them where it is silent."""
    training, batches = recipe.training, recipe.batches
    given = training.model_fields_set
    if training.epochs is None:
        return recipe
    a_step = batches.sentences * batches.accumulate
    epoch = math.ceil(sum(info.pairs for info in tasks.values()) / a_step)
    steps = math.ceil(epoch * training.epochs)
    changes: dict[str, Any] = {"steps": steps}
    if training.warmup_share is not None and "warmup" not in given:
        changes["warmup"] = max(1, round(steps * training.warmup_share))
    changes |= {
        key: min(epoch, steps) for key in ("validate_every", "checkpoint_every") if key not in given
    }
    return recipe.model_copy(update={"training": training.model_copy(update=changes)})


def same_recipe(recipe: BaseRecipe, folder: Path) -> None:
    """Refuse to continue a run under another recipe; name and device may differ."""
    old, new = (r.model_dump(mode="json") for r in (any_recipe(folder), recipe))
    differ = [
        f"{section}.{key}"
        for section in old
        if isinstance(old[section], dict)
        for key in old[section]
        if old[section][key] != new.get(section, {}).get(key)
    ]
    if old["seed"] != new["seed"]:
        differ.append("seed")
    if differ:
        raise RunError(
            f"{folder} holds a run of another recipe; these keys differ: {', '.join(differ)}. "
            "Choose another folder with --run, or restore the recipe to resume"
        )


def read_language(
    section: LanguageSection,
    account: Account,
    limit: int | None = None,
    held_out: int | None = None,
) -> dict[str, list[Tagged]]:
    """The tagged sentences of one language by part, no more than asked for."""
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
    """Words and tags of the test sentences a run keeps, by language."""
    found: dict[str, list[tuple[list[str], list[str]]]] = {}
    file = folder / "data" / "test.jsonl"
    with suppress(FileNotFoundError):  # a run of an earlier version has no sums
        check_sums(folder / "data", ["test.jsonl"])
    for number, line in enumerate(read_lines(file, TaggedSentence), 1):
        if len(line["words"]) != len(line["tags"]):
            raise RunError(f"{file}:{number}: as many tags as words are needed")
        found.setdefault(line["task"], []).append((line["words"], line["tags"]))
    return found


def _key(recipe: TaggingRecipe) -> str:
    from gradvac.experiment.shared_text import key_of

    return key_of([recipe.data.model_dump(mode="json"), recipe.model.model_dump(mode="json")])


def _write_text(recipe: TaggingRecipe, folder: Path, say: Callable[[str], None]) -> None:
    """Read, check and encode all that a recipe names."""
    check_encoder(recipe.model.encoder)  # before all is read
    data, account = recipe.data, Account(recipe.data.on_problem)
    texts = {
        code: read_language(own, account, data.max_sentences, data.max_held_out)
        for code, own in data.languages.items()
    }
    if empty := [code for code, own in texts.items() if not own["train"]]:
        raise RecipeError(f"data.languages: no training sentence for {', '.join(empty)}")
    labels = data.fixed_labels()
    if labels is None:
        labels = common_labels({code: [*own["train"]] for code, own in texts.items()})
    for own in texts.values():
        for part in PARTS:
            check_labels(own[part], labels)
    say(str(account))
    folder.mkdir(parents=True, exist_ok=True)
    save_shape(recipe.model.encoder, folder / SHAPE, labels, recipe.model.dropout)
    tokenizer = open_tokenizer(str(folder / SHAPE))
    sizes: dict[str, int] = {}
    for part in ("train", "valid"):
        encoded = {}
        for code, own in texts.items():
            if not own[part]:
                continue
            encoded[code], _ = encode_tagged(own[part], tokenizer, labels, data.max_tokens)
            pieces, whole = len(encoded[code]), len(own[part])
            if pieces > whole:
                say(
                    f"{part} {code}: {whole:,} sentences became {pieces:,} of at most "
                    f"{data.max_tokens} subwords"
                )
        sizes = sizes or {code: len(side) for code, side in encoded.items()}  # of train
        save_sentences(folder / "data" / part, encoded, fingerprint(tokenizer))
    with (folder / "data" / "test.jsonl").open("w", encoding="utf-8") as out:
        for code, own in texts.items():
            for s in own["test"]:
                line = {"task": code, "words": s.words, "tags": s.tags}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_sums(folder / "data", ["test.jsonl"])
    text = json.dumps(account.to_dict(), indent=1, ensure_ascii=False)
    (folder / "data" / "account.json").write_text(text, encoding="utf-8")
    levels = resource_levels(sizes, data.levels)
    tasks = {code: asdict(TaskInfo(n, levels[code], family(code))) for code, n in sizes.items()}
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    new = folder / "tasks.new"
    new.write_text(json.dumps(tasks, indent=1, ensure_ascii=False), encoding="utf-8")
    new.replace(folder / "tasks.json")  # last: its presence says that all is there
