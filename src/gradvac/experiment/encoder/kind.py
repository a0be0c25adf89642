"""Masked-language-model training as a kind of job: every language is a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradvac.engine.ranks.group import Ranks
from gradvac.errors import RunError
from gradvac.experiment.encoder.recipe import EncoderRecipe
from gradvac.experiment.run.folder import TaskInfo
from gradvac.experiment.training.job import Job, Prepared
from gradvac.experiment.training.kind import Kind, Say, Scored


class EncoderKind(Kind[EncoderRecipe, Any]):
    """Plain text, a WordPiece tokenizer, a BERT."""

    recipe = EncoderRecipe
    parts = ("data", "best")

    def prepare_text(self, recipe: EncoderRecipe, folder: Path, say: Say) -> dict[str, TaskInfo]:
        """Read the text of every language, train the tokenizer, encode."""
        from gradvac.experiment.encoder.prepare import prepare_text

        return prepare_text(recipe, folder, say)

    def text_of(self, recipe: EncoderRecipe) -> list[Any]:
        """Data, vocabulary, and the shape of the model, which is stored beside the tokenizer."""
        tree = recipe.model_dump(mode="json")
        data = {**tree["data"], "test": []}  # for the same text key as in earlier versions
        return [data, tree["vocabulary"], tree["model"]]

    def open(self, folder: Path) -> Prepared[EncoderRecipe, Any]:
        """The encoded sentences of every language, and the tokenizer."""
        from gradvac.experiment.encoder.prepare import open_encoder

        return open_encoder(folder)

    def job(self, prepared: Prepared[EncoderRecipe, Any]) -> Job[Any]:
        """The BERT on masked sentences of all languages."""
        from gradvac.experiment.encoder.job import EncoderJob

        return EncoderJob(prepared)

    def score(
        self, folder: Path, options: Mapping[str, Any], say: Say, ranks: Ranks | None = None
    ) -> Scored:
        """Raise RunError: an encoder has no scores."""
        raise RunError(f"{folder}: a run of an encoder has no test set; gradvac report shows it")

    def measure(
        self,
        run: Path,
        out: Path | None = None,
        rows: Path | None = None,
        directions: Sequence[str] | None = None,
        **options: Any,
    ) -> Path:
        """Raise RunError: the masked subwords would differ between measurements."""
        raise RunError(f"{run}: a run of an encoder; those of translation and tagging are measured")


KIND = EncoderKind()
