"""How often each direction is drawn: by temperature, by UniMax, or learned while training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradvac.data.batches import Batch, BatchPlan, random_batch
from gradvac.data.encoded import EncodedTask
from gradvac.data.sampling import MultiDDS, sampling_probabilities, unimax
from gradvac.engine.gradients.gram import cross_cosine
from gradvac.errors import GradientError, RecipeError
from gradvac.experiment.recipe.sections import SamplingSection

LossOf = Callable[[Batch], Tensor]
"""The scalar training loss of a batch."""


class Balance:
    """The batches of a run, ``plan``, and the share of each direction in them.

    Raises RecipeError if a direction has no training sentence, or if shares are learned and there
    is no validation text.
    """

    def __init__(
        self,
        section: SamplingSection,
        train: Mapping[str, EncodedTask],
        valid: Mapping[str, EncodedTask],
        *,
        seed: int,
        steps: int,
    ) -> None:
        self.section, self.seed, self.steps = section, seed, steps
        self.train, self.valid = train, valid
        learned = section.sampling == "multidds_s"
        self.every = section.multidds_s.every if learned else None
        self.plan = BatchPlan(
            train,
            tokens=section.size,
            seed=seed,
            pool=section.pool,
            period=self.every and self.every * section.accumulate,
        )
        self.scorer: MultiDDS | None = None
        if learned:
            if not self.valid:
                raise RecipeError(
                    "batches.sampling: multidds_s learns from validation gradients, and "
                    "data.valid has no pair of these directions"
                )
            own = section.multidds_s
            self.scorer = MultiDDS(
                self.plan.sizes, steps=own.steps, learning_rate=own.learning_rate
            )
            self.plan.add_phase(0, self.scorer.shares)
        elif section.sampling == "unimax":
            tokens = unimax(self._text, self._budget, section.max_epochs)
            pairs = tokens / self.plan.mean_lengths
            self.plan.add_phase(0, pairs / pairs.sum())
        else:
            for step, t in section.schedule:
                shares = sampling_probabilities(self.plan.sizes, t)
                self.plan.add_phase(step * section.accumulate, shares)

    @property
    def _text(self) -> np.ndarray:
        """Target tokens of each direction's training text [N]."""
        return self.plan.sizes * self.plan.mean_lengths

    @property
    def _budget(self) -> float:
        """Target tokens of the whole training run."""
        return float(self.steps * self.section.accumulate * self.section.size)

    def begin(self, step: int, model: nn.Module, loss_of: LossOf) -> dict[str, Any] | None:
        """Learn new shares if due at ``step``; returns what to log if they change.

        Depends only on the parameters, the seed and the step, so a resumed run repeats it.
        """
        first, line = step * self.section.accumulate, {}
        if self.scorer and self.every and step and step % self.every == 0:
            rewards = self.rewards(step, model, loss_of)
            self.plan.add_phase(first, self.scorer.update(rewards))
            line["task_reward"] = dict(zip(self.plan.tasks, rewards.tolist(), strict=True))
        for phase in self.plan.phases:
            if phase.first == first:
                shares = dict(zip(self.plan.tasks, phase.shares.tolist(), strict=True))
                return {"task_share": shares, **line}
        return None

    def rewards(self, step: int, model: nn.Module, loss_of: LossOf) -> np.ndarray:
        """Mean cosine of each task's training gradient with the tasks' validation gradients [N].

        R_i = mean_j cos(d_j, g_i), each on one random batch with dropout, as in the authors' code;
        one backward pass for each gradient. Holds the validation gradients and one more.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]
        model.train()
        torch.manual_seed(int(self._rng(step).integers(2**62)))

        def gradient(corpus: Mapping[str, EncodedTask], index: int, part: str) -> list[Tensor]:
            tasks = tuple(corpus)
            rng = self._rng(step, len(part), index)
            loss = loss_of(random_batch(corpus, tasks, index, self.section.size, rng))
            found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            if not all(bool(g.isfinite().all()) for g in found):
                raise GradientError(
                    f"the {part} gradient of task {tasks[index]!r} is not finite at step {step}; "
                    "the sampling distribution is unchanged"
                )
            return list(found)

        kept = [p.new_empty(len(self.valid), *p.shape) for p in parameters]
        for j in range(len(self.valid)):
            for rows, g in zip(kept, gradient(self.valid, j, "validation"), strict=True):
                rows[j] = g
        rewards = []
        for i in range(len(self.train)):
            one = [g[None] for g in gradient(self.train, i, "training")]
            rewards.append(float(cross_cosine(kept, one).mean()))
        return np.array(rewards)

    def table(self) -> str:
        """Pairs, shares and expected epochs of every direction, as lines to print."""
        section, phases = self.section, self.plan.phases
        total = self.steps * section.accumulate
        ends = [min(phase.first, total) for phase in phases[1:]] + [total]
        epochs = np.zeros(len(self.plan.tasks))
        for phase, end in zip(phases, ends, strict=True):
            pairs = max(0, end - phase.first) * self.plan.sentences_per_batch(phase.shares)
            epochs += pairs * phase.shares / self.plan.sizes
        starts = [f"from {phase.first // section.accumulate:,}" for phase in phases]
        heads = ["direction", "pairs", *(["share"] if len(phases) == 1 else starts), "epochs"]
        columns = [[f"{n:,}" for n in self.plan.sizes]]
        columns += [[f"{share:.1%}" for share in phase.shares] for phase in phases]
        rows = zip(self.plan.tasks, *columns, [f"{e:,.2f}" for e in epochs], strict=True)
        lines = [f"sampling: {sampling_in_words(section)}"]
        if section.sampling == "unimax" and self._budget > section.max_epochs * self._text.sum():
            lines[0] += "; the run is longer, so all directions are seen equally often"
        if self.scorer:
            lines[0] += "; epochs before learning"
        width = max(len(name) for name in [heads[0], *self.plan.tasks])
        for first, *rest in [heads, *rows]:
            lines.append(f"{first:<{width}}" + "".join(f"  {cell:>12}" for cell in rest))
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """The learned state, for JSON; empty if shares are not learned."""
        if not self.scorer:
            return {}
        phases = [[phase.first, phase.shares.tolist()] for phase in self.plan.phases]
        return {"phases": phases, **self.scorer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state`` exactly."""
        if self.scorer:
            self.scorer.load_state_dict(state)
            self.plan.phases.clear()
            for first, shares in state["phases"]:
                self.plan.add_phase(first, shares)

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 3, *what])  # the plan uses 0, 1 and 2


def sampling_in_words(section: SamplingSection) -> str:
    """How directions are drawn, for a table or a report."""
    if section.sampling == "unimax":
        return f"UniMax, each text at most {section.max_epochs:g} times"
    if section.sampling == "multidds_s":
        return f"MultiDDS-S, learned every {section.multidds_s.every:,} steps"
    words = [f"{t:g} from step {step:,}" for step, t in section.schedule]
    return "temperature " + (f"{section.schedule[0][1]:g}" if len(words) == 1 else ", ".join(words))
