"""Per-task gradients in the SFTTrainer of TRL.

A script that trains with ``SFTTrainer`` changes three things: an import, a method, and a column
``task`` in its dataset::

    from gradvac.integrations.trl import TaskSFTTrainer

    trainer = TaskSFTTrainer(model, args, train_dataset=data, method=GradVac())
"""

from __future__ import annotations

from copy import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from trl.data_utils import get_dataset_column_names
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from gradvac.errors import GradientError
from gradvac.integrations.transformers import TaskGradients
from gradvac.integrations.transformers_loss import cross_entropies, samples_of
from gradvac.integrations.trl_data import packed_with_tasks
from gradvac.integrations.trl_loss import labels_alone, refuse_unknown_head, split_head

__all__ = ["TaskSFTTrainer"]


class TaskSFTTrainer(TaskGradients, SFTTrainer):
    """TRL's ``SFTTrainer`` whose gradients are combined by a method.

    Args:
        *args: arguments of ``SFTTrainer``.
        **kwargs: arguments of ``SFTTrainer`` and of
            :class:`gradvac.integrations.transformers.TaskGradients`: ``method``, ``granularity``,
            ``engine``, ``task_column``, ``task_names``.

    Raises:
        GradientError: as ``TaskGradients``, and for settings of TRL whose loss is not a sum over
            tokens.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from trl import SFTConfig
        >>> from gradvac import PCGrad
        >>> from gradvac.integrations.trl import TaskSFTTrainer
        >>> shape = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=9, intermediate_size=8, **shape))
        >>> words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, "<pad>"))
        >>> tokens = {"pad_token": "<pad>", "eos_token": "</s>"}
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **tokens)
        >>> data = [{"input_ids": [3, 4, 5], "task": task} for task in ("fr", "hi")]
        >>> args = SFTConfig(
        ...     tempfile.mkdtemp(), max_steps=1, use_cpu=True, bf16=False, report_to="none",
        ...     activation_checkpointing=False, disable_tqdm=True,
        ... )
        >>> trainer = TaskSFTTrainer(
        ...     model, args, train_dataset=Dataset.from_list(data), processing_class=tokenizer,
        ...     method=PCGrad(),
        ... )
        >>> _ = trainer.train()  # doctest: +ELLIPSIS
        {...'train_runtime': ...}
        >>> sorted(trainer.report.tasks), tuple(trainer.report.weights.shape)  # [groups, K]
        (['fr', 'hi'], (2, 2))
    """

    _split_trainers = (SFTTrainer,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_unknown_head()
        self._losses: tuple[Tensor, Tensor] | None = None
        self._compared = False
        super().__init__(*args, **kwargs)

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        """Prepare a dataset as TRL does; a packed row also has the task of each sequence."""
        prepare = super()._prepare_dataset
        given = processing_class, args, packing, formatting_func, dataset_name
        columns = get_dataset_column_names(dataset)
        if packing and args.packing_strategy == "wrapped":
            raise GradientError(
                "packing_strategy='wrapped' lets sequences of different tasks see each other; set "
                "packing_strategy='bfd' in SFTConfig"
            )
        if not packing or self.task_column not in columns:
            return prepare(dataset, *given)
        if "seq_lengths" in columns:  # it is packed
            return dataset
        own = copy(args)
        own.max_length, own.shuffle_dataset = None, False  # both come with packing
        tokens = prepare(dataset, processing_class, own, False, formatting_func, dataset_name)
        with args.main_process_first(desc="packing"):
            return packed_with_tasks(tokens, args, self.task_column)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward pass of a micro-batch, as in ``TaskGradients``."""
        with self.maybe_activation_offload_context:
            return super().training_step(*args, **kwargs)

    def task_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Return the losses ``[N]`` of a batch, one per label, and the sample of each, ``[N]``.

        TRL computes its loss and its metrics as always; the losses are taken from the same forward
        pass. On the first batch they are compared with the loss of TRL.

        Raises:
            GradientError: if the loss of TRL is different.
        """
        loss = self.compute_loss(model, inputs, num_items_in_batch=self._n_items)
        assert self._losses is not None
        losses, rows = self._losses
        if not self._compared and len(losses):
            with torch._C.DisableTorchFunction():  # or the engine takes the next step for a new one
                self._compare(losses.detach(), loss.detach())
            self._compared = True
        return losses, rows

    def _compare(self, losses: Tensor, loss: Tensor) -> None:
        """Compare losses ``[N]`` with the loss of TRL."""
        n = len(losses) if self._n_items is None else self._n_items
        own = losses.sum() / n * self._ranks_added_up
        if not torch.isclose(own, loss.to(own), rtol=1e-4):
            raise GradientError(
                f"the loss of {type(self).__name__} is {loss.item():.6g} where the sum over its "
                f"tokens is {own.item():.6g}, so it has another part; override task_losses"
            )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss and the metrics of TRL, and keep the losses of tokens."""
        seen: list[Any] = []

        def call(**given: Any) -> Any:
            seen.append(model(**given))
            return seen[-1]

        recorded: Any = call
        with split_head() as log_probs:
            found: Any = super().compute_loss(recorded, inputs, return_outputs, num_items_in_batch)
        self._losses = self._losses_of(seen, log_probs, inputs)
        return found

    def _losses_of(
        self, seen: list[Any], log_probs: list[Tensor], inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Return losses ``[N]``, one per label, and the sample that each belongs to."""
        loss_type = cast(SFTConfig, self.args).loss_type
        if self.label_smoother is not None and loss_type == "nll":
            smoothing = float(self.label_smoother.epsilon)
            return cross_entropies(seen[0].logits, inputs["labels"], True, smoothing, self._width)
        mask = seen[0].label_mask
        rows = samples_of(mask, self._width)
        found = log_probs[-1]  # the engine may call a model twice, and the last call counts
        if not labels_alone(found):  # an output of the model, which is known if its call is planned
            found = seen[0].log_probs[mask]
        losses = -found * found.exp().detach() if loss_type == "dft" else -found
        return losses, rows

    def _evaluated_losses(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the losses of the batch that was just evaluated."""
        assert self._losses is not None
        return self._losses

    def _refuse_unsupported(self) -> None:
        super()._refuse_unsupported()
        if self.aux_loss_enabled:
            raise GradientError(
                f"the loss of {type(self.model).__name__} includes a router's loss over all "
                "samples, which belongs to no task; set router_aux_loss_coef=0.0 in SFTConfig"
            )
