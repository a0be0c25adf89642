"""Translate a test set in every direction with one call, and score it.

Directions of ``search.zero_shot`` were never trained; they are translated too, marked, and averaged
separately. If there are any, the language of every translation is identified.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table as RichTable

from gradvac.engine.ranks.group import Ranks
from gradvac.errors import RecipeError, RunError
from gradvac.experiment.run.contents import Accounts
from gradvac.experiment.run.files import TRANSLATIONS, scored_folder
from gradvac.experiment.run.files import VOCABULARY as VOCABULARY_FILE
from gradvac.experiment.run.folder import run_recipe, task_infos
from gradvac.experiment.run.keep_scores import keep_scores
from gradvac.experiment.training.build import device_of
from gradvac.experiment.training.together import gathered
from gradvac.experiment.translation.model_folder import FoundModel, find_model
from gradvac.experiment.translation.prepare import part_of, test_rows
from gradvac.experiment.translation.recipe import Recipe
from gradvac.experiment.translation.zero_shot import has_text, zero_shot_directions
from gradvac.reading import read_json
from gradvac.tables import Table
from gradvac.text.account import EXAMPLES
from gradvac.text.cleaning import normalise
from gradvac.text.identify import Identifier, OffTarget
from gradvac.text.languages import Direction
from gradvac.text.readers import Row
from gradvac.translation.bitext import Bitext, as_given
from gradvac.translation.scoring import SIDES, DirectionScores, Remark, score_directions
from gradvac.translation.tokenizers import FILE, VOCABULARY, check_tokenizer
from gradvac.translation.translate import MAX_SOURCE, Translator


def evaluate_run(
    folder: Path,
    *,
    checkpoint: str = "best",
    beam: int | None = None,
    length_penalty: float | None = None,
    sentences: int | None = None,
    bleu_tokenize: str | None = None,
    zero_shot: Sequence[str] | None = None,
    test: str | None = None,
    say: Callable[[str], None] = print,
    ranks: Ranks | None = None,
) -> DirectionScores:
    """Score a run on one of its own test sets; writes ``scores.json`` and ``translations.jsonl``.

    With ``ranks``, each translates some of the batches, all compute the scores and rank 0 writes.
    ``sentences`` is the maximum number of sentences per direction, from the first on. None means
    the value of the recipe, for ``test`` its first set. Scores of more sentences are kept: those of
    fewer are written beside them. Raises RunError if the run has no such test set or no checkpoint.
    """
    recipe = run_recipe(folder, Recipe)
    infos = task_infos(folder)
    sets = recipe.test_sets
    test = check_test_set(folder, sets, test)
    rows = test_rows(folder, part_of(test, sets))
    if not rows:
        raise RunError(f"{folder}: the recipe names no data.test to score on")
    asked = recipe.search.zero_shot if zero_shot is None else zero_shot
    asked = "all" if asked == ["all"] else asked
    if zero_shot is None and asked != "all" and len(sets) > 1:  # each set has its own languages
        asked = [name for name in asked if has_text(rows, Direction.parse(name))]
    zero_shot = zero_shot_directions(asked, infos, rows)
    return evaluate_model(
        find_model(folder, checkpoint),
        *test_bitexts(rows, [*infos, *zero_shot]),
        unread=unread_rows(folder, recipe, test),
        levels={name: info.level for name, info in infos.items()},
        beam=beam or recipe.search.beam,
        length_penalty=recipe.search.length_penalty if length_penalty is None else length_penalty,
        batch_tokens=recipe.search.batch_tokens,
        device=device_of(recipe.device),
        sentences=sentences or recipe.search.sentences,
        out=scored_folder(folder, test, sets),
        name=checkpoint,
        say=say,
        zero_shot=zero_shot,
        bleu_tokenize=_placed(bleu_tokenize or recipe.search.bleu_tokenize, folder),
        ranks=ranks,
        test=test,
    )


def check_test_set(run: Path, sets: Sequence[str], test: str | None) -> str:
    """The name of a test set, None for the first; RunError if the run has no set of that name."""
    if test is None or test in sets:
        return test if test is not None else next(iter(sets), "")
    there = ", ".join(filter(None, sets))
    raise RunError(
        f"{run}: --test {test}: "
        + (f"its test sets are {there}" if there else "its recipe names none of its test sets")
    )


def _placed(tokenize: str | None, run: Path) -> str | None:
    """The tokenizer of BLEU; that of the model's own vocabulary is in the folder of the run."""
    return f"{FILE}{run / VOCABULARY_FILE}" if tokenize == VOCABULARY else tokenize


