"""From a recipe to a run folder that needs nothing else: vocabulary, encoded text, tasks.

recipe.yaml  vocabulary.model  tasks.json
data/train/*.npy  data/valid/*.npy  data/valid.jsonl  data/test.jsonl  data/account.json
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.model_folder import find_model
from gradvac.experiment.recipe import Recipe, SourceSection, dump_recipe, parse_recipe, resolve
from gradvac.experiment.zero_shot import zero_shot_directions
from gradvac.translation.cleaning import Account, CleaningRules, normalise
from gradvac.translation.corpus import (
    ENGLISH,
    Bitext,
    bitext,
    directions_of,
    encode,
    held_out_keys,
    load_encoded,
    read_corpus,
    save_encoded,
)
from gradvac.translation.encoded import EncodedTask
from gradvac.translation.languages import resource_levels
from gradvac.translation.readers import Row, Source
from gradvac.translation.scoring import family_of
from gradvac.translation.vocabulary import Vocabulary, train_vocabulary


@dataclass(frozen=True)
class TaskInfo:
    """What a run knows of a direction: training pairs, resource level, language family."""

    pairs: int
    level: str
    family: str


@dataclass(frozen=True)
class Prepared:
    """The text side of a run, ready to train on."""

    folder: Path
    recipe: Recipe
    vocabulary: Vocabulary
    tasks: dict[str, TaskInfo]
    train: dict[str, EncodedTask]
    valid: dict[str, EncodedTask]

    @property
    def levels(self) -> dict[str, str]:
        """Task -> resource level."""
        return {name: info.level for name, info in self.tasks.items()}


def prepare(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> Prepared:
    """Build (or reopen) the text side of a run in ``folder``.

    ``say`` receives lines for the user: what was read, dropped and why. A folder made from a
    different recipe is refused with the keys that differ.
    """
    if (folder / "tasks.json").exists():
        _same_recipe(recipe, folder)
        return open_prepared(folder)
    folder.mkdir(parents=True, exist_ok=True)
    account = Account(recipe.data.on_problem)
    texts, rows = _read(recipe, account)
    trained = [b.direction.name for b in texts["train"]]
    zero_shot_directions(recipe.search.zero_shot, trained, rows["test"])  # refused before training
    say(str(account))
    vocabulary = _vocabulary(recipe, rows["train"])
    for code in sorted(
        {c for b in texts["train"] for c in (b.direction.source, b.direction.target)}
    ):
        vocabulary.tag_id(code)  # a language it cannot ask for ends the run here
    levels = resource_levels({b.direction.name: len(b) for b in texts["train"]}, recipe.data.levels)
    for part, bitexts in texts.items():
        encoded = {}
        for b in bitexts:
            encoded[b.direction.name], kept = encode(b, vocabulary, recipe.data.max_tokens)
            if long := int((~kept).sum()):
                limit = recipe.data.max_tokens
                say(f"{part} {b.direction.name}: {long} pairs over {limit} tokens left out")
        save_encoded(folder / "data" / part, encoded, vocabulary.fingerprint)
    for part in ("valid", "test"):
        with (folder / "data" / f"{part}.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row.texts, ensure_ascii=False) + "\n" for row in rows[part])
    _write_json(folder / "data" / "account.json", account.to_dict())
    vocabulary.save(folder / "vocabulary.model")
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    tasks = {
        b.direction.name: asdict(
            TaskInfo(len(b), levels[b.direction.name], family_of(b.direction.name))
        )
        for b in texts["train"]
    }
    _write_json(folder / "tasks.json", tasks)  # last: its presence says that all is there
    return open_prepared(folder)


def open_prepared(folder: Path) -> Prepared:
    """Reopen a prepared run folder; RunError says what is missing or does not fit."""
    recipe = run_recipe(folder)
    vocabulary = Vocabulary.load(folder / "vocabulary.model")
    parts = {
        part: load_encoded(folder / "data" / part, vocabulary.fingerprint)
        for part in ("train", "valid")
    }
    return Prepared(folder, recipe, vocabulary, task_infos(folder), **parts)


def run_recipe(folder: Path) -> Recipe:
    """The recipe a run was made from; reading it runs no code."""
    file = folder / "recipe.yaml"
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        return parse_recipe(tree, str(file), run_code=False)
    except OSError as e:
        raise RunError(f"{folder}: not a run folder: no readable recipe.yaml") from e
    except yaml.YAMLError as e:
        raise RunError(f"{file}: not YAML") from e


def task_infos(folder: Path) -> dict[str, TaskInfo]:
    """The tasks of a run, in the run's order."""
    try:
        tree = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
        return {name: TaskInfo(**info) for name, info in tree.items()}
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise RunError(f"{folder / 'tasks.json'}: not the task list of a run: {e}") from e


