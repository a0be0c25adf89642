"""Numbers computed from a Gram record: mean cosines, clusters of tasks, edits.

Tasks are plain names here; their order and their labels (language families, sides) are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.cluster.hierarchy import average, cophenet, leaves_list
from scipy.spatial.distance import squareform

from gradvac.geometry.kinds import summed
from gradvac.geometry.record import Frame, cosine
from gradvac.notebook import Agreement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Clustering",
    "ConflictCounts",
    "EditCounts",
    "Similarity",
    "alignment",
    "between",
    "cluster",
    "conflict_counts",
    "contrast",
    "edit_counts",
    "mean_similarity",
    "norm_similarity",
    "regrouped",
    "windows",
]


@dataclass(frozen=True)
class Similarity:
    """Mean cosine similarities of task gradients over the frames of a record.

    Attributes:
        tasks: K names.
        groups: names of the parameter groups.
        cosine: ``[groups, K, K]``, NaN for pairs that were never in one batch.
        whole_model: ``[K, K]``, cosines of the gradients of all groups as one vector.
        steps: the recorded steps.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.similarity import Similarity
        >>> cosine = np.array([[[1.0, 0.2], [0.2, 1.0]], [[1.0, 0.4], [0.4, 1.0]]])
        >>> found = Similarity(("fr", "hi"), ("encoder", "decoder"), cosine, cosine[0], (0,))
        >>> found.by_group().tolist()
        [0.2, 0.4]
    """

    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    cosine: np.ndarray
    whole_model: np.ndarray
    steps: tuple[int, ...]

    def plot(self) -> Figure:
        """Draw the cosines and the conflicts by group; ImportError without Matplotlib."""
        return self._agreement().figure()

    def _repr_html_(self) -> str:
        return self._agreement().html()

    def _agreement(self) -> Agreement:
        title = f"mean cosines of {len(self.tasks)} tasks in {len(self.steps)} steps"
        each, whole = torch.from_numpy(self.cosine), torch.from_numpy(self.whole_model)
        return Agreement(title, self.tasks, self.groups, each, whole)

    def mean(self) -> np.ndarray:
        """Mean over the groups, all with equal weight, ``[K, K]``."""
        return _mean(self.cosine, 0)

    def by_group(self) -> np.ndarray:
        """Mean over the pairs of different tasks, ``[groups]``."""
        return _mean(self.cosine[:, ~np.eye(len(self.tasks), dtype=bool)], 1)

    def ordered(self, tasks: Sequence[str]) -> Similarity:
        """The same with the tasks in another order; names that were not recorded are skipped."""
        kept = [t for t in tasks if t in self.tasks]
        rows = [self.tasks.index(t) for t in kept]
        cut = np.ix_(rows, rows)
        return Similarity(
            tuple(kept),
            self.groups,
            self.cosine[:, cut[0], cut[1]],
            self.whole_model[cut],
            self.steps,
        )


def norm_similarity(gram: np.ndarray) -> np.ndarray:
    """``2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2)``, ``[..., K, K]`` in [0, 1]; NaN where both are zero.

    Yu et al. 2020 call it gradient magnitude similarity. The CATS poster (Li and Gong 2021,
    figure 2) shows a "norm similarity" without defining it; we assume it is this one.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.similarity import norm_similarity
        >>> float(norm_similarity(np.diag([1.0, 9.0]))[0, 1])  # 2 * 1 * 3 / (1 + 9)
        0.6
    """
    norm, mean = _norms(gram)
    with np.errstate(invalid="ignore", divide="ignore"):
        return norm[..., :, None] * norm[..., None, :] / mean


def alignment(gram: np.ndarray) -> np.ndarray:
    """``2 g_i . g_j / (|g_i|^2 + |g_j|^2)``, ``[..., K, K]``: cosine times norm similarity.

    In [-1, 1], and 1 only for equal gradients. The poster's figure 3 shows an "alignment" that it
    does not define; this is our interpretation, which combines both panels of its figure 2.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.similarity import alignment
        >>> float(alignment(np.array([[1.0, 3.0], [3.0, 9.0]]))[0, 1])  # parallel, lengths 1 and 3
        0.6
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return gram / _norms(gram)[1]


