"""Per-task gradients in Axolotl.

Axolotl builds its trainer from a YAML file that names a class. A file of your own has that class::

    from axolotl.core.trainers import AxolotlTrainer

    from gradvac import GradVac
    from gradvac.integrations.axolotl import AxolotlTaskGradients

    class TaskTrainer(AxolotlTaskGradients, AxolotlTrainer):
        method = GradVac()

With ``trainer_cls: my_tasks.TaskTrainer`` in the YAML file, for a file ``my_tasks.py``, and a
column ``task`` in the datasets, the rest of the YAML file stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from gradvac.engine.groups import Grouping
from gradvac.errors import GradientError
from gradvac.integrations.axolotl_batch import LENGTHS, PackedCollator, segments_of_lengths
from gradvac.integrations.transformers import TaskGradients
from gradvac.integrations.transformers_batch import TaskCollator, take_tasks
from gradvac.methods import Method

__all__ = ["AxolotlTaskGradients", "keep_task"]

_OWN = "axolotl.core.trainers.base", "axolotl.core.trainers.mixins"


class AxolotlTaskGradients(TaskGradients):
    """A mixin before Axolotl's ``AxolotlTrainer`` whose gradients are combined by a method.

    Axolotl makes the trainer itself, so what :class:`TaskGradients` takes as arguments are here
    attributes of the class. Axolotl's packed rows (``sample_packing: true``) have the task of each
    of their sequences.

    Attributes:
        method: turns the geometry of a step into weights of the task gradients; each trainer has
            a copy.
        granularity: how parameters are grouped; see :mod:`gradvac.engine.groups`.
        engine: further arguments of :class:`gradvac.Engine`.
        task_column: column of the dataset that holds the task of each sample.
        task_names: the allowed tasks; any if None.

    Raises:
        GradientError: as ``TaskGradients``; if there is no method or no ``AxolotlTrainer`` behind
            this class; and for settings of Axolotl that it does not support.

    Example:
        >>> from gradvac import PCGrad
        >>> from gradvac.integrations.axolotl import AxolotlTaskGradients
        >>> from axolotl.core.trainers import AxolotlTrainer  # doctest: +SKIP
        >>> class TaskTrainer(AxolotlTaskGradients, AxolotlTrainer):  # doctest: +SKIP
        ...     method = PCGrad()
        ...     granularity = "all_module"
    """

    method: Method
    granularity: Grouping = "all_layer"
    engine: Mapping[str, Any] | None = None
    task_column: str = "task"
    task_names: Sequence[str] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        if not isinstance(getattr(self, "method", None), Method):
            raise GradientError(
                f"{name} has no method; write e.g. method = gradvac.GradVac() in it"
            )
        own = [kind for kind in type(self).__mro__ if kind.__module__.startswith(_OWN)]
        if not own:
            raise GradientError(
                f"{name} has no AxolotlTrainer among its bases; write class "
                f"{name}(AxolotlTaskGradients, AxolotlTrainer)"
            )
        self._split_trainers = tuple(own)
        super().__init__(
            *args, method=deepcopy(self.method), granularity=self.granularity, engine=self.engine,
            task_column=self.task_column, task_names=self.task_names, **kwargs,
        )  # fmt: skip
        trainer: Any = self
        column = self.task_column
        trainer.data_collator = PackedCollator(trainer.data_collator, column)
        if trainer.eval_data_collator is not None:
            trainer.eval_data_collator = PackedCollator(
                TaskCollator(trainer.eval_data_collator, column), column
            )

    def _padded_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the losses ``[B, T]`` of a batch as Axolotl prepares it, and which count."""
        call = _Call(super()._padded_losses, model)
        self.compute_loss(call, inputs)  # pyright: ignore[reportArgumentType]
        return call.found

    def _take_tasks(self, inputs: dict[str, Any]) -> tuple[list[str], Tensor | None, list[str]]:
        lengths = inputs.pop(LENGTHS, None)
        if lengths is None or all(len(row) == 1 for row in lengths):
            return super()._take_tasks(inputs)
        rows = take_tasks(inputs, self.task_column, self.task_names)
        segments = segments_of_lengths(lengths, inputs["input_ids"].shape[1])
        return self._of_sequences([task for row in rows for task in row], segments)

    def _refuse_unsupported(self) -> None:
        super()._refuse_unsupported()
        args: Any = self.args
        for key, why in _REFUSED.items():
            if getattr(args, key, None):
                raise GradientError(
                    f"Axolotl's {key} does not work with task gradients, because {why}; leave it "
                    "out of the YAML file"
                )


class _Call:
    """What Axolotl calls in place of a model: keeps the losses ``[B, T]`` and which count."""

    found: tuple[Tensor, Tensor]

    def __init__(self, losses: Any, model: nn.Module) -> None:
        self._losses = losses
        self._model = model
        self.training = model.training

    def __call__(self, **inputs: Any) -> dict[str, Tensor]:
        self.found = self._losses(self._model, inputs)
        return {"loss": self.found[0].detach().sum()}


_REFUSED = {
    "orpo_alpha": "its loss compares pairs of answers",
    "activation_offloading": "it is not tested",
    "layer_offloading": "it is not tested",
    "balance_labels": "it rejects a collator that keeps tasks",
    "pretraining": "with a pretraining_dataset texts are packed without their tasks",
}


def keep_task(strategy: Any, column: str = "task") -> Any:
    """Let a prompt strategy of Axolotl keep the task, which it would drop with the other columns.

    Args:
        strategy: of Axolotl, for rows or for batches of rows; changed in place.
        column: column of tasks in the raw dataset and in the tokenized one.

    Returns:
        The same strategy.

    Raises:
        GradientError: while it tokenizes, if there is no such column, or if the strategy makes
            another number of rows.

    Example:
        >>> from gradvac.integrations.axolotl import keep_task
        >>> class Letters:  # in place of a strategy of Axolotl
        ...     def tokenize_prompt(self, prompt):
        ...         return {"input_ids": list(prompt["text"].encode())}
        >>> keep_task(Letters()).tokenize_prompt({"text": "hi", "task": "en"})
        {'input_ids': [104, 105], 'task': 'en'}
    """
    strategy.tokenize_prompt = _KeepTask(strategy.tokenize_prompt, column)
    return strategy


class _KeepTask:
    """``tokenize_prompt`` of a strategy, with the task; a class, so that it can be pickled."""

    def __init__(self, tokenize: Any, column: str) -> None:
        self._tokenize = tokenize
        self._column = column

    def __call__(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        if self._column not in prompt:
            raise GradientError(
                f"the dataset has no column {self._column!r}, only {', '.join(prompt)}; it needs "
                "the task of each row"
            )
        tasks = prompt[self._column]
        found = dict(self._tokenize(prompt))
        rows = found["input_ids"]
        if isinstance(tasks, list) and len(rows) != len(tasks):
            raise GradientError(
                f"the prompt strategy makes {len(rows)} rows of {len(tasks)}, so it is not known "
                "which task each is of; tokenize the dataset yourself, with a column of tasks"
            )
        return {**found, self._column: tasks}
