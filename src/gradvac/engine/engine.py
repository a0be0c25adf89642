"""The engine: one backward pass if samples stay separate, else one per task.

Usage, in place of ``loss.backward()``::

    engine = Engine(model, GradVac(beta=1e-2), granularity="all_layer")
    optimizer.zero_grad()
    with engine.tasks(task_of_each_sample):        # one name per sample, in any order
        loss_per_token = ...                       # an ordinary forward pass, nothing averaged
        engine.backward(loss_per_token / tokens)   # adds to p.grad
    optimizer.step()

or, for several losses of one forward pass or a forward pass for each task::

    engine.backward({"depth": depth_loss, "segments": segment_loss})
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor, nn

from gradvac.engine.groups import Grouping, Heads
from gradvac.engine.nonfinite import NonFinite
from gradvac.engine.options import BUDGET, EngineOptions
from gradvac.engine.per_task import PerTask
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.report import StepReport
from gradvac.engine.setup import Setup
from gradvac.engine.single_pass import SinglePass
from gradvac.engine.step import Shares
from gradvac.engine.task_engine import TaskEngine
from gradvac.engine.task_names import TaskOfSample
from gradvac.errors import GradientError
from gradvac.methods import Method

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Engine(TaskEngine):
    """Gives every parameter one gradient, combined by a method from the gradients of the tasks.

    Losses have one of two forms. Losses of samples or tokens, computed inside
    ``with engine.tasks(...)``: their gradients are split in one backward pass. If the forward pass
    mixes samples (BatchNorm in training, a contrastive loss) or cannot be followed, there is one
    backward pass per task through the same graph from then on, and the log of ``gradvac`` says why.
    Or one loss for each task, ``{task: loss}``, with one backward pass each.

    Args:
        model: the model; it is not changed.
        method: turns the geometry of a step into weights.
        granularity: how parameters are grouped; see :mod:`gradvac.engine.groups`.
        heads: modules or parameters that belong to one task, by task, such as
            ``{"ner": "heads.ner"}``; or a function from a parameter's name to its task, None for
            shared parameters. They get their plain gradient and are in no group.
        engine: "single_pass" to raise an error instead of changing to a backward pass per task,
            "per_task" to split nothing; None to choose what the model allows.
        verify_steps: how many first steps with several tasks to check against autograd, by two more
            backward passes. A step whose forward pass does something new is checked too, unless
            this is 0.
        nonfinite: "raise" an error if a loss or gradient is not finite, or "skip" the step:
            ``p.grad`` is then None, so that optimizers do nothing, and the report says why.
        task_names: the allowed tasks: a task of another name is then an error, not a new task.
        passes: 2 to run a second backward pass, of the losses times their weights, instead of
            holding K gradients of the whole model; for granularity "whole_model".
        budget: bytes; if the K gradients of a parameter take more, they are computed in chunks of
            rows, once to measure and once to combine them. A backward pass per task holds them all.
        process_group: the ranks to train with; by default all of ``torch.distributed``, if that is
            initialised. See :mod:`gradvac.engine.ranks.collector`.
        storage: ``torch.bfloat16`` to hold the K gradients of a single pass in half the memory;
            products, sums and Gram matrices are then rounded once more, to about 3 digits. None for
            float32 (float64 for float64 parameters). Not on several ranks.
        plan: False to trace every forward pass. A planned one is as exact but may differ in its
            last bits, so that a resumed run then equals one that was not stopped up to rounding.
        lazy: True to return a :class:`LazyReport`, whose numbers are read when they are looked at,
            so that the host need not wait for an accelerator; for GradVac, PCGrad and fixed
            weights on one process. A step that is not finite adds zeros to ``p.grad``, and its
            error is raised later; see :mod:`gradvac.engine.lazy`.

    Raises:
        GradientError: if the model is wrapped for data parallelism or has nothing to train, or an
            argument is not one of those allowed.

    Example:
        >>> import torch
        >>> import gradvac
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> engine = gradvac.Engine(model, gradvac.PCGrad())
        >>> with engine.tasks(["fr", "hi"]):  # their gradients are (1, 0) and (-1, 1)
        ...     report = engine.backward(model(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])))
        >>> report.weights
        tensor([[2.0000, 1.5000]], dtype=torch.float64)
        >>> model.weight.grad  # 2.0 * (1, 0) + 1.5 * (-1, 1)
        tensor([[0.5000, 1.5000]])
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        granularity: Grouping = "all_layer",
        *,
        heads: Heads | None = None,
        engine: Literal["single_pass", "per_task"] | None = None,
        verify_steps: int = 1,
        nonfinite: NonFinite = "raise",
        task_names: Collection[str] | None = None,
        passes: int = 1,
        budget: int = BUDGET,
        process_group: ProcessGroup | Ranks | None = None,
        storage: torch.dtype | None = None,
        plan: bool = True,
        lazy: bool = False,
    ) -> None:
        options = EngineOptions(
            granularity,
            heads,
            engine,
            verify_steps,
            nonfinite,
            task_names,
            passes,
            budget,
            process_group,
            storage,
            plan,
            lazy,
        )
        super().__init__(Setup(model, method, options))
        self._single_pass = SinglePass(self._setup)
        self._per_task = PerTask(self._setup)
        self._setup.guard.watch()
        if verify_steps <= 0 and engine != "per_task":
            logging.getLogger("gradvac").warning(
                "verify_steps=%d: what a forward pass does for the first time is not checked "
                "against autograd; an operation that the engine follows wrongly would go unnoticed",
                verify_steps,
            )

    def __del__(self) -> None:
        """Let go of a graph that waits for a backward pass; what it saved leads back to here."""
        if (single_pass := getattr(self, "_single_pass", None)) is not None:
            single_pass.let_go()

    @property
    def refused(self) -> str:
        """Why every task has its own backward pass; empty while gradients are split."""
        return self._single_pass.refused

    @contextmanager
    def tasks(
        self,
        tasks: TaskOfSample,
        batch_dim: int = 0,
        inputs: Sequence[Tensor] | None = None,
        segments: Tensor | None = None,
    ) -> Iterator[Self]:
        """Follow the samples of a batch through the forward pass inside.

        If samples of several tasks are mixed, or cannot be followed, the forward pass continues
        unchanged and the engine runs one backward pass per task; :attr:`refused` says why. With
        ``engine="single_pass"`` it raises an error.

        Args:
            tasks: the task of each of the B samples: an iterable of B names (an integer is
                converted to a string); or ``(positions, names)``, B integers and the names at these
                positions.
            batch_dim: the dimension of the inputs that holds the samples.
            inputs: the tensors the samples come in. By default the tensors given to the model
                whose size along ``batch_dim`` is B.
            segments: for rows that hold several sequences, of which attention sees one at a time
                (padding-free batches, packing): the sequence of each token, ``[B, T]`` or, of one
                row, ``[T]``, integers. ``tasks`` then has one name for each sequence, and each
                token is a sample: ``rows`` of losses are positions of tokens, ``b * T + t`` of
                token t in row b. That attention keeps the tasks apart is checked in every step,
                see :mod:`gradvac.engine.samples.segments`.

        Raises:
            GradientError: if a sample has no task or an unknown one, if this is inside another such
                block, if the parameters differ from those the engine was made for, or if the
                samples cannot be followed with ``engine="single_pass"``.
        """
        with self._single_pass.tasks(tasks, batch_dim, inputs, segments):
            yield self

    def backward(
        self,
        loss: Tensor | Mapping[str, Tensor],
        rows: Tensor | None = None,
        mask: Tensor | None = None,
        loss_scale: float | torch.amp.GradScaler = 1.0,
        step: int | None = None,
        shares: Shares | None = None,
    ) -> StepReport:
        """Run the backward pass, add the combined gradients to ``p.grad``, begin the next step.

        Args:
            loss: losses of samples, tokens or the like, ``[B, ...]`` or, with ``rows``, ``[N]``;
                or a scalar for each task, which may share a graph.
            rows: the sample that each loss belongs to, ``[N]``.
            mask: weights of the losses, such as 0 for padding; of the shape of ``loss``.
            loss_scale: factor the losses were multiplied by, divided out before the Gram; or the
                GradScaler that scaled them; ``p.grad`` is then scaled again.
            step: number of this step; by default one more than the last.
            shares: by task, what its mean loss was multiplied by (its share of the step's
                tokens), for methods that read losses; numbers, or tensors that are read with the
                Gram matrices.

        Raises:
            GradientError: if the gradients cannot be computed or are not finite (NotFiniteError).
                ``p.grad``, the method and the step counter are then unchanged and the gradients are
                dropped.
        """
        if isinstance(loss, Tensor) and not self._per_task.accumulated:
            return self._single_pass.backward(loss, rows, mask, loss_scale, step, shares)
        self.accumulate(loss, rows, mask)
        return self.combine(loss_scale, step, shares)

    def accumulate(
        self,
        loss: Tensor | Mapping[str, Tensor],
        rows: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Run the backward pass of a micro-batch; its gradients wait for :meth:`combine`.

        With a forward pass for each task, ``{task: loss}`` may be given one task at a time: this
        costs as much as training on the same samples, and each graph is freed early.

        Args:
            loss: as for :meth:`backward`.
            rows: the sample that each loss belongs to, ``[N]``.
            mask: weights of the losses.

        Raises:
            GradientError: if the gradients cannot be computed; the accumulated ones are dropped.
        """
        try:
            if isinstance(loss, Mapping):
                self._check_loss_per_task(rows, mask)
                self._per_task.accumulate_all(loss)
                return
            if self._per_task.accumulated:
                raise GradientError(
                    "this step began with a loss for each task, {task: loss}; losses of samples "
                    "cannot be added to them before combine()"
                )
        except BaseException as e:
            self._single_pass.tell(e)
            self.clear()
            raise
        self._single_pass.accumulate(loss, rows, mask)

    def _check_loss_per_task(self, rows: Tensor | None, mask: Tensor | None) -> None:
        if rows is not None or mask is not None:
            raise GradientError("rows and mask belong to losses of samples, not to {task: loss}")
        if self._setup.options.engine == "single_pass":
            raise GradientError(
                "a loss for each task needs a backward pass for each; engine='single_pass' was "
                "asked for, leave it out"
            )
        if self._single_pass.accumulated:
            raise GradientError(
                "this step began with losses of samples; a loss for each task, {task: loss}, "
                "cannot be added to them before combine()"
            )

    def combine(
        self,
        loss_scale: float | torch.amp.GradScaler = 1.0,
        step: int | None = None,
        shares: Shares | None = None,
    ) -> StepReport:
        """Combine the accumulated gradients, add them to ``p.grad`` and begin the next step.

        A rank without samples calls this when others run a backward pass.

        Raises:
            GradientError: as :meth:`backward`, and if nothing was accumulated on any rank.
        """
        strategy = self._per_task if self._per_task.accumulated else self._single_pass
        return strategy.combine(loss_scale, step, shares)

    def clear(self) -> None:
        """Drop what was collected since the last step."""
        self._single_pass.clear()
        self._per_task.clear()


class SinglePassEngine(Engine):
    """An :class:`Engine` that raises an error where one backward pass cannot split the gradients.

    It takes only losses of samples; its arguments are those of :class:`Engine`. Holds K x P_g
    numbers for K tasks and the P_g parameters of the groups in progress, in float32 (float64 for
    float64 parameters).

    Example:
        >>> import torch
        >>> import gradvac
        >>> from gradvac.engine import SinglePassEngine
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> engine = SinglePassEngine(model, gradvac.Joint())
        >>> with engine.tasks(["fr", "hi", "fr"]):
        ...     report = engine.backward(model(torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, 2.0]])))
        >>> report.gram  # of (1, 2) and (-1, 1)
        tensor([[[5., 1.],
                 [1., 2.]]], dtype=torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        granularity: Grouping = "all_layer",
        verify_steps: int = 1,
        heads: Heads | None = None,
        nonfinite: NonFinite = "raise",
        task_names: Collection[str] | None = None,
        passes: int = 1,
        budget: int = BUDGET,
        process_group: ProcessGroup | Ranks | None = None,
        storage: torch.dtype | None = None,
        plan: bool = True,
        lazy: bool = False,
    ) -> None:
        super().__init__(
            model,
            method,
            granularity,
            heads=heads,
            engine="single_pass",
            verify_steps=verify_steps,
            nonfinite=nonfinite,
            task_names=task_names,
            passes=passes,
            budget=budget,
            process_group=process_group,
            storage=storage,
            plan=plan,
            lazy=lazy,
        )