def _norms(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Norms [..., K], and the mean of the squares of two of them [..., K, K]."""
    square = np.einsum("...kk->...k", gram)
    return np.sqrt(square), (square[..., :, None] + square[..., None, :]) / 2


def mean_similarity(
    frames: Iterable[Frame], of: Callable[[np.ndarray], np.ndarray] = cosine
) -> Similarity | None:
    """Average the cosines of every pair of tasks over the frames in which both had a gradient.

    Tasks and groups may differ from frame to frame; they are matched by name, in the order of
    their first appearance. Returns None without frames. ``of`` is what to average instead of the
    cosine: a function of Gram matrices ``[..., K, K]``, such as `norm_similarity`.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.record import Frame
        >>> from gradvac.geometry.similarity import mean_similarity
        >>> def frame(step, c):
        ...     gram = np.array([[[1.0, c], [c, 1.0]]])
        ...     return Frame(step, ("fr", "hi"), ("all",), gram, np.ones((1, 2)), (0,), (0,), (0,))
        >>> float(mean_similarity([frame(0, 0.25), frame(1, 0.75)]).whole_model[0, 1])
        0.5
    """
    tasks: dict[str, int] = {}
    groups: dict[str, int] = {}
    steps: list[int] = []
    total = count = np.zeros((1, 0, 0))  # the last group is the whole model
    for frame in frames:
        steps.append(frame.step)
        for name in frame.tasks:
            tasks.setdefault(name, len(tasks))
        for name in frame.groups:
            groups.setdefault(name, len(groups))
        total, count = (_grown(a, len(groups) + 1, len(tasks)) for a in (total, count))
        here = of(np.concatenate([frame.gram, frame.gram.sum(0, keepdims=True)]))
        rows = [tasks[name] for name in frame.tasks]
        at = np.ix_([*(groups[name] for name in frame.groups), -1], rows, rows)
        total[at] += np.nan_to_num(here, nan=0.0)
        count[at] += ~np.isnan(here)
    if not steps:
        return None
    with np.errstate(invalid="ignore"):
        mean = total / count
    return Similarity(tuple(tasks), tuple(groups), mean[:-1], mean[-1], tuple(steps))


def regrouped(frames: Iterable[Frame], group_of: Mapping[str, str]) -> Iterator[Frame]:
    """Sum the groups of frames to coarser ones; weights cannot be added up and are NaN.

    ``group_of`` maps the recorded groups to coarser ones, see `gradvac.geometry.kinds.coarser`.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.record import Frame
        >>> from gradvac.geometry.similarity import regrouped
        >>> gram, none = np.ones((2, 1, 1)), (0, 0)
        >>> frame = Frame(0, ("fr",), ("encoder", "decoder"), gram, gram[:, 0], none, none, none)
        >>> (coarse,) = regrouped([frame], {"encoder": "whole_model", "decoder": "whole_model"})
        >>> coarse.groups, coarse.gram.tolist()
        (('whole_model',), [[[2.0]]])
    """
    for frame in frames:
        groups, gram = summed(frame.gram, frame.groups, group_of)
        weights = np.full(gram.shape[:2], np.nan)
        none = (0,) * len(groups)
        yield replace(
            frame,
            groups=groups,
            gram=gram,
            weights=weights,
            edits=none,
            pcgrad_edits=none,
            comparisons=none,
            targets=None,
        )


def windows(
    frames: Iterable[Frame],
    steps: Sequence[int],
    count: int,
    of: Callable[[np.ndarray], np.ndarray] = cosine,
) -> list[Similarity]:
    """Return the `mean_similarity` of up to ``count`` consecutive parts with equally many frames.

    ``steps`` are those of all ``frames`` (`GramRecord.steps`), which are read once and not kept.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.record import Frame
        >>> from gradvac.geometry.similarity import windows
        >>> frames = [
        ...     Frame(n, ("fr",), ("all",), np.ones((1, 1, 1)), np.ones((1, 1)), (0,), (0,), (0,))
        ...     for n in range(4)
        ... ]
        >>> [similarity.steps for similarity in windows(frames, range(4), 2)]
        [(0, 1), (2, 3)]
    """
    count = min(count, len(steps))
    number = {step: n * count // len(steps) for n, step in enumerate(steps)}
    parts = groupby((f for f in frames if f.step in number), lambda f: number[f.step])
    found = (mean_similarity(part, of) for _, part in parts)
    return [similarity for similarity in found if similarity is not None]


def _grown(a: np.ndarray, groups: int, tasks: int) -> np.ndarray:
    """Add space for new groups before the last and for new tasks after the others."""
    more = tasks - a.shape[1]
    body = np.pad(a[:-1], ((0, groups - len(a)), (0, more), (0, more)))
    return np.concatenate([body, np.pad(a[-1:], ((0, 0), (0, more), (0, more)))])


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the values that are not NaN; NaN if there are none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis) / known.sum(axis)


def between(
    gram: np.ndarray, tasks: Sequence[str], groups: Sequence[Sequence[str]]
) -> np.ndarray | None:
    """Inner products ``[G, G]`` of the summed gradients of G groups of tasks.

    ``gram`` [K, K] is that of ``tasks``. Returns None if a group has no task among them.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.similarity import between
        >>> between(np.eye(3), ["fr", "es", "hi"], [["fr", "es"], ["hi"]]).tolist()
        [[2.0, 0.0], [0.0, 1.0]]
    """
    members = np.array([[float(t in group) for t in tasks] for group in groups])
    return members @ gram @ members.T if members.any(1).all() else None


def contrast(cosine: np.ndarray, labels: Sequence[str]) -> tuple[float, float]:
    """Mean cosine of pairs of tasks with the same label, and with different labels.

    ``cosine`` [K, K]; the diagonal is in neither mean; NaN if there is no such pair.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.similarity import contrast
        >>> cosine = np.array([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
        >>> contrast(cosine, ["Romance", "Romance", "Indic"])
        (0.8, 0.2)
    """
    same = np.array([[a == b for b in labels] for a in labels], dtype=bool)
    other = ~np.eye(len(labels), dtype=bool)
    return float(_mean(cosine[same & other], 0)), float(_mean(cosine[~same], 0))


@dataclass(frozen=True)
class Clustering:
    """Agglomerative clustering of K tasks.

    Attributes:
        linkage: ``[K - 1, 4]`` as SciPy defines it; heights are 1 - cosine.
        order: positions of the tasks, neighbours next to each other.
        cophenetic: correlation of the tree's distances with the true ones; 1 is a perfect tree,
            NaN when all distances are equal.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.similarity import cluster
        >>> found = cluster(np.array([[1.0, 0.8, 0.1], [0.8, 1.0, 0.1], [0.1, 0.1, 1.0]]))
        >>> found.linkage[:, 2].round(2).tolist(), round(found.cophenetic, 6)  # heights, 1 - cosine
        ([0.2, 0.9], 1.0)
    """

    linkage: np.ndarray
    order: tuple[int, ...]
    cophenetic: float


def cluster(cosine: np.ndarray) -> Clustering:
    """Average-linkage clustering with distance 1 - cosine, ``cosine`` [K, K], K >= 2.

    A pair that was never in one batch counts as orthogonal; a cosine above 1 is due to rounding.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.similarity import cluster
        >>> found = cluster(np.array([[1.0, 0.1, 0.8], [0.1, 1.0, 0.1], [0.8, 0.1, 1.0]]))
        >>> found.order  # tasks 0 and 2 are neighbours
        (1, 0, 2)
    """
    distance = 1 - np.minimum(np.nan_to_num(cosine, nan=0.0), 1.0)
    condensed = squareform((distance + distance.T) / 2, checks=False)
    linkage = average(condensed)
    order = tuple(int(n) for n in leaves_list(linkage))
    return Clustering(linkage, order, cophenetic(condensed, linkage))


def cophenetic(distance: np.ndarray, linkage: np.ndarray) -> float:
    """Correlation of a tree's distances with the original ones, [K (K - 1) / 2].

    NaN if either are all equal.
    """
    tree = cophenet(linkage)
    varies = np.ptp(tree) * np.ptp(distance) > 0
    return float(np.corrcoef(tree, distance)[0, 1]) if varies else float("nan")


@dataclass(frozen=True)
class EditCounts:
    """Ordered pairs of tasks compared and edited, per frame and parameter group.

    ``edits``, ``pcgrad`` and ``comparisons`` are ``[frames, groups]``; ``pcgrad`` is what PCGrad
    would have edited on the same gradients, NaN where that was not counted.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.record import Frame
        >>> from gradvac.geometry.similarity import edit_counts
        >>> gram = np.ones((1, 1, 1))
        >>> frame = Frame(0, ("fr",), ("all",), gram, gram[:, 0], (3,), (1,), (6,))
        >>> counts = edit_counts([frame])
        >>> float((counts.edits / counts.comparisons).sum())  # share of the pairs that were edited
        0.5
    """

    steps: tuple[int, ...]
    groups: tuple[str, ...]
    edits: np.ndarray
    pcgrad: np.ndarray
    comparisons: np.ndarray


def edit_counts(frames: Iterable[Frame]) -> EditCounts | None:
    """Collect the counts of a record, 0 for a group that a frame lacks; None without frames.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.record import Frame
        >>> from gradvac.geometry.similarity import edit_counts
        >>> gram = np.ones((1, 1, 1))
        >>> frame = Frame(0, ("fr",), ("all",), gram, gram[:, 0], (3,), (1,), (6,))
        >>> edit_counts([frame]).edits.tolist()
        [[3.0]]
    """
    seen = [(f.step, f.groups, f.edits, f.pcgrad_edits, f.comparisons) for f in frames]
    if not seen:
        return None
    groups = {name: n for n, name in enumerate(dict.fromkeys(g for s in seen for g in s[1]))}
    counts = np.zeros((3, len(seen), len(groups)))
    for row, (_, names, *values) in enumerate(seen):
        columns = [groups[name] for name in names]
        for kind, value in enumerate(values):
            counts[kind, row, columns] = value if len(value) == len(names) else np.nan
    return EditCounts(tuple(s[0] for s in seen), tuple(groups), counts[0], counts[1], counts[2])


@dataclass(frozen=True)
class ConflictCounts:
    """Unordered pairs of tasks, and those with a negative cosine, ``[frames, groups]`` each.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.similarity import ConflictCounts
        >>> counts = ConflictCounts((0, 1), ("all",), np.array([[1], [3]]), np.array([[6], [6]]))
        >>> float(counts.conflicts.sum() / counts.pairs.sum())  # share of the pairs
        0.3333333333333333
    """

    steps: tuple[int, ...]
    groups: tuple[str, ...]
    conflicts: np.ndarray
    pairs: np.ndarray


def conflict_counts(frames: Iterable[Frame]) -> ConflictCounts | None:
    """Count conflicts in each frame, 0 pairs for a group that a frame lacks; None without frames.

    A pair counts if both tasks have a gradient.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.record import Frame
        >>> from gradvac.geometry.similarity import conflict_counts
        >>> gram = np.array([[[1.0, -3.0], [-3.0, 25.0]]])
        >>> frame = Frame(0, ("fr", "hi"), ("all",), gram, np.ones((1, 2)), (0,), (0,), (0,))
        >>> found = conflict_counts([frame])
        >>> found.conflicts.tolist(), found.pairs.tolist()
        ([[1]], [[1]])
    """
    seen: list[tuple[int, dict[str, tuple[int, int]]]] = []
    for frame in frames:
        upper = np.triu_indices(len(frame.tasks), 1)
        each = frame.cosine()[:, *upper]
        counts = zip((each < 0).sum(1), (~np.isnan(each)).sum(1), strict=True)
        named = zip(frame.groups, counts, strict=True)
        seen.append((frame.step, {g: (int(a), int(b)) for g, (a, b) in named}))
    if not seen:
        return None
    groups = tuple(dict.fromkeys(g for _, each in seen for g in each))
    table = np.array([[each.get(g, (0, 0)) for g in groups] for _, each in seen])
    return ConflictCounts(tuple(s for s, _ in seen), groups, table[..., 0], table[..., 1])
