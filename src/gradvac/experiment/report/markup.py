"""Pieces of HTML. Every function escapes its arguments, except those named ``markup``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from itertools import count

from matplotlib.figure import Figure

from gradvac.geometry.plots import INK, MUTED, PALETTE, RULE, svg
from gradvac.tables import decimal

# Colours of pictures that follow the page's light or dark scheme.
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)"} | {
    c: f"var(--series-{n})" for n, c in enumerate(PALETTE)
}


def element(tag: str, markup: str, **attributes: object) -> str:
    """``<tag attributes>markup</tag>``; ``class_`` is class, None omits an attribute."""
    pairs = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    text = "".join(
        f" {k}" if v is True else f' {k}="{escape(str(v))}"'
        for k, v in pairs.items()
        if v is not False
    )
    return f"<{tag}{text}>{markup}</{tag}>"


def paragraph(text: str, **attributes: object) -> str:
    """A paragraph of plain text."""
    return element("p", escape(text), **attributes)


def missing(text: str) -> str:
    """A line that says what is missing."""
    return paragraph(text, class_="missing")


def series(name: str, number: int | None) -> str:
    """A run's name with its colour beside it; number None is the starting model."""
    again = number is not None and number >= len(PALETTE)  # hollow, as in the pictures
    kind = "swatch second" if again else "swatch"
    swatch = element("i", "", class_=kind, style=f"--c: var(--{swatch_of(number)})")
    return swatch + escape(name).replace("/", "/<wbr>")  # a long path may be broken there


def swatch_of(number: int | None) -> str:
    """The CSS variable that holds the colour of a series."""
    return "muted" if number is None else f"series-{number % len(PALETTE)}"


def table(head: Sequence[str], body: Sequence[str], caption: str) -> str:
    """A table from rows of markup; it scrolls inside its own box, the caption does not."""
    markup = element("thead", "".join(element("tr", row) for row in head))
    markup += element("tbody", "\n".join(element("tr", row) for row in body))
    label = caption.partition(".")[0]
    box = {"class_": "scroll", "tabindex": 0, "role": "region", "aria_label": label}
    return paragraph(caption, class_="caption") + element("div", element("table", markup), **box)


def number(value: float | None, digits: int = 1, half: float | None = None) -> str:
    """A table cell with a number and half the width of its interval, or a dash."""
    text = "\N{EN DASH}" if value is None else decimal(value, digits).replace("-", "\N{MINUS SIGN}")
    if half is not None:
        spread = f"\N{NO-BREAK SPACE}\N{PLUS-MINUS SIGN}{half:.{digits}f}"
        text += element("span", spread, class_="spread")
    return element("td", text, class_="number")


class Pictures:
    """Turns figures into inline SVG with ids unique in the page."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def __call__(
        self, figure: Figure, caption: str, *, wide: bool = False, **attributes: object
    ) -> str:
        """A ``<figure>`` with its caption; ``wide`` ones scroll on small screens."""
        markup = self._inline(svg(figure), caption)
        box = element("div", markup, class_="scroll", tabindex=0) if wide else markup
        text = element("figcaption", escape(caption))
        return element("figure", box + text, class_="wide" if wide else None, **attributes)

    def _inline(self, text: str, label: str) -> str:
        text = text[text.index("<svg") :]
        head, body = text.split(">", 1)
        box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
        assert box is not None
        prefix = f"p{next(self._numbers)}-"
        body = re.sub(r'\bid="', f'id="{prefix}', body)
        body = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}', body)
        body = body.replace("url(#", f"url(#{prefix}")
        for colour, variable in _VARIABLES.items():
            body = body.replace(colour, variable)
        width, height = box.groups()
        return (
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" '
            f'style="--width: {float(width) * 4 / 3:.0f}px">{body}'
        )
