"""The result of a diagnosis, and the tables that ``print(gradvac.diagnose(...))`` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradvac.engine.report import plain
from gradvac.notebook import Agreement
from gradvac.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnosis", "Effect"]

MOST_TASKS = 12  # more columns do not fit on a line: then pairs of extreme cosines are listed
MOST_PAIRS = 10


@dataclass(frozen=True)
class Effect:
    """What a method would do in a step, compared with the plain sum of the task gradients.

    Attributes:
        weights: of the task gradients, ``[groups, K]``.
        cosine: of the update with the plain sum, all groups as one vector.
        norm_ratio: length of the update divided by that of the plain sum.
        alignment: cosine of the update with each task's gradient, ``[K]``.
        change: ``alignment`` minus that of the plain sum, ``[K]``.
        group_cosine: as ``cosine``, ``[groups]``.
        group_norm_ratio: as ``norm_ratio``, ``[groups]``.

    Example:
        >>> import torch
        >>> import gradvac
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> batch = torch.tensor([[1.0, 0.0], [-3.0, 4.0]])
        >>> found = gradvac.diagnose(model, batch, ["fr", "hi"], lambda model, x: model(x).mean())
        >>> [round(float(x), 2) for x in found.effects["joint"].alignment]  # of the sum (-2, 4)
        [-0.45, 0.98]
    """

    weights: Tensor
    cosine: float
    norm_ratio: float
    alignment: Tensor
    change: Tensor
    group_cosine: Tensor
    group_norm_ratio: Tensor


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Geometry of the task gradients of a model; ``print`` and notebooks show it as tables.

    Means are over the steps; a cosine with a zero gradient is NaN and left out of means.

    Attributes:
        tasks: K names.
        groups: names of the parameter groups.
        gram: inner products, ``[steps, groups, K, K]``, float64.
        losses: as the methods saw them, ``[steps, K]``.
        cosine: ``[groups, K, K]``.
        whole_model: cosines of the gradients of all groups as one vector, ``[K, K]``.
        norms: ``[groups, K]``.
        conflicts: pairs of tasks whose gradients point against each other, ``[groups]``.
        effects: by method, what it would do in the last step.
        refused: by method, why it cannot be used with these tasks.

    Example:
        >>> import torch
        >>> import gradvac
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> batch = torch.tensor([[1.0, 0.0], [-3.0, 4.0]])
        >>> found = gradvac.diagnose(model, batch, ["fr", "hi"], lambda model, x: model(x).mean())
        >>> found.tasks, tuple(found.cosine.shape)  # [groups, K, K]
        (('fr', 'hi'), (1, 2, 2))
    """

    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    gram: Tensor
    losses: Tensor
    cosine: Tensor
    whole_model: Tensor
    norms: Tensor
    conflicts: Tensor
    effects: dict[str, Effect]
    refused: dict[str, str]

    def __str__(self) -> str:
        return in_words(self)

    def __repr__(self) -> str:
        pairs = len(self.groups) * len(self.tasks) * (len(self.tasks) - 1) // 2
        return (
            f"Diagnosis(tasks {', '.join(self.tasks)}; {len(self.groups)} groups; "
            f"{float(self.conflicts.sum()):.4g} of {pairs} pairs conflict; methods "
            f"{', '.join(self.effects)}; print it for tables)"
        )

    def plot(self) -> Figure:
        """Draw the cosines of the whole model and the conflicts by parameter group.

        Raises:
            ImportError: without Matplotlib.
        """
        return self._agreement().figure()

    def _repr_html_(self) -> str:
        return self._agreement().html()

    def _agreement(self) -> Agreement:
        steps = f"{len(self.gram)} step" + "s" * (len(self.gram) > 1)
        title = f"{len(self.tasks)} tasks, {len(self.groups)} parameter groups, {steps}"
        return Agreement(title, self.tasks, self.groups, self.cosine, self.whole_model)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types; what is not finite is None."""
        tensors = ("gram", "losses", "cosine", "whole_model", "norms", "conflicts")
        effects = {
            name: {
                key: plain(torch.as_tensor(value, dtype=torch.float64))
                for key, value in vars(effect).items()
            }
            for name, effect in self.effects.items()
        }
        return {
            "tasks": list(self.tasks),
            "groups": list(self.groups),
            **{name: plain(getattr(self, name)) for name in tensors},
            "effects": effects,
            "refused": dict(self.refused),
        }


def in_words(d: Diagnosis) -> str:
    """Return the tables of a diagnosis, for a terminal."""
    few = len(d.tasks) <= MOST_TASKS
    steps = len(d.gram)
    parts = [
        f"{len(d.tasks)} tasks, {len(d.groups)} parameter groups, {steps} step"
        + ("s" if steps > 1 else ""),
        _title("Cosines of the task gradients, whole model", _cosines(d) if few else _extremes(d)),
        _title("By parameter group", _groups(d, few)),
        _title("What each method would do in the last step", _methods(d, few)),
    ]
    parts += [f"{name} cannot be used: {why}" for name, why in d.refused.items()]
    return "\n\n".join(parts)


def _title(text: str, table: str) -> str:
    return f"{text}\n{table}"


def _number(value: float, digits: int = 2) -> str:
    return "-" if value != value else f"{value:.{digits}f}"


def _cosines(d: Diagnosis) -> str:
    rows = [
        [task, *(_number(value) for value in row)]
        for task, row in zip(d.tasks, d.whole_model.tolist(), strict=True)
    ]
    return Table(["", *d.tasks], rows).text()


def _extremes(d: Diagnosis) -> str:
    """The pairs of tasks whose gradients are furthest apart, and their cosines."""
    above = torch.triu(torch.ones_like(d.whole_model), 1).bool() & ~d.whole_model.isnan()
    pairs = sorted((float(d.whole_model[i, j]), i, j) for i, j in above.nonzero().tolist())
    rows = [[f"{d.tasks[i]}, {d.tasks[j]}", _number(value)] for value, i, j in pairs[:MOST_PAIRS]]
    return Table([f"lowest of {len(pairs)} pairs", "cosine"], rows).text()


def _groups(d: Diagnosis, few: bool) -> str:
    above = torch.triu(torch.ones_like(d.whole_model), 1).bool()
    pairs = int(above.sum())
    rows = []
    for k, group in enumerate(d.groups):
        conflicts = float(d.conflicts[k])
        count = f"{conflicts:.0f}" if len(d.gram) == 1 else f"{conflicts:.1f}"
        row = [group, f"{count} of {pairs}", _number(float(d.cosine[k][above].nanmean()))]
        norms = d.norms[k]
        shown = norms.tolist() if few else [float(norms.min()), float(norms.max())]
        rows.append(row + [f"{norm:.3g}" for norm in shown])
    columns = [f"norm {t}" for t in d.tasks] if few else ["least norm", "largest norm"]
    return Table(["group", "conflicts", "mean cosine", *columns], rows).text()


def _methods(d: Diagnosis, few: bool) -> str:
    """Cosine and length beside the plain sum, then by task the cosine gained, and the weight."""
    rows = []
    for name, effect in d.effects.items():
        row = [name, _number(effect.cosine, 3), _number(effect.norm_ratio, 3)]
        gained, weights = effect.change, effect.weights.mean(0)
        if few:
            row += [f"{value:+.3f}" for value in gained.tolist()]
            row += [_number(value) for value in weights.tolist()]
        else:
            row += [f"{float(x):+.3f}" for x in (gained.min(), gained.mean(), gained.max())]
            row += [_number(float(x)) for x in (weights.min(), weights.max())]
        rows.append(row)
    gained = [f"to {t}" for t in d.tasks] if few else ["to worst", "mean", "to best"]
    columns = [f"weight {t}" for t in d.tasks] if few else ["least weight", "largest"]
    table = Table(["method", "cosine", "length", *gained, *columns], rows).text()
    return table + (
        "\n  cosine and length: of the update, relative to the plain sum of gradients (joint)\n"
        "  to ...: how much closer the update comes to that task's gradient, in cosine\n"
        "  weight: mean over the parameter groups"
    )
