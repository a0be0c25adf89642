"""Per-task gradients in the Trainer of Hugging Face transformers.

A script that trains with ``Trainer`` or ``Seq2SeqTrainer`` changes three lines::

    from gradvac.integrations.transformers import TaskGradients

    class TaskTrainer(TaskGradients, Seq2SeqTrainer): ...

    trainer = TaskTrainer(..., method=GradVac())     # the dataset has a column `task`

The Trainer still does accumulation, mixed precision, clipping, logging, checkpoints, evaluation and
schedules. With :class:`gradvac.Joint` the parameters are those of the ordinary Trainer.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gradvac.engine import Engine, StepReport
from gradvac.engine.groups import Grouping
from gradvac.errors import GradientError
from gradvac.integrations.accelerate import backward, without_wrapper
from gradvac.integrations.task_losses import Share, TaskLosses, none_zero
from gradvac.integrations.transformers_arguments import say_without_effect
from gradvac.integrations.transformers_batch import TaskCollator, segments_of, take_tasks
from gradvac.integrations.transformers_loss import ModelLoss, samples_of
from gradvac.integrations.transformers_refusals import refuse_other_losses, refuse_settings
from gradvac.methods import Method

__all__ = ["TaskGradients"]

logger = logging.getLogger(__name__)

STATE_FILE = "task_gradients.pt"
"""Name of the file in a checkpoint with the state of engine and method."""

_NO_LOSS = 1e-30
"""Share of a task without losses: not 0, which divides; nothing beside what other ranks have."""


class TaskGradients(Trainer):
    """A Trainer, or a mixin before one, whose gradients are combined by a method.

    Args:
        *args: arguments of the Trainer.
        method: turns the geometry of a step into weights of the task gradients.
        granularity: how parameters are grouped; see :mod:`gradvac.engine.groups`.
        engine: further arguments of :class:`gradvac.Engine`, such as ``{"nonfinite": "skip"}``.
        task_column: column of the training dataset that holds the task of each sample: a name, or
            a position in ``task_names``.
        task_names: the allowed tasks; any if None.
        **kwargs: arguments of the Trainer.

    Attributes:
        report: what happened in the last optimizer step; None before the first.

    Raises:
        GradientError: if the Trainer is set up for several devices in one process, for other
            parallelism than whole models on several ranks, for a compiled model, or for a
            loss or an optimizer that does not work with per-task gradients.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from transformers import BertConfig, BertForTokenClassification, TrainingArguments
        >>> from gradvac import PCGrad
        >>> from gradvac.integrations.transformers import TaskGradients
        >>> shape = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = BertForTokenClassification(BertConfig(vocab_size=9, **shape))
        >>> words, labels = torch.tensor([3, 4]), torch.tensor([0, 1])
        >>> data = [{"input_ids": words, "labels": labels, "task": task} for task in ("fr", "hi")]
        >>> args = TrainingArguments(
        ...     tempfile.mkdtemp(), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
        ... )
        >>> trainer = TaskGradients(model, args, train_dataset=data, method=PCGrad())
        >>> _ = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> sorted(trainer.report.tasks), tuple(trainer.report.weights.shape)  # [groups, K]
        (['fr', 'hi'], (3, 2))
    """

    _split_trainers: tuple[type, ...] = ()  # whose loss and step a subclass of this one splits

    def __init__(
        self,
        *args: Any,
        method: Method,
        granularity: Grouping = "all_layer",
        engine: Mapping[str, Any] | None = None,
        task_column: str = "task",
        task_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.task_column = task_column
        self.task_names = task_names
        super().__init__(*args, **kwargs)
        self._refuse_unsupported()
        self.report: StepReport | None = None
        self.data_collator = TaskCollator(self.data_collator, task_column)
        self._method, self._fresh = method, method.state_dict()
        options = {"granularity": granularity, "task_names": task_names}
        self._engine_options = options | dict(engine or {})
        self._engine: Engine | None = None
        self._model_loss: ModelLoss | None = None
        self._n_items: Tensor | int | None = None  # labels of the step, if the Trainer counts them
        self._width = 0  # tokens of a row, if tokens are the samples
        self._shares: dict[str, Share] = {}
        self._logged: dict[str, list[float]] = defaultdict(list)
        self._evaluated: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        self._evaluated_loss: ModelLoss | None = None

    @property
    def task_engine(self) -> Engine:
        """The engine of the model that is trained; a new one for a new ``model_init()``."""
        model: Any = self.model
        if self._engine is None or self._engine.model is not model:
            if self._engine is not None:
                self._method.load_state_dict(self._fresh)
            self._engine = Engine(model, self._method, **self._engine_options)
        return self._engine

    def task_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Return the unreduced losses of a batch; override it for a loss of your own.

        This one is the cross-entropy of the model's logits and ``labels`` with the Trainer's label
        smoothing, for sequence and token classification, masked, causal and sequence-to-sequence
        language models. It is checked against the model's own loss on the first batch.

        The losses are added up and divided as the Trainer does: by the number of labels of the
        whole step if it counts them, else by how many losses are returned.

        Args:
            model: the model to call; under autocast if the Trainer uses it.
            inputs: the batch on its device, without the tasks.

        Returns:
            Losses ``[N]`` and the sample each belongs to, ``[N]``, or losses ``[B, ...]`` and None.
            If rows hold several sequences, samples are tokens: ``b * T + t`` is token t of row b.

        Raises:
            GradientError: if the model's own loss is different.
        """
        losses, counted = self._padded_losses(model, inputs)
        return losses[counted], samples_of(counted, self._width)

    def _padded_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the losses of :meth:`task_losses` as ``[B, ...]``, and which of them count."""
        if self._model_loss is None:
            smoothing = self.label_smoother.epsilon if self.label_smoother is not None else 0.0
            self._model_loss = ModelLoss(self._shifts_labels(), smoothing)
        return self._model_loss(model, inputs, self._n_items)

    def _training_losses(
        self, model: nn.Module, inputs: dict[str, Any], n_samples: int
    ) -> TaskLosses:
        """Return the losses of a batch: those of an override, or without a wait for the device."""
        if type(self).task_losses is TaskGradients.task_losses and not self._width:
            return TaskLosses.padded(*self._padded_losses(model, inputs))
        return TaskLosses.of(*self.task_losses(model, inputs), n_samples)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Run forward and backward pass of a micro-batch; set ``p.grad`` if it ends a step.

        Returns:
            The loss that the Trainer would have returned, a scalar.

        Raises:
            GradientError: if samples have no task or an unknown one, if the gradients cannot be
                split, and, unless a scaler skips the step, if they are not finite.
        """
        if model is not self.model:
            raise GradientError(
                f"the model is wrapped in {type(model).__name__}, which gives the engine other "
                "gradients than those of the bare model; give the Trainer the bare model, one "
                "process for each device"
            )
        model.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        inputs = dict(self._prepare_inputs(inputs))
        tasks, segments, owners = self._take_tasks(inputs)
        engine = self.task_engine
        self._n_items = num_items_in_batch if self.model_accepts_loss_kwargs else None
        try:
            with engine.tasks(tasks, segments=segments):
                with self.compute_loss_context_manager():
                    found = self._training_losses(model, inputs, len(owners))
                self._empty_cache()
                divisor = self._divisor(found.divisor())
                losses = found.values / divisor
            for task, share in found.shares(owners, divisor).items():
                before = self._shares.get(task)
                self._shares[task] = share if before is None else before + share
            shares = none_zero(self._shares, _NO_LOSS)
            step = self.state.global_step
            report = backward(
                self.accelerator, engine, losses, found.rows, step=step, shares=shares
            )
        except BaseException:
            self._shares.clear()
            raise
        if report is not None:
            self._shares.clear()
            self.report = report
            self._note(report)
        return losses.detach().sum()

    def _empty_cache(self) -> None:
        """Empty the cache of the device after the forward pass, as often as the arguments say."""
        steps = self.args.torch_empty_cache_steps
        if steps is not None and self.state.global_step % steps == 0:
            clear_device_cache()

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """Predict as the Trainer does; the model does not get the tasks.

        Of samples that have tasks the losses are added up by task, in a forward pass of its own.
        """
        own: dict[str, Any] = dict(inputs)
        owners = None
        if self.task_column in own:
            *_, owners = self._take_tasks(own)
        found = super().prediction_step(model, own, *args, **kwargs)
        if owners is not None and all(own.get(name) is not None for name in self.label_names):
            losses, rows = self._evaluated_losses(model, own)
            self._add_evaluated(TaskLosses.of(losses, rows, len(owners)), owners)
        return found

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does, and each task: ``eval_loss_<task>``, per label."""
        self._evaluated.clear()
        found: Any = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
        for task, (total, count) in sorted(self._evaluated.items()):
            found.metrics[f"{prefix}_loss_{task}"] = total / count
        return found

    @torch.no_grad()
    def _evaluated_losses(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the losses of a batch; what training keeps about the loss is unchanged."""
        kept = self._model_loss, self._n_items
        self._model_loss, self._n_items = self._evaluated_loss, None
        try:
            with self.compute_loss_context_manager():
                found = self.task_losses(model, dict(self._prepare_inputs(inputs)))
            self._evaluated_loss = self._model_loss
        finally:
            self._model_loss, self._n_items = kept
        return found

    def _add_evaluated(self, losses: TaskLosses, tasks: list[str]) -> None:
        """Add up the losses of a batch by task, over all ranks."""
        values = losses.values.detach().double()
        sums = values.new_zeros(len(tasks)).index_add_(0, losses.rows.to(values.device), values)
        counts = losses.by_sample.tolist()
        found = list(zip(tasks, sums.tolist(), counts, strict=True))
        if self.accelerator.num_processes > 1:  # without those that fill up the last batch
            found = self.accelerator.gather_for_metrics(found, use_gather_object=True)
        for task, total, count in found:
            if count:
                entry = self._evaluated[task]
                entry[0] += total
                entry[1] += count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, and with its loss the means since the last log.

        Added are ``loss_<task>``, the task's mean loss; ``conflicts``, how many ordered pairs of
        task gradients have a negative inner product, over all parameter groups, and ``pairs``, of
        how many; and ``edits``, how many of them the method edited, if it edits.
        """
        if "loss" in logs:
            logs |= {key: sum(values) / len(values) for key, values in self._logged.items()}
            self._logged.clear()
        super().log(logs, start_time)

    # -- the Trainer's hooks --------------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, which is not to wrap the model: the engine adds up gradients."""
        super().create_accelerator_and_postprocess()
        without_wrapper(self.accelerator)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Leave the gradients of adapters on a model in shards alone: the engine adds them up."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the Trainer's, unless it reads on one rank for all: names are not sent."""
        loader = super().get_train_dataloader()
        dispatched = issubclass(type(loader), DataLoaderDispatcher)
        if dispatched and self.accelerator.num_processes > 1:
            raise GradientError(
                "rank 0 would read the stream for all ranks and send them tensors, but not the "
                'tasks; set accelerator_config={"dispatch_batches": False} in the arguments'
            )
        return loader

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if self.task_column not in columns:
            columns.append(self.task_column)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save:  # another rank does
            return
        state = {"method": type(self._method).__name__, "engine": self.task_engine.state_dict()}
        torch.save(state, os.path.join(output_dir, STATE_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, STATE_FILE)
        name = type(self._method).__name__
        if not os.path.exists(path):
            logger.warning("%s does not exist: %s starts without a state", path, name)
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["method"] != name:
            raise GradientError(
                f"{path} is the state of {state['method']} and the method is {name}; delete the "
                f"file to continue without the state of {state['method']}"
            )
        self.task_engine.load_state_dict(state["engine"])

    # -- one batch ------------------------------------------------------------------------------

    def _take_tasks(self, inputs: dict[str, Any]) -> tuple[list[str], Tensor | None, list[str]]:
        """Take the tasks out of a batch.

        Returns:
            The task of each sequence; the sequence of each token ``[B, T]`` if they share rows,
            else None; and the task of each sample, which is then a token.
        """
        rows = take_tasks(inputs, self.task_column, self.task_names)
        return self._of_sequences([task for row in rows for task in row], segments_of(inputs, rows))

    def _of_sequences(
        self, tasks: list[str], segments: Tensor | None
    ) -> tuple[list[str], Tensor | None, list[str]]:
        """Note what the samples are, and return what :meth:`_take_tasks` does."""
        self._width = 0 if segments is None else segments.shape[1]
        if segments is None:
            return tasks, None, tasks
        return tasks, segments, [tasks[n] for n in segments.flatten().tolist()]

    def _shifts_labels(self) -> bool:
        """Whether position t of the logits is about label t + 1, as the Trainer decides it."""
        if getattr(self, "_loss_shifts_labels", False):  # later versions know
            return True
        model: Any = self.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
        causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        return any(kind.__name__ in causal for kind in type(base).__mro__)

    def _divisor(self, n_losses: Tensor | int) -> Tensor | float:
        """Return what the Trainer divides the sum of the losses of a micro-batch by.

        The mean over the ranks is taken later; where the Trainer adds them up, it is undone here.
        """
        if self._n_items is None:
            return n_losses * self.current_gradient_accumulation_steps
        if self._model_loss is not None and self._model_loss.adds_up_means:
            return n_losses / self._ranks_added_up
        return self._n_items / self._ranks_added_up

    @property
    def _ranks_added_up(self) -> int:
        """What the Trainer multiplies losses by so that the ranks' mean becomes their sum."""
        counted = self._n_items is not None and self.args.average_tokens_across_devices
        return self.accelerator.num_processes if counted else 1

    def _note(self, report: StepReport) -> None:
        """Keep of a report what is to be logged."""
        if report.skipped:
            logger.warning("step skipped: %s", report.skipped)
            return
        means = report.geometry.mean_losses.tolist()
        for task, loss in zip(report.tasks, means, strict=True):
            self._logged[f"loss_{task}"].append(loss)
        self._logged["conflicts"].append(float((report.gram < 0).sum()))
        k = len(report.tasks)
        self._logged["pairs"].append(float(len(report.groups) * k * (k - 1)))
        if "edits" in report.diagnostics:
            self._logged["edits"].append(float(report.edits.sum()))

    # -- what is not supported ------------------------------------------------------------------

    def _refuse_unsupported(self) -> None:
        """Raise GradientError for settings that would be ignored or silently wrong."""
        refuse_settings(self)
        say_without_effect(self.args)
        behind = type(self).__mro__[type(self).__mro__.index(TaskGradients) + 1 :]
        own_losses = type(self).task_losses is not TaskGradients.task_losses
        refuse_other_losses(type(self), behind, own_losses, self._split_trainers)
