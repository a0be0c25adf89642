"""Steps common to all engines: get weights, combine gradients and report."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradvac.engine.gradients.gram import full_precision
from gradvac.engine.gradients.on_demand import TaskGradients
from gradvac.engine.gradients.precision import at_least_float32
from gradvac.errors import GradientError
from gradvac.methods import Method, StepGeometry
from gradvac.notebook import Agreement
from gradvac.sending import to_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class StepReport:
    """What happened in one optimizer step; all tensors on the CPU. Printing it gives one line.

    A notebook shows its cosines and conflicts as tables.

    Attributes:
        geometry: step number, names, losses ``[K]`` and Gram matrices ``[groups, K, K]``.
        weights: weight of each task gradient, ``[groups, K]``, float64.
        diagnostics: the method's own report, tensors ``[groups, ...]``; empty for some methods.
        skipped: why nothing was updated, naming task, group and step; empty after an update. In a
            skipped step the Gram matrices are NaN and the weights 0.

    Example:
        >>> import torch
        >>> import gradvac
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> engine = gradvac.Engine(model, gradvac.PCGrad())
        >>> with engine.tasks(["fr", "hi"]):  # their gradients are the rows, (1, 0) and (-1, 1)
        ...     report = engine.backward(model(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])))
        >>> report.tasks, report.gram.tolist(), report.weights.tolist()
        (('fr', 'hi'), [[[1.0, -1.0], [-1.0, 2.0]]], [[2.0, 1.5]])
    """

    geometry: StepGeometry
    weights: Tensor
    diagnostics: dict[str, Tensor]
    skipped: str = field(default_factory=str)

    @property
    def step(self) -> int:
        """Number of the optimizer step."""
        return self.geometry.step

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the K tasks of the step."""
        return self.geometry.tasks

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the parameter groups."""
        return self.geometry.groups

    @property
    def losses(self) -> Tensor:
        """Losses of the tasks, ``[K]``, float64."""
        return self.geometry.losses

    @property
    def gram(self) -> Tensor:
        """Inner products of the task gradients, ``[groups, K, K]``, float64."""
        return self.geometry.gram

    @property
    def edits(self) -> Tensor:
        """How many ordered pairs the method edited, ``[groups]``; 0 if it does not edit."""
        none = torch.zeros(len(self.groups), dtype=torch.int64)
        return self.diagnostics.get("edits", none)

    @property
    def cosine(self) -> Tensor:
        """Cosines of the task gradients, ``[groups, K, K]``, float64; NaN for a zero gradient."""
        return cosines(self.gram)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types; values that are not finite are None."""
        tensors = {"losses": self.losses, "gram": self.gram, "cosine": self.cosine}
        tensors["weights"] = self.weights
        return {
            "step": self.step,
            "tasks": list(self.tasks),
            "groups": list(self.groups),
            **{name: plain(x) for name, x in tensors.items()},
            "diagnostics": {name: plain(x) for name, x in self.diagnostics.items()},
            "skipped": self.skipped,
        }

    def plot(self) -> "Figure":
        """Draw the cosines of the whole model and the conflicts by parameter group.

        Raises:
            ImportError: without Matplotlib.
        """
        return self._agreement().figure()

    def _repr_html_(self) -> str:
        return self._agreement().html()

    def _agreement(self) -> Agreement:
        whole = cosines(self.gram.sum(0))
        return Agreement(self._words(), self.tasks, self.groups, self.cosine, whole)

    def __repr__(self) -> str:
        return f"StepReport({self._words()})"

    def _words(self) -> str:
        what = f"step {self.step}: tasks {', '.join(self.tasks)}; {len(self.groups)} groups"
        if self.skipped:
            return f"{what}; skipped: {self.skipped}"
        k = len(self.tasks)
        found = self.cosine[:, ~torch.eye(k, dtype=torch.bool)]
        pairs = len(self.groups) * k * (k - 1) // 2
        if pairs:
            conflicts = int((found < 0).sum()) // 2
            what += f"; mean cosine {float(found.nanmean()):.2f}, {conflicts} of {pairs} below 0"
        edits = f", {int(self.edits.sum())} edits" if "edits" in self.diagnostics else ""
        return f"{what}{edits}"


def cosines(gram: Tensor) -> Tensor:
    """Cosines ``[..., K, K]`` from Gram matrices; NaN for a zero vector."""
    length = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    return gram / length[..., :, None] / length[..., None, :]


def plain(values: Tensor) -> Any:
    """Nested lists of the numbers of a tensor, None for those that are not finite."""
    if values.dim():
        return [plain(x) for x in values]
    number = values.item()
    return number if math.isfinite(number) else None