def tokenizer_option(name: str | None) -> str | None:
    """The value of ``--bleu-tokenize``, its path made absolute; RecipeError for an unknown one."""
    if name is None or name == VOCABULARY:
        return name
    try:
        check_tokenizer(name)
    except ValueError as e:
        raise RecipeError(f"--bleu-tokenize: {e}") from e
    path = name.removeprefix(FILE)
    return name if path == name else f"{FILE}{Path(path).resolve()}"


def score_table(title: str, scores: DirectionScores) -> RichTable:
    """Scores of every direction and average, for the terminal."""
    words, off = ("direction", "level", "family"), bool(scores.off_target)
    heads = [*words, "sentences", "BLEU", "chrF++", *["off %", "refs %"] * off]
    rows = []
    for row in table_rows(scores):
        cells = [_of(row["kind"], row["count"]), f"{row['bleu']:.1f}", f"{row['chrf']:.1f}"]
        found = scores.off_target.get(row["name"])
        rates = [f"{found.rate:.1f}", f"{found.of_references:.1f}"] if found else ["", ""] * off
        rows.append([row["name"], row["level"], row["family"], *cells, *rates])
    for a in scores.averages():
        if a.kind == "family" and a.side != "all":
            cells = [_of(a.kind, a.directions), f"{a.bleu:.1f}", f"{a.chrf:.1f}"]
            rows.append([a.side, "", a.subset, *cells, *["", ""] * off])
    meaning = ["off: translations identified as another language; refs: references so"]
    caption = "\n".join([*meaning * off, *scores.notes]) or None
    table = Table(heads, rows, title, words)
    return table.terminal(caption=caption, caption_justify="left")


def _of(kind: str, count: int) -> str:
    """The number of sentences of a score, or of directions of a mean.

    The unit is abbreviated: with off-target rates, 80 columns have no room for the whole word.
    """
    return f"{count:,}" if kind == "direction" else f"{count} dir."


def table_rows(scores: DirectionScores) -> list[dict[str, Any]]:
    """Rows of directions and averages; ``all`` is left out if English is on one side only."""
    rows = scores.rows()
    sides = {row["name"] for row in rows if row["kind"] == "side"} - {"zero-shot"}
    return [row for row in rows if row["name"] != "all" or len(sides) > 2]


def test_bitexts(
    rows: Sequence[Row], tasks: Sequence[str]
) -> tuple[list[Bitext], dict[str, list[str]]]:
    """The complete test pairs, unchanged, of each direction that has any.

    Also the positions of the rows that a direction has no pair of.
    """
    found = {task: as_given(rows, Direction.parse(task)) for task in tasks}
    pairs = [text for text, _ in found.values() if len(text)]
    return pairs, {task: without for task, (_, without) in found.items() if without}


def unread_rows(folder: Path, recipe: Recipe, test: str) -> list[Remark]:
    """Rows of the files of a test set that could not be read when the run was prepared."""
    file = folder / "data" / "account.json"
    if not file.exists():  # runs of the first versions have none
        return []
    corpora = read_json(file, Accounts)["corpora"]
    return [
        Remark(name, reason, found["count"], False, tuple(found["first"]))
        for name in dict.fromkeys(s.source().name for s in recipe.data.tests.get(test, []))
        if name in corpora
        for reason, found in corpora[name]["dropped"].items()
    ]


