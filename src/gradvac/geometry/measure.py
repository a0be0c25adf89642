"""Measuring the gradients of every task at fixed parameters, on any text.

The record of a run has the gradients of its training batches. A measurement instead takes the
gradient of each direction on the same sentences (Wang et al. 2021, section 2.1: a multi-way aligned
set), with dropout off, and returns a frame that every reader of a record can read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from gradvac.engine import PerTaskEngine, parameter_groups
from gradvac.engine.gradients.precision import at_least_float32
from gradvac.engine.groups import Grouping
from gradvac.engine.guards import refuse_wrapped
from gradvac.engine.ranks.group import Ranks
from gradvac.errors import GradientError
from gradvac.geometry.kinds import grouping, summed
from gradvac.geometry.record import Frame
from gradvac.methods import Joint

__all__ = ["HOLD", "Losses", "measure", "measure_seq2seq", "seq2seq_losses", "undisturbed"]

Losses = Callable[[], Iterable[Tensor]]
"""Yields scalars with a graph, such as one per batch, whose sum is the loss of a task."""
HOLD = 2**30
"""Default for the numbers of gradients held at a time: 4 GiB in float32."""


def measure(
    model: nn.Module,
    losses: Mapping[str, Losses],
    granularity: Grouping = "parameter",
    step: int = 0,
    hold: int = HOLD,
    ranks: Ranks | None = None,
) -> Frame:
    """Take the gradient of every task's loss and return their Gram matrices.

    Dropout is off during the measurement; the model, its mode and its ``p.grad`` are not changed.

    Args:
        model: any model.
        losses: by task, a function that yields the parts of its loss; called once per pass.
        granularity: one of ``gradvac.geometry.kinds.MEASURED``, or a function from a parameter's
            name to its group's; from "parameter", the finest one, all others can be computed.
        step: step of the checkpoint, for the frame.
        hold: numbers of gradients held at a time. If K tasks and P parameters need more,
            K P > hold, they are measured in several passes over the losses, some parameters in
            each; one parameter is never split.
        ranks: divide the tasks among ranks, which all call this; all get the same frame. Without it
            each of several ranks measures all tasks, and gets the frame of its and their mean loss.

    Raises:
        GradientError: if a task has no loss or, in a pass, no gradient; or one is not finite.

    Example:
        >>> import torch
        >>> from gradvac.geometry.measure import measure
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = {"fr": torch.tensor([[1.0, 0.0]]), "hi": torch.tensor([[-3.0, 4.0]])}
        >>> losses = {task: lambda own=own: [model(own).sum()] for task, own in x.items()}
        >>> measure(model, losses).gram.tolist()  # the gradients are the rows of x
        [[[1.0, -3.0], [-3.0, 25.0]]]
    """
    refuse_wrapped(model)
    own = {n: g.name for g in parameter_groups(model, grouping(granularity)) for n in g.names}
    found = []
    own_tasks = list(losses)[ranks.rank :: ranks.size] if ranks else list(losses)
    everyone = None if ranks else Ranks.of(None)  # the engine adds up what all of them give
    copies = everyone.size if everyone else 1
    with undisturbed(model):
        for block in blocks(model, len(losses), hold):
            engine = PerTaskEngine(block, Joint(), lambda name: name, process_group=ranks)
            engine.reserve(len(own_tasks))
            for task in own_tasks:
                parts = losses[task]
                seen = 0
                for part in parts():
                    engine.accumulate(task, part / copies)
                    seen += 1
                if not seen:
                    raise GradientError(f"task {task!r} has no sentences to take a gradient on")
            if ranks:
                ranks.meet()  # some ranks have more tasks, or longer ones
            found.append(engine.combine(step=step))
    names = [name for report in found for name in report.groups]
    # Gram matrices add up: those of single parameters are those of any group.
    order = [found[0].tasks.index(task) for task in losses]  # ranks add theirs one after the other
    matrices = [r.gram.numpy()[:, order][:, :, order] for r in found]
    groups, gram = summed(np.concatenate(matrices), names, own)
    none = (0,) * len(groups)
    return Frame(step, tuple(losses), groups, gram, np.ones(gram.shape[:2]), none, none, none)


def blocks(
    model: nn.Module, n_tasks: int, hold: int = HOLD
) -> list[list[tuple[str, nn.Parameter]]]:
    """Return the trainable parameters of each pass that `measure` makes over the losses.

    Each has at most ``hold`` numbers for ``n_tasks`` gradients, or is a single parameter.
    """
    found: list[list[tuple[str, nn.Parameter]]] = []
    size = hold  # full: the first parameter begins a block
    for group in parameter_groups(model, lambda name: name):
        (parameter,) = group.parameters
        size += n_tasks * parameter.numel()
        if size > hold:
            size = n_tasks * parameter.numel()
            found.append([])
        found[-1].append((group.name, parameter))
    return found


def seq2seq_losses(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], ignore: int = -100
) -> Losses:
    """Return the mean negative log-likelihood per target token of a Hugging Face seq2seq model.

    ``batches`` have the arguments of the model's forward, among them ``labels`` [B, T] with
    ``ignore`` at padding; the model returns ``logits`` [B, T, V].

    Example:
        >>> import torch
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> from gradvac.geometry.measure import seq2seq_losses
        >>> shape = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        >>> model = T5ForConditionalGeneration(T5Config(vocab_size=10, **shape)).eval()
        >>> model.config.decoder_start_token_id = 0
        >>> batch = {"input_ids": torch.tensor([[4, 5]]), "labels": torch.tensor([[6, 1]])}
        >>> (loss,) = seq2seq_losses(model, [batch])()
        >>> torch.allclose(loss, model(**batch).loss)
        True
    """
    tokens = sum(int((batch["labels"] != ignore).sum()) for batch in batches)

    def parts() -> Iterator[Tensor]:
        for batch in batches:
            logits = model(**batch).logits.flatten(0, 1)
            logits = logits.to(at_least_float32(logits.dtype))
            gold = batch["labels"].flatten()
            yield F.cross_entropy(logits, gold, ignore_index=ignore, reduction="sum") / tokens

    return parts


def measure_seq2seq(
    model: nn.Module,
    batches: Mapping[str, Sequence[Mapping[str, Tensor]]],
    granularity: Grouping = "parameter",
    step: int = 0,
    hold: int = HOLD,
) -> Frame:
    """`measure` a Hugging Face seq2seq model (Marian, T5, mBART, M2M-100 ...).

    ``batches`` are the batches of each task as in `seq2seq_losses`, on the model's device.

    Example:
        >>> import torch
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> from gradvac.geometry.measure import measure_seq2seq
        >>> shape = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        >>> model = T5ForConditionalGeneration(T5Config(vocab_size=10, **shape))
        >>> model.config.decoder_start_token_id = 0
        >>> batch = {"input_ids": torch.tensor([[4, 5]]), "labels": torch.tensor([[6, 1]])}
        >>> frame = measure_seq2seq(model, {"fr-en": [batch], "hi-en": [batch]}, "enc_dec")
        >>> frame.groups, bool((abs(frame.cosine() - 1) < 1e-6).all())  # equal batches, cosine 1
        (('embedding', 'encoder', 'decoder'), True)
    """
    losses = {task: seq2seq_losses(model, own) for task, own in batches.items()}
    return measure(model, losses, granularity, step, hold)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's mode and ``p.grad`` are restored afterwards.

    Example:
        >>> import torch
        >>> from gradvac.geometry.measure import undisturbed
        >>> model = torch.nn.Dropout()
        >>> with undisturbed(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modes = {module: module.training for module in model.modules()}
    gradients = {p: p.grad for p in model.parameters()}
    for p in gradients:
        p.grad = None  # gradients would be added to it
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for p, gradient in gradients.items():
            p.grad = gradient