def test_rows(folder: Path, part: str = "test") -> list[Row]:
    """The test rows a run keeps; ``part`` "valid" is the validation rows, none in old runs."""
    file = folder / "data" / f"{part}.jsonl"
    if part == "valid" and not file.exists():
        return []
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:  # a text may hold U+2028
            return [Row(json.loads(t), f"{file}:{n}") for n, t in enumerate(lines, 1)]
    except (OSError, ValueError) as e:
        raise RunError(f"{file}: not the test set of a run: {e}") from e


def sources_of(sections: list[SourceSection]) -> list[Source]:
    """Recipe sections as readers' sources; ``shipped:`` names become files."""
    return [
        Source(
            format=s.format,
            path=resolve(s.path) if s.path else None,
            paths={k: resolve(v) for k, v in s.paths.items()} if s.paths else None,
            languages=tuple(s.languages) if s.languages else None,
            msgid_language=s.msgid,
        )
        for s in sections
    ]


def _read(recipe: Recipe, account: Account) -> tuple[dict[str, list[Bitext]], dict[str, list[Row]]]:
    """Clean training and validation text per direction, and the rows they came from."""
    data = recipe.data
    rows = {
        part: read_corpus(sources_of(getattr(data, part)), account)
        for part in ("train", "valid", "test")
    }
    held_out = held_out_keys(rows["valid"]) | held_out_keys(rows["test"])
    directions = directions_of(rows["train"], data.directions, data.languages)
    train = [bitext(rows["train"], d, data.cleaning.rules(), account, held_out) for d in directions]
    if most := data.max_pairs:
        limit = lambda b: most.get(b.direction.name) if isinstance(most, dict) else most
        train = [Bitext(b.direction, b.sources[: limit(b)], b.targets[: limit(b)]) for b in train]
    if empty := [b.direction.name for b in train if not len(b)]:
        raise RecipeError(f"data.train: no clean pair left for {', '.join(empty)}\n{account}")
    rules = CleaningRules()
    valid = [bitext(rows["valid"], d, rules, account, part="valid") for d in directions]
    return {"train": train, "valid": [b for b in valid if len(b)]}, rows


def _vocabulary(recipe: Recipe, rows: list[Row]) -> Vocabulary:
    """The vocabulary of the model to start from, a file, or one trained on the corpus."""
    section = recipe.vocabulary
    if recipe.training.start_from:
        return find_model(resolve(recipe.training.start_from)).vocabulary
    if section.path:
        return Vocabulary.load(resolve(section.path))
    # Of the languages named, not of the directions: a bilingual variant shares the vocabulary.
    wanted = recipe.data.languages and {*recipe.data.languages, ENGLISH}
    texts: dict[str, dict[str, None]] = {}
    for row in rows:
        for code, text in row.texts.items():
            if not wanted or code in wanted:
                texts.setdefault(code, {})[normalise(text)] = None
    return train_vocabulary(
        {code: list(texts[code]) for code in sorted(texts)},
        size=section.size,
        temperature=section.temperature,
        sample=section.sample,
        byte_fallback=section.byte_fallback,
        character_coverage=section.character_coverage,
        symbols=section.symbols,
        seed=recipe.seed,
    )


def _same_recipe(recipe: Recipe, folder: Path) -> None:
    """Refuse to continue a run under another recipe; name and device may differ."""
    old, new = (r.model_dump(mode="json") for r in (run_recipe(folder), recipe))
    differ = [
        f"{section}.{key}"
        for section in old
        if isinstance(old[section], dict)
        for key in old[section]
        if old[section][key] != new[section][key]
    ]
    if old["seed"] != new["seed"]:
        differ.append("seed")
    if differ:
        raise RunError(
            f"{folder} holds a run of another recipe; these keys differ: {', '.join(differ)}. "
            "Choose another folder with --run, or restore the recipe to resume"
        )


def _write_json(file: Path, tree: Any) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(tree, indent=1, ensure_ascii=False), encoding="utf-8")
    new.replace(file)
