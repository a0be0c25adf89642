"""Updates on several ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from gradvac.engine import Engine, StepReport
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.ranks.reduction import Reduction
from gradvac.errors import NotFiniteError
from gradvac.experiment.run.disk import Outbox
from gradvac.experiment.training import replay
from gradvac.experiment.training.job import RankJob, TaskBatch
from gradvac.experiment.training.updates import Updates


class RankUpdates(Updates):
    """The same updates on every rank; each rank computes a part of the batch."""

    def __init__(self, job: RankJob[Any], outbox: Outbox, ranks: Ranks) -> None:
        super().__init__(job, outbox, ranks)
        self.shared, self.ranks = job, ranks
        self._tokens, self._loss = 0, 0.0
        self._untold: dict[str, Any] = {}  # counts of the last step that are not sent yet
        self._last: TaskBatch | None = None  # last batch of the step that has samples
        plain = self.engine is None and not job.sharded
        self._reduction = Reduction(ranks, list(self.model.parameters())) if plain else None

    def make(self, learned: Any) -> tuple[int, str]:
        """One update; returns the tokens of all ranks, and a message or "".

        The counts of this rank are sent to the others with a message of the next step.
        """
        window = self.window
        nll, tokens, padding = dict(window.nll), dict(window.tokens), window.padding
        _, note = super().make(learned)
        window = self.window  # after a skipped step it is the earlier window
        own = {
            task: [window.nll[task] - nll.get(task, 0.0), window.tokens[task] - tokens.get(task, 0)]
            for task in window.nll
        }
        self._untold = {"counted": own, "padding": window.padding - padding}
        window.nll, window.tokens, window.padding = nll, tokens, padding
        return self._tokens, note

    def say(self, **also: Any) -> None:
        """Attach the counts that are not sent yet, and ``also``, to the next message."""
        self.ranks.attachment = self._untold | also

    def hear(self) -> list[dict[str, Any]]:
        """Add the counts of all ranks; sends a message if nothing has been sent since `say`."""
        if self.ranks.attachment is not None:
            self.ranks.messages({})
        attached, self.ranks.attachments = self.ranks.attachments, []
        window = self.window
        for said in attached:
            for message in said:
                for task, (sum_, count) in message.get("counted", {}).items():
                    window.nll[task] = window.nll.get(task, 0.0) + sum_
                    window.tokens[task] = window.tokens.get(task, 0) + count
            window.padding += sum(m.get("padding", 0.0) for m in said) / self.ranks.size
        return [message for said in attached for message in said]

    def tell(self) -> None:
        """Update the window with the counts of all ranks, before it is read."""
        self.say()
        self.hear()
        self._untold = {}

    def _gradient(self, batches: list[TaskBatch], tokens: int) -> tuple[float, float]:
        """Set ``p.grad`` from the parts of all ranks; no retry when out of memory."""
        micro = self.recipe.batches.accumulate
        first = self.step * micro
        self._tokens = sum(self.shared.tokens(n) for n in range(first, first + micro))
        self._last = next((batch for batch in reversed(batches) if len(batch.task)), None)
        loss, norm = self._try(batches, self._tokens)
        return (loss if self.engine else self._loss), norm

    def _seed(self) -> None:
        """Use different dropout masks on each rank, as its samples are different."""
        seed = replay.step_seed(self.recipe.seed, self.step)
        torch.manual_seed((seed + self.ranks.rank * 0x632BE59BD9B4E019) % 2**63)

    def _backward_jointly(self, batch: TaskBatch, tokens: int) -> None:
        self._seed()
        if len(batch.task):
            during = (
                self._reduction.during if self._reduction and batch is self._last else nullcontext
            )
            with during():
                return super()._backward_jointly(batch, tokens)
        if self.shared.sharded:
            there = self._stand_in(0).to(self.job.device)
            (self.job.losses(there)[0].sum() * 0).backward()

    def _stand_in(self, micro: int) -> TaskBatch:
        number = self.step * self.recipe.batches.accumulate + micro
        return self.shared.stand_in(number)

    def _give(
        self,
        engine: Engine,
        batches: Sequence[TaskBatch],
        tokens: int,
        shares: dict[str, float],
        alone: bool,
    ) -> StepReport | None:
        """Run the backward passes of this rank's parts; for a sharded model, of every batch."""
        self._seed()
        if self.shared.sharded:
            return self._give_shards(engine, batches, tokens, shares, alone)
        present = [batch for batch in batches if len(batch.task)]
        return super()._give(engine, present, tokens, shares, alone)

    def _give_shards(
        self,
        engine: Engine,
        batches: Sequence[TaskBatch],
        tokens: int,
        shares: dict[str, float],
        alone: bool,
    ) -> StepReport | None:
        """Make a pass for every batch; for an empty one, on a sentence with weight 0."""
        report: StepReport | None = None
        for n, batch in enumerate(batches):
            counts = bool(len(batch.task))
            own: TaskBatch = batch if counts else self._stand_in(n)
            for index in own.present:
                shares.setdefault(own.tasks[index], 0.0)
            there = own.to(self.job.device)
            with engine.tasks((own.task, own.tasks)):
                loss, nll, rows = self.job.losses(there)
                loss = loss / tokens
                mask = torch.full_like(loss, float(counts))
                if alone:
                    report = engine.backward(loss, rows, mask, step=self.step, shares=shares)
                else:
                    engine.accumulate(loss, rows, mask)
            if counts:
                self._count(batch, there, nll, rows)
        return report

    def _clip(self) -> Tensor:
        if self._reduction:
            self._reduction.finish()
        return super()._clip()

    def _check_finite(self, loss: float, norm: float) -> None:
        """Check the losses of all ranks, so that either all or none skip a step."""
        if self.engine:
            return super()._check_finite(loss, norm)
        losses = [message["loss"] for message in self.ranks.messages({"loss": loss})]
        self._loss = sum(losses)
        bad = [r for r, each in enumerate(losses) if not math.isfinite(each)]
        if bad:
            raise NotFiniteError(
                f"the loss on rank {bad[0]} is not finite at step {self.step}; nothing was updated"
            )
        super()._check_finite(self._loss, norm)
