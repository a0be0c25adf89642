"""The Gram matrices of a training run, on disk: appendable, crash-safe, readable while it grows.

A record is a folder with two files. ``gram.bin`` holds frames one after another, each
``[groups, K, K]``, ``[groups, K]`` weights and, of a method that has them, ``[groups, K, K]``
targets, as little-endian float64. ``frames.jsonl`` has one line per frame, written after the frame:
step, offset, task and group names, edits. A frame without a line does not count; a half-written
frame or line is overwritten by the next append.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradvac.errors import RunError
from gradvac.notebook import Agreement
from gradvac.reading import LONGEST_LINE, regular
from gradvac.writing import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Frame", "GramRecord", "cosine"]


@dataclass(frozen=True)
class Frame:
    """The measurements of one training step.

    ``gram`` [groups, K, K] and ``weights`` [groups, K] float64. ``edits`` and ``pcgrad_edits``:
    ordered pairs per group that the method edited, and that PCGrad would have edited on the same
    gradients; ``comparisons``: ordered pairs per group that were compared. ``targets``
    [groups, K, K]: the target cosine of each ordered pair before this step (GradVac's phi hat), if
    the method has targets.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.record import Frame
        >>> gram = np.array([[[1.0, -3.0], [-3.0, 25.0]]])
        >>> frame = Frame(0, ("fr", "hi"), ("all",), gram, np.ones((1, 2)), (0,), (0,), (0,))
        >>> frame.cosine().tolist()
        [[[1.0, -0.6], [-0.6, 1.0]]]
    """

    step: int
    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    gram: np.ndarray
    weights: np.ndarray
    edits: tuple[int, ...]
    pcgrad_edits: tuple[int, ...]
    comparisons: tuple[int, ...]
    targets: np.ndarray | None = None

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays in the data file, in order."""
        return (self.gram, self.weights) + (() if self.targets is None else (self.targets,))

    def cosine(self) -> np.ndarray:
        """Cosine similarity of task gradients [groups, K, K]; NaN where a gradient is zero."""
        return cosine(self.gram)

    def plot(self) -> Figure:
        """Draw the cosines and the conflicts by group; ImportError without Matplotlib."""
        return self._agreement().figure()

    def _repr_html_(self) -> str:
        return self._agreement().html()

    def _agreement(self) -> Agreement:
        each, whole = (torch.from_numpy(cosine(g)) for g in (self.gram, self.gram.sum(0)))
        return Agreement(f"step {self.step}", self.tasks, self.groups, each, whole)


_LISTS = ("tasks", "groups", "edits", "pcgrad_edits", "comparisons")


class GramRecord:
    """The Gram record of a run: `append` during training, iterate to read, `truncate` on resume.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from gradvac.geometry.record import Frame, GramRecord
        >>> record = GramRecord(Path(tempfile.mkdtemp()))
        >>> gram, none = np.eye(2)[None], (0,)
        >>> for step in range(3):
        ...     frame = Frame(step, ("fr", "hi"), ("all",), gram, gram[:, 0], none, none, none)
        ...     record.append(frame)
        >>> record.truncate(1)
        >>> record.steps(), [frame.gram.shape for frame in record]
        ([0, 1], [(1, 2, 2), (1, 2, 2)])
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index, self._data = folder / "frames.jsonl", folder / "gram.bin"
        self.files = (self._data, self._index)

    def append(self, frame: Frame) -> None:
        """Add a frame: its numbers first, then its line.

        Raises:
            RunError: if the arrays of the frame do not fit its names.
        """
        k, g = len(frame.tasks), len(frame.groups)
        shapes = [array.shape for array in frame.arrays]
        if shapes != [(g, k, k), (g, k), (g, k, k)][: len(shapes)]:
            found = ", ".join(map(str, shapes))
            raise RunError(
                f"{self.folder}: step {frame.step}: gram, weights, targets {found} do not fit "
                f"{g} groups and {k} tasks"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        end = self._end()
        with self._data.open("r+b" if self._data.exists() else "wb") as data:
            data.truncate(end)  # after a crash, old bytes must not complete a half-written frame
            data.seek(end)
            for array in frame.arrays:
                data.write(np.ascontiguousarray(array, dtype="<f8").tobytes())
        line: dict[str, Any] = {"step": frame.step, "offset": end}
        line |= {name: list(getattr(frame, name)) for name in _LISTS}
        if frame.targets is not None:
            line["targets"] = True
        with self._index.open("a", encoding="utf-8") as index:
            index.write(json.dumps(line) + "\n")
        self._known = (end + _bytes(line), self._index.stat().st_size)

    _known: tuple[int, int] | None = None

    def _end(self) -> int:
        """Bytes of ``gram.bin`` that belong to complete frames."""
        if self._known and self._index.exists() and self._index.stat().st_size == self._known[1]:
            return self._known[0]
        lines = list(self._lines())
        self._rewrite(lines)
        return lines[-1]["offset"] + _bytes(lines[-1]) if lines else 0

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Complete lines of the index whose frame is complete on disk."""
        if not self._index.exists():
            return
        size = regular(self._data).stat().st_size if self._data.exists() else 0
        with regular(self._index).open(encoding="utf-8", errors="replace", newline="\n") as index:
            for number, text in enumerate(iter(lambda: index.readline(LONGEST_LINE), ""), 1):
                if len(text) == LONGEST_LINE:
                    raise RunError(f"{self._index}:{number}: not a line of a Gram record")
                if not text.endswith("\n"):
                    return
                try:
                    line = _parsed(text)
                except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
                    raise RunError(f"{self._index}:{number}: not a line of a Gram record") from e
                if line["offset"] + _bytes(line) > size:
                    return
                yield line

    def _rewrite(self, lines: Sequence[dict[str, Any]]) -> None:
        """Make ``lines`` the only lines of the index."""
        if not self._index.exists():
            return
        text = "".join(json.dumps(line) + "\n" for line in lines)
        if self._index.read_text(encoding="utf-8", errors="replace") != text:
            write_text(self._index, text)

    def __iter__(self) -> Iterator[Frame]:
        return self._frames(self._lines())

    def in_order(self) -> Iterator[Frame]:
        """Iterate over the frames by step, if the steps were not measured in order."""
        return self._frames(sorted(self._lines(), key=lambda line: line["step"]))

    def _frames(self, lines: Iterable[dict[str, Any]]) -> Iterator[Frame]:
        for line in lines:
            k, g, count = len(line["tasks"]), len(line["groups"]), _bytes(line) // 8
            numbers = np.fromfile(self._data, dtype="<f8", count=count, offset=line["offset"])
            if numbers.size < count:  # a resumed run shortened the file meanwhile
                return
            gram, weights, targets = np.split(numbers, [g * k * k, g * k * (k + 1)])
            yield Frame(
                step=line["step"],
                gram=gram.reshape(g, k, k),
                weights=weights.reshape(g, k),
                targets=targets.reshape(g, k, k) if targets.size else None,
                **{name: tuple(line[name]) for name in _LISTS},
            )

    def steps(self) -> list[int]:
        """Return the steps of the frames, without reading their numbers."""
        return [line["step"] for line in self._lines()]

    def truncate(self, step: int) -> None:
        """Remove every frame after ``step``; a resumed run writes them again."""
        self._rewrite([line for line in self._lines() if line["step"] <= step])
        self._known = None


def cosine(gram: np.ndarray) -> np.ndarray:
    """Return cosines from inner products, ``[..., K, K]``; NaN where a norm is zero.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.record import cosine
        >>> cosine(np.array([[1.0, -3.0], [-3.0, 25.0]])).tolist()
        [[1.0, -0.6], [-0.6, 1.0]]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.sqrt(np.einsum("...kk->...k", gram))
        return gram / (norm[..., :, None] * norm[..., None, :])


def _parsed(text: str) -> dict[str, Any]:
    """Parse a line of the index; raises various errors if it is not one."""
    line = json.loads(text)
    numbers = {"step": int(line["step"]), "offset": int(line["offset"])}
    lists = {name: line[name] for name in _LISTS}
    for name, values in lists.items():
        kind = str if name in ("tasks", "groups") else int
        if not isinstance(values, list) or not all(isinstance(v, kind) for v in values):
            raise TypeError(f"{name} is not a list of {kind.__name__}")
    if numbers["offset"] < 0:
        raise ValueError("the offset is negative")
    targets = {"targets": True} if line.get("targets") else {}
    return numbers | lists | targets


def _bytes(line: dict[str, Any]) -> int:
    k, g = len(line["tasks"]), len(line["groups"])
    return 8 * g * k * (2 * k + 1 if "targets" in line else k + 1)
