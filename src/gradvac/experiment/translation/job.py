"""Translation as a job of the trainer: every direction is a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradvac.data.batches import Batch, in_order
from gradvac.errors import RecipeError
from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.run.checkpoint import list_checkpoints
from gradvac.experiment.run.folder import fill
from gradvac.experiment.training.job import Job, Prepared
from gradvac.experiment.training.metrics import averages
from gradvac.experiment.translation.model_folder import find_model, load_tensors, save_shape
from gradvac.experiment.translation.recipe import Recipe
from gradvac.text.languages import Direction
from gradvac.translation.clsr import OF_LANGUAGES, make_transformer
from gradvac.translation.shapes import PRESETS, TransformerConfig
from gradvac.translation.transformer import Transformer
from gradvac.translation.vocabulary import Vocabulary

VALIDATION_TOKENS = 8192  # padded cells per validation batch; affects only speed


class TranslationJob(Job[Batch]):
    """The Transformer of a recipe on the text of a prepared run folder."""

    model: Transformer

    def __init__(self, prepared: Prepared[Recipe, Vocabulary]) -> None:
        vocabulary, recipe = prepared.vocabulary, prepared.recipe
        super().__init__(prepared, {"vocabulary": vocabulary.fingerprint})
        tags = {vocabulary.tag_id(Direction.parse(t).target) for t in prepared.tasks}
        model = build_model(recipe, len(vocabulary), sorted(tags))
        start = recipe.training.start_from
        if start and not list_checkpoints(self.folder / "checkpoints"):
            file = find_model(resolve(start)).parameters
            fill(model, load_tensors(file), file)
        self.model = model.to(self.device)
        save_shape(self.folder, self.model.config)

    def batch(self, number: int) -> Batch:
        """Sentence pairs of several directions."""
        return self.balance.plan(number)

    def begin(self, step: int) -> dict[str, Any] | None:
        """Learn new shares if due; set the position of the model in its schedule."""
        self.model.begin_step(step / self.recipe.training.steps)
        return super().begin(step)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Label-smoothed loss, plain negative log-likelihood and sentence of each target token."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss, nll, _ = self.model.token_losses(
                batch.source,
                batch.target_in,
                batch.target_out,
                self.recipe.training.label_smoothing,
                batch.kept,
            )
        return loss, nll.detach(), batch.rows

    def mean_loss(self, drawn: Batch) -> Tensor:
        """The scalar training loss of drawn sentences on any device."""
        return self.losses(drawn.to(self.device))[0].mean()

    def auxiliary_loss(self) -> Tensor | None:
        """The budget loss of a model with language-specific routing."""
        return self.model.auxiliary_loss()

    @torch.no_grad()
    def validation_nll(self) -> dict[str, float]:
        """Mean negative log-likelihood per target token of every direction."""
        self.model.eval()
        tasks = tuple(self.prepared.valid)
        sums = torch.zeros(len(tasks), 2, dtype=torch.float64)
        for index, batch, counts in self.validation_batches(tasks):
            values = self.losses(batch.to(self.device))[1]
            if counts:
                own = [float(values.sum(dtype=torch.float64)), values.numel()]
                sums[index] += torch.tensor(own, dtype=torch.float64)
        sums = self.added_up(sums)
        return dict(zip(tasks, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))

    def validation_batches(self, tasks: tuple[str, ...]) -> Iterator[tuple[int, Batch, bool]]:
        """Batches of validation text: index of the task, sentences, whether they count."""
        for index in range(len(tasks)):
            for batch in in_order(self.prepared.valid, tasks, index, VALIDATION_TOKENS):
                yield index, batch, True

    def added_up(self, sums: Tensor) -> Tensor:
        """Sums over all ranks; here one process."""
        return sums

    def validate(self) -> dict[str, float]:
        """NLL and perplexity, by resource level and by direction."""
        return averages(self.validation_nll(), self.levels) if self.prepared.valid else {}

    def describe(self) -> list[str]:
        """How directions are drawn, and the size of the model."""
        return [self.balance.table(), parameter_count(self.model)]


def build_model(recipe: Recipe, vocabulary_size: int, tags: Sequence[int] = ()) -> Transformer:
    """The Transformer of a recipe, initialised from its seed.

    ``tags`` are the ids of the target-language tags, for models with language-specific routing.
    """
    section = recipe.model.model_dump(exclude={"preset", "clsr"}, exclude_none=True)
    shape: dict[str, Any] = {**PRESETS[recipe.model.preset], **section}
    if clsr := recipe.model.clsr:
        shape |= {"clsr_tags": tags, "clsr_hidden": clsr.hidden, "clsr_budget": clsr.budget}
    try:
        config = TransformerConfig(vocabulary_size=vocabulary_size, **shape)
    except ValueError as e:
        raise RecipeError(f"model: {e}") from e
    torch.manual_seed(recipe.seed)
    return make_transformer(config)


def parameter_count(model: Transformer) -> str:
    """The number of parameters, in words, and how many are language-specific."""
    total = sum(p.numel() for p in model.parameters())
    own = sum(p.numel() for name, p in model.named_parameters() if name.startswith(OF_LANGUAGES))
    return f"{total:,} parameters" + (f", {own:,} of them of single languages" if own else "")
