"""Sample translations: the same few sentences from every run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gradvac.experiment.report.markup import element, missing, paragraph, series
from gradvac.experiment.view.run_view import RunView, TaskView

SAMPLES = 5  # per direction: one screen, chosen here
# Written from right to left; a sentence may begin with a Latin name, so dir="auto" would be wrong.
_RIGHT_TO_LEFT = {"ar", "ckb", "dv", "fa", "he", "ks", "ku", "ps", "sd", "ug", "ur", "yi"}


def samples_section(views: Sequence[RunView], tasks: Sequence[TaskView]) -> str:
    """Source, reference and every run's translation, for each direction."""
    blocks = []
    for task in tasks:
        pairs = list(
            dict.fromkeys(p for view in views for p in view.translations.get(task.name, {}))
        )
        if not pairs:
            continue
        samples = "".join(_sample(pairs[n], task, views) for n in spread(len(pairs), SAMPLES))
        summary = f"{escape(task.label)} {element('code', escape(task.name))}"
        inner = element("summary", summary) + samples
        blocks.append(element("details", inner, open=not blocks))
    if not blocks:
        if not any(view.kind.samples for view in views):
            return missing("No translations: no run here is one of translation.")
        return missing("No translations yet: gradvac evaluate writes them.")
    hint = f"{SAMPLES} of each direction's test sentences, evenly spaced, not chosen by eye."
    return paragraph(hint, class_="lead") + "".join(blocks)


def spread(total: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the numbers below ``total``, evenly spaced."""
    wanted = min(total, wanted)
    return [(2 * n + 1) * total // (2 * wanted) for n in range(wanted)]


def _sample(pair: tuple[str, str], task: TaskView, views: Sequence[RunView]) -> str:
    source, reference = pair
    lines = [("source", source, task.source), ("reference", reference, task.target)]
    items = [element("dt", name) + _text(text, code) for name, text, code in lines]
    for n, view in enumerate(views):
        hypothesis = view.translations.get(task.name, {}).get(pair)
        if hypothesis is not None:
            text = _text(hypothesis, task.target)
        else:
            text = element("dd", "not translated", class_="missing")
        items.append(element("dt", series(view.name, n)) + text)
    return element("dl", "".join(items), class_="sample")


def _text(text: str, code: str) -> str:
    """A sentence marked with its language and the direction of its script."""
    rtl = code.partition("_")[0] in _RIGHT_TO_LEFT
    tag = code.replace("_", "-") or None
    return element("dd", escape(text), lang=tag, dir="rtl" if rtl else "ltr")
