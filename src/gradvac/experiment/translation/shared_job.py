"""The part of a translation job on one of several ranks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradvac.data.batches import Batch
from gradvac.engine.ranks.cost import cost
from gradvac.engine.ranks.group import Ranks
from gradvac.errors import RecipeError
from gradvac.experiment.run.shards import shard_model
from gradvac.experiment.training.job import Prepared, RankJob
from gradvac.experiment.translation.job import TranslationJob
from gradvac.experiment.translation.recipe import Recipe
from gradvac.translation.vocabulary import Vocabulary

SHARDS_FROM = (2, 9)
"""The first torch whose HuggingFaceStorageWriter has ``save_distributed``; 2.8 has the rest."""


class SharedJob(TranslationJob, RankJob[Batch]):
    """Translation on this rank's part of each batch: consecutive pairs, so few tasks."""

    def __init__(self, prepared: Prepared[Recipe, Vocabulary], ranks: Ranks) -> None:
        super().__init__(prepared)
        self.ranks, self.sharded = ranks, prepared.recipe.training.shard
        if self.sharded:
            check_shard(prepared.recipe)
            layers = [*self.model.encoder.layers, *self.model.decoder.layers]
            shard_model(self.model, layers, self.device)

    def batch(self, number: int) -> Batch:
        """Return this rank's sentence pairs, possibly none."""
        return self.balance.plan(number, self.ranks.rank, self.ranks.size, together=True)

    def tokens(self, number: int) -> int:
        """Return the target tokens of a batch on all ranks together."""
        return self.balance.plan.target_tokens(number)

    def stand_in(self, number: int) -> Batch:
        """Return a sentence pair of a batch, for a rank without pairs that joins collectives."""
        return self.balance.plan(number).first(1)

    def validation_batches(self, tasks: tuple[str, ...]) -> Iterator[tuple[int, Batch, bool]]:
        """Every R-th batch; ranks of a sharded model make the same number of passes."""
        batches = list(super().validation_batches(tasks))
        for start in range(0, len(batches), self.ranks.size):
            n = start + self.ranks.rank
            if n < len(batches):
                yield batches[n]
            elif self.sharded:
                index, batch, _ = batches[start]
                yield index, batch, False

    def added_up(self, sums: Tensor) -> Tensor:
        """Sums over the ranks."""
        total = sums.to(self.ranks.device or sums.device)
        self.ranks.sum(total)()
        return total.to(sums.device)

    def describe(self) -> list[str]:
        """Add the communication of the ranks per step."""
        first = [
            len(self.balance.plan(0, r, self.ranks.size, together=True).present)
            for r in range(self.ranks.size)
        ]
        all_tasks = len(self.balance.plan(0).present)
        count = sum(p.numel() for p in self.model.parameters())
        per_rank = sum(first) / len(first)
        model = cost(count, self.ranks.size, all_tasks, per_rank, 1, sharded=self.sharded)
        sent = model.sent if self.recipe.method.name != "joint" else model.plain
        line = (
            f"{self.ranks.size} ranks, {per_rank:.1f} of {all_tasks} directions on each in the "
            f"first batch: a rank sends {sent / 1e6:,.1f} MB in a step, plain training "
            f"{model.plain / 1e6:,.1f} MB"
            + (f"; parameters in {self.ranks.size} shards" if self.sharded else "")
        )
        return [*super().describe(), line]


def check_shard(recipe: Recipe) -> None:
    """Reject an old torch, and options with passes on one rank only: all must gather together."""
    if not _is_recent(torch.__version__):
        raise RecipeError(
            f"training.shard: true needs torch {'.'.join(map(str, SHARDS_FROM))} or newer, which "
            f"writes checkpoints in shards; found {torch.__version__}"
        )
    if recipe.method.engine == "per_task" and recipe.method.name != "joint":
        raise RecipeError(
            "training.shard: true with method.engine: per_task, where a rank makes a forward pass "
            "for each of its directions and another rank has others; use method.engine: single_pass"
        )
    if recipe.batches.sampling == "multidds_s":
        raise RecipeError(
            "training.shard: true with batches.sampling: multidds_s, which takes gradients of the "
            "whole model on every rank; use temperature or unimax, or training.shard: false"
        )
    if recipe.method.options.get("gradients") == "validation":
        raise RecipeError(
            "training.shard: true with method.options.gradients: validation, which takes gradients "
            "of the whole model on every rank; use training, or training.shard: false"
        )


def _is_recent(version: str) -> bool:
    return tuple(int(part) for part in version.split(".")[:2]) >= SHARDS_FROM
