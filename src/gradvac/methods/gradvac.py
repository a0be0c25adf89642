"""Gradient Vaccine (Wang, Tsvetkov, Firat, Cao; ICLR 2021; arXiv 2010.05874).

Algorithm 1 edits vectors of P parameters, but every quantity it uses is an inner product of
them, so it can run on the K x K Gram matrix: the edited gradient of task i is a combination
``g'_i = sum_j c_ij g_j`` and only its coefficients are needed. Tasks i and parameter groups k are
independent of each other; only the position in the visiting order is sequential.

Equation (2) is used in an equivalent form that shows how long the result is. Split g'_i along g_j
into ``par`` (signed length) and ``perp`` (length of the rest). With target cosine t, the edit does
not change the rest and makes the part along g_j ``t / sqrt(1 - t^2) * perp`` long, so the norm of
g'_i grows by sqrt(1 - phi^2) / sqrt(1 - t^2). Targets used are therefore capped (``max_target``).

Everything is computed for unit vectors, g_i / ||g_i||: cosines do not depend on lengths, so a scale
of the losses causes no overflow or underflow, and there is no absolute constant, as long as float64
can hold the squares of the lengths (1e-145 to 1e154; shorter gradients give a warning, longer ones
an error).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gradvac.errors import GradientError
from gradvac.methods.base import Method, StepGeometry
from gradvac.methods.orders import visiting_order
from gradvac.methods.pairs import PairTable
from gradvac.sending import to_device


@dataclass(frozen=True)
class _Edits:
    """Result of the loop over the visiting order; r = number of tasks that may be edited."""

    coefficients: Tensor  # [groups, r, K] of unit gradients
    squared_norm: Tensor  # [groups, r] of the edited unit gradients; 0 if cancelled
    cosines: Tensor  # [groups, r, K - 1] before each edit, in visiting order
    compared: Tensor  # [groups, r, K - 1] bool, False where a vector was zero
    edited: Tensor  # [groups, r, K - 1] bool


def _edit(cosine: Tensor, rows: Tensor, present: Tensor, order: Tensor, target: Tensor) -> _Edits:
    """Run lines 10-18 of Algorithm 1 on unit gradients, for all groups and tasks at once.

    Args:
        cosine: ``[groups, K, K]``, 1 on the diagonal.
        rows: positions of the r tasks to edit.
        present: ``[groups, K]`` bool, False where a gradient is zero.
        order: ``[groups, r, K - 1]`` positions of the others.
        target: ``[groups, r, K - 1]`` target cosines in visiting order.
    """
    (n_groups, n_rows, n_visits), n_tasks, device = order.shape, present.shape[1], cosine.device
    # q = c^T M c is rounding below this share of (sum |c|)^2: the edits have cancelled the vector,
    # which then has no direction to compare.
    noise = math.sqrt(8 * n_tasks * torch.finfo(torch.float64).eps)
    # The loop costs what its operations cost to begin, on the host and on an accelerator: they are
    # few, and what one position needs lies together. All groups and rows are one dimension.
    along = cosine.index_select(1, rows).flatten(0, 1)  # inner products of g'_i with every unit g_j
    flat, there, zero = cosine.flatten(0, 1), torch.empty_like(along), along.new_zeros(())
    q = torch.ones_like(along[:, :1])
    least = torch.full_like(q, noise)  # noise * sum |c|
    usable = present[:, rows, None] & present[:, None, :].expand(-1, n_rows, -1).gather(2, order)
    cot = target / ((1 - target) * (1 + target)).sqrt()
    # No cosine is below a target of -1, but a rounded one may be; none at all is below -8.
    below = torch.add(target, ~usable | (target <= -1), alpha=-8.0)
    lines = order + n_tasks * torch.arange(n_groups, device=device)[:, None, None]
    visits = [x.flatten(0, 1).T.contiguous() for x in (order, lines, below, cot)]
    columns = [x.unsqueeze(2).unbind() for x in visits]
    history: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for position, line, low, steep in zip(*columns, strict=True):
        par, root = along.gather(1, position), q.sqrt()
        left, phi = root > least, par / root
        edited = (phi < low).logical_and_(left)
        perp = torch.addcmul(q, par, par, value=-1).clamp_min_(0).sqrt_()
        # Minus the coefficient, which is cot * perp - par, and not negative where phi < target.
        less = torch.addcmul(par, steep, perp, value=-1).where(edited, zero)
        torch.index_select(flat, 0, line.squeeze(1), out=there)
        along.addcmul_(less, there, value=-1)
        q = torch.addcmul(q, less, torch.add(less, par, alpha=-2))
        least = torch.add(least, less, alpha=-noise)
        history.append((phi, left, edited, less))
    q = torch.where(q.sqrt() > least, q, 0.0)
    coefficients = torch.zeros_like(along)
    coefficients = coefficients.view(n_groups, n_rows, n_tasks)
    coefficients[:, torch.arange(n_rows, device=device), rows] = 1.0
    empty = q[:0], usable[:0], usable[:0], q[:0]
    in_order = lambda each: torch.stack(each).view(n_visits, n_groups, n_rows).permute(1, 2, 0)
    phis, left, edited, less = map(in_order, zip(*(history or [empty]), strict=True))
    coefficients.scatter_(2, order, -less)  # every j is visited once
    return _Edits(coefficients, q.view(n_groups, n_rows), phis.clamp(-1, 1), usable & left, edited)


class GradVac(Method):
    """Gradient Vaccine: raise the cosine of two task gradients to the usual value of the pair.

    Args:
        beta: decay of the moving average of each pair's cosine, its target (eq. 3), in [0, 1].
            The default is the paper's best (Appendix F, Table 8).
        tasks: the set G of Algorithm 1: names of the tasks whose gradients may be edited, or
            "all". They are compared with every task of the batch, in G or not.
        target: "adaptive" for the moving average, or a constant cosine (the paper's "fixed
            objective" row), for which no state is kept.
        max_target: cap on the targets used; stored ones are not capped. An edit multiplies the
            norm by at most 1/sqrt(1 - max_target^2), 22.4 for the default, chosen here because
            the paper gives no bound and for parallel gradients the factor goes to infinity.
        rescale: give each edited gradient its norm from before the edits (Appendix E.1, not used
            in the paper's results). Cosines ignore length, so doing it once after all edits, as
            here, or after each of them gives the same result.
        compare_pcgrad: also count the edits PCGrad would have made to the same gradients in the
            same order; doubles the (small) cost.
        seed: seed of the visiting orders.

    Raises:
        GradientError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from gradvac import GradVac, StepGeometry
        >>> gram = torch.eye(2).double()[None]  # two orthogonal task gradients of length 1
        >>> step = StepGeometry(gram, torch.ones(2).double(), ("fr", "hi"), ("all",), step=0)
        >>> GradVac(target=0.5).weights(step)  # 1 + 0.5 / sqrt(1 - 0.5^2)
        tensor([[1.5774, 1.5774]], dtype=torch.float64)
    """

    on_device = True

    def __init__(
        self,
        beta: float = 1e-2,
        tasks: Literal["all"] | Iterable[str] = "all",
        target: Literal["adaptive"] | float = "adaptive",
        max_target: float = 0.999,
        rescale: bool = False,
        compare_pcgrad: bool = False,
        seed: int = 0,
    ) -> None:
        if not 0 <= beta <= 1:
            raise GradientError(f"beta is {beta!r}; it must lie in [0, 1]")
        if not 0 <= max_target < 1:
            raise GradientError(f"max_target is {max_target!r}; it must lie in [0, 1)")
        if target != "adaptive" and (isinstance(target, str) or not -1 <= target <= max_target):
            raise GradientError(
                f"target is {target!r}; it must be 'adaptive' or a cosine in [-1, {max_target}]"
            )
        if isinstance(tasks, str) and tasks != "all":
            raise GradientError(f"tasks is {tasks!r}; it must be 'all' or a list of task names")
        self.beta = beta
        self.tasks: Literal["all"] | frozenset[str] = "all" if tasks == "all" else frozenset(tasks)
        self.target: Literal["adaptive"] | float = target
        self.max_target = max_target
        self.rescale = rescale
        self.compare_pcgrad = compare_pcgrad
        self.seed = seed
        self._ema = PairTable()
        self._report: dict[str, Tensor] = {}

    def _weights(self, geometry: StepGeometry) -> Tensor:
        tasks, device = geometry.tasks, geometry.gram.device
        chosen = [i for i, t in enumerate(tasks) if self.tasks == "all" or t in self.tasks]
        rows = to_device(torch.tensor(chosen, dtype=torch.int64), device)
        norm = geometry.gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        present = norm > 0
        safe = torch.where(present, norm, 1.0)
        cosine = (geometry.gram / safe[:, :, None] / safe[:, None, :]).clamp(-1, 1)
        cosine.diagonal(dim1=1, dim2=2).fill_(1.0)

        order = visiting_order(self.seed, geometry.step, geometry.groups, tasks)
        every = len(chosen) == len(tasks)
        order = to_device(order if every else order[:, chosen], device)
        targets = self._targets(geometry)
        old = (targets if every else targets.index_select(1, rows)).gather(2, order)
        used = old.clamp_max(self.max_target)
        edits = _edit(cosine, rows, present, order, used)
        if self.target == "adaptive":
            self._update(geometry, targets, rows, order, old, edits)
        self._report = {
            "edits": edits.edited.sum((1, 2)),
            "comparisons": edits.compared.sum((1, 2)),
            "skipped": (~edits.compared).sum((1, 2)),
            "targets": targets,
        }
        if self.compare_pcgrad:
            pcgrad = _edit(cosine, rows, present, order, torch.zeros_like(used))
            self._report["pcgrad_edits"] = pcgrad.edited.sum((1, 2))

        c = edits.coefficients
        if self.rescale:
            q = edits.squared_norm[..., None]
            c = torch.where(q > 0, c / q.sqrt(), c)
        # From unit gradients back: g'_i = sum_j c_ij (||g_i|| / ||g_j||) g_j; c_ii as it is.
        ratio = norm.index_select(1, rows)[:, :, None] / safe[:, None, :]
        ratio[:, torch.arange(len(rows), device=device), rows] = 1.0
        weights = torch.ones_like(norm).index_fill_(1, rows, 0.0)  # the unedited: g'_i = g_i
        return weights + (c * ratio).sum(1)

    def _targets(self, geometry: StepGeometry) -> Tensor:
        """Return the stored targets of every ordered pair, ``[groups, K, K]``, not capped."""
        if self.target == "adaptive":
            self._ema.on(geometry.gram.device)
            return self._ema.read(geometry.groups, geometry.tasks)
        return torch.full_like(geometry.gram, self.target)

    def _update(
        self,
        geometry: StepGeometry,
        targets: Tensor,
        rows: Tensor,
        order: Tensor,
        old: Tensor,
        edits: _Edits,
    ) -> None:
        """Move the targets of the compared pairs to the cosines from before the edit (line 16).

        ``old`` are the targets in visiting order.
        """
        new = torch.where(edits.compared, (1 - self.beta) * old + self.beta * edits.cosines, old)
        if len(rows) == targets.shape[1]:
            moved = targets.scatter(2, order, new)
        else:
            moved = targets.clone()
            moved[:, rows] = targets[:, rows].scatter(2, order, new)
        self._ema.write(geometry.groups, geometry.tasks, moved)

    def report(self) -> dict[str, Tensor]:
        """Return diagnostics of the last call of :meth:`weights`.

        ``edits``, ``comparisons``, ``skipped`` (pairs with a zero gradient) and, if asked for,
        ``pcgrad_edits``: counts of ordered pairs, ``[groups]``. ``targets``: the targets before
        this step's update and before the cap, ``[groups, K, K]``, row = the task edited.
        """
        return self._report

    def targets(self, groups: Iterable[str], tasks: Iterable[str]) -> Tensor:
        """Return the stored targets of these names, ``[groups, K, K]``; 0 where never compared."""
        return self._ema.read(tuple(groups), tuple(tasks)).cpu()

    def snapshot(self) -> PairTable:
        """Return a copy of the targets, where they are."""
        return self._ema.snapshot()

    def restore(self, before: PairTable) -> None:
        """Go back to a :meth:`snapshot`."""
        self._ema = before

    def keep_if(self, finite: Tensor, before: PairTable) -> None:
        """Keep the targets where ``finite``, on the device, is True, else those from before."""
        if self.target == "adaptive":
            self._ema.keep_if(finite, before)

    def state_dict(self) -> dict[str, Any]:
        """Return seed, names and targets; hyper-parameters belong to the constructor."""
        return super().state_dict() | self._ema.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where the method that returned ``state`` was.

        Raises:
            GradientError: if the state is of another method, or damaged; nothing is then changed.
        """
        self._check_state(state)
        self._ema.load_state_dict({k: state[k] for k in ("targets", "groups", "tasks")})
        super().load_state_dict(state)
