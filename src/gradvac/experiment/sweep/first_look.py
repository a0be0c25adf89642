"""What `gradvac demo` shows before anything trains: translations, and the languages' gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.training.build import device_of
from gradvac.experiment.translation.geometry import mean_losses
from gradvac.experiment.translation.geometry_text import aligned_text
from gradvac.experiment.translation.model_folder import find_model, trained_directions
from gradvac.experiment.translation.recipe import Recipe
from gradvac.geometry.measure import Losses, measure
from gradvac.geometry.record import Frame
from gradvac.text.cleaning import Account
from gradvac.text.languages import ENGLISH, Direction, family_order
from gradvac.text.readers import Row
from gradvac.translation.bitext import encode, read_corpus
from gradvac.translation.transformer import Transformer
from gradvac.translation.translate import Translator
from gradvac.translation.vocabulary import Vocabulary

SENTENCES = 24
"""Measured in every language: enough for two digits of a cosine, in seconds."""


def first_look(recipe: Recipe, console: Console) -> None:
    """Translate with the starting model, and measure the gradients of all languages into English.

    The text is the validation text of the recipe, in which every row has all languages.
    """
    start = resolve(str(recipe.training.start_from))
    found = find_model(start)
    rows = read_corpus([section.source() for section in recipe.data.valid], Account())
    trained = [d.source for d in trained_directions(start)]
    codes = family_order(recipe.data.languages or ())
    known, new = ([c for c in codes if (c in trained) == old] for old in (True, False))
    model = found.load(device_of(recipe.device))
    console.print(_translations(recipe, model, found.vocabulary, rows, [*known, *new]))
    console.print(
        f"it has never seen {', '.join(new)}; the demo trains it on all of these languages"
    )
    frame = _measured(recipe, model, found.vocabulary, rows, codes)
    console.print(cosine_table(frame, f"Cosines of the gradients, {SENTENCES} sentences each"))
    console.print(_in_words(frame, new))


def _translations(
    recipe: Recipe,
    model: Transformer,
    vocabulary: Vocabulary,
    rows: Sequence[Row],
    codes: Sequence[str],
) -> RichTable:
    """One sentence per language, not too long and not too short for a line."""
    fitting = [r for r in rows if 20 < len(r.texts[ENGLISH]) < 50]
    chosen = [(code, fitting[n]) for n, code in enumerate(codes)]
    search = recipe.search
    translator = Translator(model, vocabulary, search.beam, search.length_penalty)
    said = translator.translate([r.texts[c] for c, r in chosen], [ENGLISH] * len(chosen))
    table = RichTable("", "source", "the shipped model", "reference", title_justify="left")
    for (code, row), text in zip(chosen, said, strict=True):
        table.add_row(code, row.texts[code], text, row.texts[ENGLISH])
    return table


def _measured(
    recipe: Recipe,
    model: Transformer,
    vocabulary: Vocabulary,
    rows: Sequence[Row],
    codes: Sequence[str],
) -> Frame:
    """The gradients of the directions into English, on the same sentences, without dropout."""
    directions = [Direction(code, ENGLISH) for code in codes]
    texts, _ = aligned_text(rows, directions, "validation text", lambda text: None)
    losses: dict[str, Losses] = {}
    for text in texts:
        own, _ = encode(text.first(SENTENCES), vocabulary, recipe.data.max_tokens)
        losses[text.direction.source] = mean_losses(model, [(own, 1.0)], 0.0)
    return measure(model, losses, "whole_model")


def cosine_table(frame: Frame, title: str) -> RichTable:
    """The cosines of all pairs; the brighter the green, the higher, relative to the others."""
    cosine = frame.cosine()[0]
    apart = cosine[~np.eye(len(frame.tasks), dtype=bool)]
    low, high = float(np.nanmin(apart)), float(np.nanmax(apart))
    table = RichTable("", *frame.tasks, title=title, title_justify="left", padding=(0, 0))
    for task, row in zip(frame.tasks, cosine, strict=True):
        cells = [
            Text("" if other == task else f"{value:.2f}", _shade(value, low, high))
            for other, value in zip(frame.tasks, row, strict=True)
        ]
        table.add_row(task, *cells)
    return table


def _shade(value: float, low: float, high: float) -> str:
    """A background between black and green, for values in [low, high]; none above."""
    share = (value - low) / max(high - low, 1e-9)
    return f"white on rgb(0,{int(150 * share)},0)" if 0 <= share <= 1 else ""


def _in_words(frame: Frame, new: Sequence[str]) -> str:
    """The closest pair, and mean cosines among known languages, new ones, and between them."""
    cosine, codes = frame.cosine()[0], frame.tasks
    pairs = [(float(cosine[i, j]), codes[i], codes[j]) for i in range(len(codes)) for j in range(i)]
    mean = lambda count: np.mean([c for c, a, b in pairs if (a in new) + (b in new) == count])
    best, a, b = max(pairs)
    return (
        f"closest: {a} and {b}, {best:.2f}; on average {mean(0):.2f} among the languages it knows, "
        f"{mean(2):.2f} among the new ones, {mean(1):.2f} between the two"
    )
