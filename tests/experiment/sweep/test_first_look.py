"""The table of cosines that the demo prints first."""

import io

import numpy as np
import pytest
from rich.console import Console

from gradvac.experiment.sweep.first_look import _in_words, _shade, cosine_table
from gradvac.geometry.record import Frame

GRAM = np.array(  # |fr| = 2
    [[[4.0, -0.2, 0.6, 0.8], [-0.2, 1, 0.5, 0], [0.6, 0.5, 1, 0], [0.8, 0, 0, 1]]]
)


def frame() -> Frame:
    tasks = ("fr", "hi", "ne", "es")
    return Frame(0, tasks, ("all",), GRAM, np.ones((1, 4)), (0,), (0,), (0,))


def test_it_has_every_pair_with_its_sign():
    console = Console(file=io.StringIO(), width=60)
    console.print(cosine_table(frame(), "Cosines"))
    rows = [line for line in console.file.getvalue().splitlines() if line[1:3] in ("fr", "hi")]
    cells = [[cell.strip() for cell in row.strip("│┃").split("│")] for row in rows[-2:]]
    assert cells == [["fr", "", "-0.10", "0.30", "0.40"], ["hi", "-0.10", "", "0.50", "0.00"]]


@pytest.mark.parametrize(("value", "shade"), [(-0.1, 0), (0.5, 150), (0.2, 75)])
def test_the_highest_is_the_greenest(value, shade):
    assert _shade(value, -0.1, 0.5) == f"white on rgb(0,{shade},0)"


def test_the_sentence_tells_known_from_new():
    said = _in_words(frame(), ["hi", "ne"])
    assert said.startswith("closest: ne and hi, 0.50; on average 0.40 among the languages it knows")
    assert said.endswith("0.50 among the new ones, 0.05 between the two")