def evaluate_model(
    found: FoundModel,
    tests: Sequence[Bitext],
    without: Mapping[str, Sequence[str]],
    *,
    levels: dict[str, str],
    beam: int,
    length_penalty: float,
    batch_tokens: int,
    device: torch.device,
    sentences: int | None,
    out: Path,
    name: str,
    say: Callable[[str], None],
    zero_shot: Sequence[str] = (),
    bleu_tokenize: str | None = None,
    ranks: Ranks | None = None,
    unread: Sequence[Remark] = (),
    test: str = "",
) -> DirectionScores:
    """Translate and score ``tests``; all directions share batches.

    ``without`` and ``unread`` are the rows of `test_bitexts` and `unread_rows` that have no score.
    ``bleu_tokenize`` None is the default of each target language. ``ranks`` as in `evaluate_run`:
    the batches are the same as in one process. ``test`` is the name of the test set.
    """
    tests = [Bitext(b.direction, b.sources[:sentences], b.targets[:sentences]) for b in tests]
    translator = Translator(
        found.load(device),
        found.vocabulary,
        beam=beam,
        length_penalty=length_penalty,
        batch_tokens=batch_tokens,
        max_source=MAX_SOURCE,
        every=ranks.size if ranks else 1,
        first=ranks.rank if ranks else 0,
    )
    sources = [s for b in tests for s in b.sources]
    targets = [b.direction.target for b in tests for _ in b.sources]
    say(f"translating {len(sources):,} sentences in {len(tests)} directions, beam {beam}")
    own = dict(enumerate(translator.translate(sources, targets)))
    texts = gathered(ranks, {n: text for n, text in own.items() if text})
    hypotheses = (texts.get(n, "") for n in own)
    translated = {b.direction.name: [next(hypotheses) for _ in b.sources] for b in tests}
    scores = score_directions(
        translated,
        {b.direction.name: b.targets for b in tests},
        levels=levels,
        tokenize=bleu_tokenize,
        zero_shot=frozenset(zero_shot),
    )
    remarks = [*unread, *_remarks(tests, without, translator)]
    scores = replace(scores, remarks=tuple(remarks))
    if zero_shot:
        scores = replace(scores, off_target=_identify(tests, translated, say))
    if ranks and ranks.rank:
        return scores
    lines = [
        {"direction": b.direction.name, "source": s, "reference": r, "hypothesis": h}
        for b in tests
        for s, r, h in zip(b.sources, b.targets, translated[b.direction.name], strict=True)
    ]
    tree = {
        **({"test": test} if test else {}),
        "checkpoint": name,
        "beam": beam,
        "length_penalty": length_penalty,
        "bleu_tokenize": bleu_tokenize,
        "first_sentences": sentences,
        **scores.to_dict(),
        "averages": _averages(scores),
    }
    keep_scores(out, TRANSLATIONS, lines, tree, say)
    return scores


def _remarks(
    tests: Sequence[Bitext], without: Mapping[str, Sequence[str]], translator: Translator
) -> Iterator[Remark]:
    """What was left out of the scores of each direction, and known problems of the scores."""
    for task, places in without.items():
        first = tuple(places[:EXAMPLES])
        yield Remark(task, "not in both languages", len(places), False, first)
    owners = [b.direction.name for b in tests for _ in b.sources]
    for task, count in Counter(owners[n] for n in translator.cut).items():
        yield Remark(task, f"sources cut after {translator.max_source:,} tokens", count, True)
    vocabulary = translator.vocabulary
    for b in tests:
        written = map(vocabulary.decode, vocabulary.encode_targets(b.targets))
        lost = [normalise(r) != normalise(w) for r, w in zip(b.targets, written, strict=True)]
        if any(lost):
            what = f"references that the vocabulary cannot write ({vocabulary.normalization})"
            yield Remark(b.direction.name, what, sum(lost), True)
        odd = sum(not unicodedata.is_normalized("NFC", r) for r in b.targets)
        if odd:
            yield Remark(b.direction.name, "references scored in Unicode NFC", odd, True)


def _identify(
    tests: Sequence[Bitext], translated: dict[str, list[str]], say: Callable[[str], None]
) -> dict[str, OffTarget]:
    """Off-target rates by direction; empty, not an error, if the extra is not installed."""
    languages = {code for b in tests for code in (b.direction.source, b.direction.target)}
    try:
        identifier = Identifier(languages)
    except RunError as e:
        say(f"no off-target rates: {e}")
        return {}
    if identifier.unknown:
        say(f"no off-target rates for {', '.join(identifier.unknown)}: py3langid has none of them")
    found = {
        b.direction.name: identifier.off_target(
            translated[b.direction.name], b.targets, b.direction.target
        )
        for b in tests
    }
    return {name: rates for name, rates in found.items() if rates}


def _averages(scores: DirectionScores) -> dict[str, dict[str, float]]:
    """Averages by name: ``Any->En``, ``Any->En high``, ``high`` (both sides), a family, ``all``."""
    named = {}
    for a in scores.averages():
        where = "zero-shot" if a.side == "zero-shot" else SIDES.get(a.side, "")
        parts = [where, "" if a.kind == "all" else a.subset]
        named[" ".join(p for p in parts if p) or "all"] = {"bleu": a.bleu, "chrf": a.chrf}
    return named