def decide(
    method: Method,
    gram: Tensor,
    losses: Tensor,
    tasks: tuple[str, ...],
    groups: tuple[str, ...],
    step: int,
    shares: Mapping[str, float] | None = None,
) -> StepReport:
    """Ask the method for the weights of the gradients.

    Args:
        method: the method; its state advances.
        gram: inner products of the gradients, ``[groups, K, K]``.
        losses: ``[K]``.
        tasks: K names, in the order of the rows.
        groups: names of the groups.
        step: number of the optimizer step.
        shares: by task, what its mean loss was multiplied by; see :class:`StepGeometry`.

    Raises:
        NotFiniteError: if a loss or gradient is not finite; the method is then unchanged.
        GradientError: if a share is missing, or the method's weights are not finite or too few.
    """
    given = None
    if shares is not None:
        check_shares(shares, tasks)
        given = torch.tensor([shares[task] for task in tasks], dtype=torch.float64)
    geometry = StepGeometry(gram, losses, tasks, groups, step, given)
    weights = method.weights(geometry)
    check_weights(weights, geometry, type(method).__name__)
    return StepReport(geometry, weights, method.report())


def decide_present(
    method: Method,
    gram: Tensor,
    losses: Tensor,
    tasks: tuple[str, ...],
    present: Sequence[int],
    groups: tuple[str, ...],
    step: int,
    shares: Mapping[str, float] | None = None,
) -> tuple[StepReport, Tensor]:
    """Ask the method for the weights of the tasks that have a loss; of all if none has.

    Args:
        method: see :func:`decide`.
        gram: inner products of the gradients of all tasks, ``[groups, K, K]``.
        losses: ``[K]``.
        tasks: K names.
        present: positions of those that have a loss.
        groups: names of the groups.
        step: number of the optimizer step.
        shares: by task.

    Returns:
        The report, with only these tasks, and the weights of all tasks, ``[groups, K]``.
    """
    here = list(present) or list(range(len(tasks)))
    if len(here) == len(tasks):
        report = decide(method, gram, losses, tasks, groups, step, shares)
        return report, report.weights
    names = tuple(tasks[n] for n in here)
    inner = gram[:, here][:, :, here]
    report = decide(method, inner, losses[here], names, groups, step, shares)
    weights = report.weights.new_zeros(len(groups), len(tasks))
    weights[:, here] = report.weights
    return report, weights


def check_shares(shares: Collection[str], tasks: Collection[str]) -> None:
    """Raise GradientError unless every task has a share."""
    if missing := sorted({*tasks} - {*shares}):
        raise GradientError(f"shares have no entry for {', '.join(missing)}")


def joined(reports: Sequence[StepReport], groups: tuple[str, ...]) -> StepReport:
    """Join the reports of some groups each, in the order of the model."""
    names = [name for report in reports for name in report.groups]
    if len(reports) == 1 and names == list(groups):
        return reports[0]
    order = torch.tensor([names.index(name) for name in groups])
    join = lambda parts: torch.cat(parts).index_select(0, order.to(parts[0].device))
    first = reports[0].geometry
    geometry = replace(first, gram=join([report.gram for report in reports]), groups=groups)
    diagnostics = {
        key: join([report.diagnostics[key] for report in reports]) for key in reports[0].diagnostics
    }
    return StepReport(geometry, join([r.weights for r in reports]), diagnostics)


def check_weights(weights: Tensor, geometry: StepGeometry, method: str) -> None:
    """Refuse weights of a wrong shape or that are not finite."""
    check_shape(weights, geometry, method)
    if not bool(weights.isfinite().all()):
        group, task = (~weights.isfinite()).nonzero()[0].tolist()
        raise GradientError(
            f"{method} gave task {geometry.tasks[task]!r} the weight {weights[group, task].item()} "
            f"in parameter group {geometry.groups[group]!r} at step {geometry.step}; nothing was "
            "updated"
        )


def check_shape(weights: Tensor, geometry: StepGeometry, method: str) -> None:
    """Refuse weights of a wrong shape."""
    expected = [len(geometry.groups), len(geometry.tasks)]
    if list(weights.shape) != expected:
        raise GradientError(
            f"{method} returned weights {list(weights.shape)} at step {geometry.step}; "
            f"{expected[0]} groups and {expected[1]} tasks need {expected}"
        )


def combine(weights: Tensor, gradients: TaskGradients) -> Tensor:
    """Return ``sum_k weights[k] * gradients[k]``, ``[P]``, of gradients ``[K, P]``."""
    with full_precision(weights.device.type):
        return weighted_sum(weights, gradients)


def weighted_sum(weights: Tensor, gradients: TaskGradients) -> Tensor:
    """Compute :func:`combine` inside :func:`full_precision`, which takes longer than a product."""
    if isinstance(gradients, Tensor):
        wide = gradients.to(at_least_float32(gradients.dtype))
        return to_device(weights.to(wide.dtype), wide.device) @ wide
    dtype = at_least_float32(gradients.dtype)
    combined = torch.empty(gradients.numel, dtype=dtype, device=gradients.device)
    done = 0
    for chunk in gradients.chunks():
        combined[done : done + chunk.shape[1]] = weighted_sum(weights, chunk)
        done += chunk.shape[1]
    return combined
