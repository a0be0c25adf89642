"""Tag a test set with the model of a run, score it, and make the table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from gradvac.data.batches import in_order
from gradvac.errors import RunError
from gradvac.experiment.run.checkpoint import load_tensors
from gradvac.experiment.run.files import TAGS
from gradvac.experiment.run.folder import fill, parameters_of_run
from gradvac.experiment.run.keep_scores import keep_scores
from gradvac.experiment.tagging.prepare import SHAPE, open_tagging, test_sentences
from gradvac.experiment.training.build import device_of
from gradvac.tables import Table
from gradvac.tagging.encoder import cells_at_once, empty_tagger, labels_of, predict
from gradvac.tagging.encoding import counted_by_sentence, encode_tagged, token_batch
from gradvac.tagging.readers import Tagged
from gradvac.tagging.scores import TaggingScore, score
from gradvac.text.languages import family_order

ACROSS = 12  # maximum number of languages as columns of a table
NUMBERS = ("f1", "accuracy", "macro_f1", "weighted_f1")


@dataclass(frozen=True)
class TaggingScores:
    """Scores by language; ``task`` is "ner" or "pos"."""

    task: str
    languages: Mapping[str, TaggingScore]

    def average(self, name: str) -> float:
        """The mean over languages of one of `NUMBERS`."""
        return statistics.fmean(getattr(s, name) for s in self.languages.values())


def evaluate_tagging(
    folder: Path, checkpoint: str = "best", say: Callable[[str], None] = print
) -> TaggingScores:
    """Score a run on its test set; writes ``scores.json`` and ``tags.jsonl``.

    RunError without a test set or checkpoint.
    """
    prepared = open_tagging(folder)
    tests = test_sentences(folder)
    if not tests:
        raise RunError(f"{folder}: the recipe names no test files to score on")
    device = device_of(prepared.recipe.device)
    model = empty_tagger(folder / SHAPE)
    file = parameters_of_run(folder, checkpoint)
    fill(model, load_tensors(file), file)
    model.to(device).eval()
    tokenizer, labels = prepared.vocabulary, labels_of(folder / SHAPE)
    limit = prepared.recipe.data.max_tokens
    found: dict[str, TaggingScore] = {}
    lines = []
    for task, sentences in tests.items():
        gold = [tags for _, tags in sentences]
        words = [w for w, _ in sentences]
        guessed = tag_words(model, tokenizer, labels, words, max_tokens=limit, device=device)
        found[task] = score(gold, guessed, labels)
        lines += [
            {"task": task, "words": w, "tags": t, "predicted": p}
            for w, t, p in zip(words, gold, guessed, strict=True)
        ]
    scores = TaggingScores(prepared.recipe.data.task, found)
    tree: dict[str, Any] = {
        "checkpoint": checkpoint,
        "task": scores.task,
        "labels": labels,
        "directions": {
            task: {**asdict(own), "level": prepared.levels[task]} for task, own in found.items()
        },
        "averages": {"all": {name: scores.average(name) for name in NUMBERS}},
        "signatures": {"F1": "seqeval 1.2.2 micro, default mode; mean over languages"},
    }
    keep_scores(folder, TAGS, lines, tree, say)
    return scores


def tag_words(
    model: Any,
    tokenizer: Any,
    labels: Sequence[str],
    sentences: Sequence[Sequence[str]],
    *,
    max_tokens: int,
    device: torch.device,
) -> list[list[str]]:
    """A label for each word of each sentence, in windows of ``max_tokens`` subwords."""
    tagged = [Tagged(tuple(words), (labels[0],) * len(words), "") for words in sentences]
    side, owner = encode_tagged(tagged, tokenizer, labels, max_tokens)
    task = counted_by_sentence(side)
    pieces: list[list[int]] = [[] for _ in owner]
    for drawn in in_order({"": task}, ("",), 0, cells_at_once(device)):
        batch = token_batch(drawn, len(labels), tokenizer.pad_token_id or 0).to(device)
        for place, row in zip(batch.sentence.tolist(), predict(model, batch), strict=True):
            pieces[place] = row
    guessed: list[list[str]] = [[] for _ in sentences]
    for n, piece in zip(owner.tolist(), pieces, strict=True):
        guessed[n] += [labels[i] for i in piece]
    return guessed


def score_table(title: str, scores: TaggingScores) -> RichTable:
    """One row per number, one column per language, the average last, as in Wang et al. 2021.

    To fit 80 columns, more than `ACROSS` languages have one row each instead.
    """
    codes = family_order(scores.languages)
    names = NUMBERS if scores.task == "pos" else NUMBERS[:2]
    cells = {code: [getattr(scores.languages[code], n) for n in names] for code in codes}
    cells["avg"] = [scores.average(name) for name in names]
    heads, rows = [n.replace("_f1", "") for n in names], [*cells.values()]
    if len(codes) <= ACROSS:
        heads, cells = [*cells], dict(zip(heads, zip(*rows, strict=True), strict=True))
    shown = [
        [name, *(f"{value:.1f}"[:4].removesuffix(".") for value in row)]
        for name, row in cells.items()
    ]
    table = Table(["", *heads], shown, title).terminal(
        whole=["", *heads], box=SIMPLE_HEAD, padding=0, show_edge=False
    )
    for column in table.columns[1:]:
        column.min_width = 4
    return table
