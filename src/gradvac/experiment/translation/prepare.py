"""Prepare a self-contained run folder from a recipe: vocabulary, encoded text, tasks.

recipe.yaml  vocabulary.model  tasks.json
data/train/*  data/valid/*  data/valid.jsonl  data/test.jsonl  data/account.json
data/test-NAME.jsonl, for every named test set but the first

Training text is streamed from the sources to disk, cleaned first, then encoded: memory does not
grow with its size.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from gradvac.data.spool import Spool
from gradvac.data.store import Writer, open_encoded
from gradvac.errors import RecipeError
from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.run.files import VOCABULARY
from gradvac.experiment.run.folder import TaskInfo, run_recipe, task_infos
from gradvac.experiment.run.sums import check_sums, write_sums
from gradvac.experiment.training.job import Prepared
from gradvac.experiment.translation.model_folder import find_model
from gradvac.experiment.translation.recipe import Recipe, Sources
from gradvac.experiment.translation.zero_shot import zero_shot_directions
from gradvac.reading import read_lines
from gradvac.text.blocks import Block
from gradvac.text.cleaning import Account, normalise
from gradvac.text.languages import (
    ENGLISH,
    HIGH_SHARE,
    MEDIUM_SHARE,
    Direction,
    directions,
    resource_levels,
    same_language,
)
from gradvac.text.readers import Row, read_blocks
from gradvac.text.spellings import Spellings
from gradvac.translation.bitext import Bitext, as_given, held_out_keys, read_corpus
from gradvac.translation.scoring import family_of
from gradvac.translation.translate import MAX_SOURCE
from gradvac.translation.vocabulary import TextSample, Vocabulary, train_vocabulary
from gradvac.writing import replacing, write_bytes, write_json

_SUMMED = ("train/index.json", "valid/index.json", "valid.jsonl")
_CHUNK = 10_000  # pairs encoded at a time: enough to keep all cores busy


def prepare_text(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> dict[str, TaskInfo]:
    """Write ``data`` and the vocabulary of a run; returns the data of each direction."""
    with replacing(folder / "data") as new:
        new.mkdir()
        vocabulary, pairs = _prepare_text(recipe, new, say)
    write_bytes(folder / VOCABULARY, vocabulary.model)
    levels = resource_levels(pairs, recipe.data.levels)
    if recipe.data.levels is None and len(set(levels.values())) > 1:
        high, medium = (max(pairs.values()) * share for share in (HIGH_SHARE, MEDIUM_SHARE))
        say(
            f"resource levels are relative: high is {math.ceil(high):,} training pairs and more, "
            f"low under {math.ceil(medium):,}, half and an eighth of the largest direction; "
            "data.levels sets other limits"
        )
    return {t: TaskInfo(n, levels[t], family_of(t)) for t, n in pairs.items()}


def _prepare_text(
    recipe: Recipe, folder: Path, say: Callable[[str], None]
) -> tuple[Vocabulary, dict[str, int]]:
    """Clean and encode everything into ``folder``; returns the training pairs of each direction."""
    account = Account(recipe.data.on_problem)
    parts = {"valid": recipe.data.valid, **_tests(recipe)}
    held = {p: read_corpus([s.source() for s in own], account) for p, own in parts.items()}
    vocabulary, samples = _given_vocabulary(recipe), dict[str, TextSample]()
    if vocabulary and vocabulary.normalization != recipe.vocabulary.normalization:
        say(
            f"vocabulary.normalization: {vocabulary.normalization}, that of the given vocabulary; "
            f"{recipe.vocabulary.normalization} is of new ones"
        )
    spellings = Spellings(_named(recipe), say)
    spool = _read_training(
        recipe, account, held, folder / "spool", samples, spellings, not vocabulary
    )
    held = {part: [spellings.row(row) for row in rows] for part, rows in held.items()}
    directions = _directions(recipe, spool)
    most = recipe.data.max_pairs
    idle = set(most) - {d.name for d in directions} if isinstance(most, dict) else set[str]()
    if idle:  # not an error: another variant may use them
        say(f"data.max_pairs: {', '.join(sorted(idle))}: not trained here, so it limits nothing")
    tested = [row for part, rows in held.items() if part != "valid" for row in rows]
    zero_shot_directions(recipe.search.zero_shot, [d.name for d in directions], tested)
    valid = [_valid(held["valid"], d, account).first(recipe.data.max_valid) for d in directions]
    pairs = _pairs(recipe, spool, directions, account)
    say(str(account))
    vocabulary = vocabulary or _train_vocabulary(recipe, samples)
    for code in sorted({code for d in directions for code in (d.source, d.target)}):
        vocabulary.tag_id(code)  # fails for a language without a tag
    training = (
        Bitext(d, sources, targets)
        for d in directions
        for sources, targets in spool.texts(d, _CHUNK, pairs[d.name])
    )
    for part, texts in {"train": training, "valid": (text for text in valid if len(text))}.items():
        limit = recipe.data.max_tokens
        limit = max(limit, MAX_SOURCE) if part == "valid" else limit
        _encode(texts, folder / part, vocabulary, limit, say)
    shutil.rmtree(folder / "spool")
    for part, rows in held.items():
        with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row.texts, ensure_ascii=False) + "\n" for row in rows)
    write_json(folder / "account.json", account.to_dict())
    write_sums(folder, [*_SUMMED, *(f"{part}.jsonl" for part in _tests(recipe))])
    return vocabulary, pairs


def _tests(recipe: Recipe) -> dict[str, Sources]:
    """The sources of each test set, by the part of the data that holds it."""
    tests = recipe.data.tests
    return {part_of(name, recipe.test_sets): own for name, own in tests.items()} or {"test": []}


def part_of(test: str, sets: Sequence[str]) -> str:
    """The name of the file, without its ending, that holds a test set of a run."""
    return "test" if test in ("", *sets[:1]) else f"test-{test}"


def _named(recipe: Recipe) -> list[str]:
    """The language codes in a recipe, and English, which others are paired with."""
    data = recipe.data
    named = [*(data.directions if isinstance(data.directions, list) else [])]
    named += recipe.search.zero_shot if isinstance(recipe.search.zero_shot, list) else []
    parsed = [Direction.parse(name) for name in named]
    codes = [*(data.languages or ()), *(c for d in parsed for c in (d.source, d.target))]
    return codes if any(same_language(c, ENGLISH) for c in codes) else [*codes, ENGLISH]


def _valid(rows: list[Row], direction: Direction, account: Account) -> Bitext:
    """The complete validation pairs of a direction; ``account`` counts rows without one."""
    pairs, without = as_given(rows, direction)
    name = f"valid {direction.name}"
    account.keep(name, len(pairs))
    for where in without:
        account.drop(name, "not in both languages", where)
    return pairs


def open_prepared(folder: Path) -> Prepared[Recipe, Vocabulary]:
    """Open a prepared run folder; RunError says what is missing, damaged or wrong."""
    recipe = run_recipe(folder, Recipe)
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    with suppress(FileNotFoundError):  # runs of earlier versions have no sums
        check_sums(folder / "data", [*_SUMMED, "test.jsonl"])
    parts = {
        part: open_encoded(folder / "data" / part, vocabulary.fingerprint)
        for part in ("train", "valid")
    }
    return Prepared(folder, recipe, vocabulary, task_infos(folder), **parts)


def test_rows(folder: Path, part: str = "test") -> list[Row]:
    """The test rows of a run, or another `part_of` it; "valid": empty in old runs."""
    file = folder / "data" / f"{part}.jsonl"
    if part == "valid" and not file.exists():
        return []
    with suppress(FileNotFoundError):
        check_sums(folder / "data", [file.name])
    texts = read_lines(file, dict[str, str])
    return [Row(text, f"{file}:{n}") for n, text in enumerate(texts, 1)]


def _read_training(
    recipe: Recipe,
    account: Account,
    held: dict[str, list[Row]],
    folder: Path,
    samples: dict[str, TextSample],
    spellings: Spellings,
    sampling: bool,
) -> Spool:
    """Clean training text on disk; if ``sampling``, ``samples`` gets text for a vocabulary."""
    data = recipe.data
    held_out = frozenset[str]().union(*map(held_out_keys, held.values()))
    rules = data.cleaning.rules()
    spool = Spool(folder, rules, account, data.directions, data.languages, held_out)
    # All languages of the recipe: bilingual variants share the vocabulary.
    wanted = data.languages and {*data.languages, ENGLISH}

    def sample(code: str, text: str) -> None:
        if text and (not wanted or code in wanted):
            if code not in samples:
                samples[code] = TextSample(recipe.vocabulary.sample)
            samples[code].add(text)

    def rows() -> Iterator[Row | Block]:
        for section in data.train:
            for read in read_blocks(section.source(), account):
                block = isinstance(read, Block)
                item = spellings.block(read) if block else spellings.row(read)
                if sampling and isinstance(item, Block):
                    for row in item.cells:
                        for code, text in zip(item.languages, row, strict=True):
                            sample(code, text)
                elif sampling and isinstance(item, Row):
                    for code, text in item.texts.items():
                        sample(code, normalise(text))
                yield item

    spool.fill(rows())
    return spool


def _directions(recipe: Recipe, spool: Spool) -> list[Direction]:
    """The directions of a run, in order; RecipeError if a language has no text."""
    data, found = recipe.data, spool.found
    wanted = directions(data.directions, data.languages or sorted(found))
    asked = {code for d in wanted for code in (d.source, d.target)}
    missing = sorted((asked if wanted else {ENGLISH}) - found)
    if missing or not wanted:
        have = ", ".join(sorted(found)) or "none"
        raise RecipeError(
            f"data: no text in {', '.join(missing) or 'two languages'}; found: {have}"
        )
    return wanted


def _pairs(
    recipe: Recipe, spool: Spool, directions: list[Direction], account: Account
) -> dict[str, int]:
    """Training pairs of each direction, up to the maximum of the recipe."""
    most = recipe.data.max_pairs
    limit = lambda name: most.get(name) if isinstance(most, dict) else most
    found = {d.name: spool.pairs(d) for d in directions}
    if empty := [name for name, n in found.items() if not n]:
        raise RecipeError(f"data.train: no clean pair left for {', '.join(empty)}\n{account}")
    return {name: min(n, limit(name) or n) for name, n in found.items()}


def _encode(
    texts: Iterable[Bitext],
    folder: Path,
    vocabulary: Vocabulary,
    limit: int,
    say: Callable[[str], None],
) -> None:
    """Encode and write texts as a stream, without pairs with a side over ``limit`` tokens."""
    long = Counter[str]()
    with Writer(folder, vocabulary.fingerprint, len(vocabulary)) as out:
        for text in texts:
            sources = vocabulary.encode_sources(text.sources, text.direction.target)
            both = zip(sources, vocabulary.encode_targets(text.targets), strict=True)
            short = [(s, t) for s, t in both if max(len(s), len(t)) <= limit]
            out.add(text.direction.name, short)
            long[text.direction.name] += len(text) - len(short)
    for name, count in long.items():
        if count:
            say(f"{folder.name} {name}: {count} pairs over {limit} tokens left out")


def _given_vocabulary(recipe: Recipe) -> Vocabulary | None:
    """The vocabulary of the initial model or of a file; None if it must be trained."""
    if recipe.training.start_from:
        return find_model(resolve(recipe.training.start_from)).vocabulary
    path = recipe.vocabulary.path
    return Vocabulary.load(resolve(path)) if path else None


def _train_vocabulary(recipe: Recipe, samples: dict[str, TextSample]) -> Vocabulary:
    section = recipe.vocabulary
    codes = sorted(samples)
    return train_vocabulary(
        {code: samples[code].texts for code in codes},
        sizes={code: samples[code].size for code in codes},
        size=section.size,
        temperature=section.temperature,
        sample=section.sample,
        byte_fallback=section.byte_fallback,
        character_coverage=section.character_coverage,
        symbols=section.symbols,
        normalization=section.normalization,
        seed=recipe.seed,
    )
