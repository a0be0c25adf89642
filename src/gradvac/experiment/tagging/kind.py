"""Sequence labelling as a kind of job: every language is a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradvac.engine.ranks.group import Ranks
from gradvac.errors import RunError
from gradvac.experiment.run.folder import TaskInfo
from gradvac.experiment.tagging.recipe import TaggingRecipe
from gradvac.experiment.training.job import Job, Prepared
from gradvac.experiment.training.kind import Kind, Say, Scored
from gradvac.text.scripts import script


class TaggingKind(Kind[TaggingRecipe, Any]):
    """Tagged text, and a pretrained encoder with its tokenizer."""

    recipe = TaggingRecipe
    parts = ("data", "best")

    def prepare_text(self, recipe: TaggingRecipe, folder: Path, say: Say) -> dict[str, TaskInfo]:
        """Read and encode tagged text, and write the shape of the model with its labels."""
        from gradvac.experiment.tagging.prepare import prepare_text

        return prepare_text(recipe, folder, say)

    def text_of(self, recipe: TaggingRecipe) -> list[Any]:
        """Data, and the encoder, which has the tokenizer."""
        return [recipe.data.model_dump(mode="json"), recipe.model.model_dump(mode="json")]

    def open(self, folder: Path) -> Prepared[TaggingRecipe, Any]:
        """The encoded sentences of every language, and the tokenizer."""
        from gradvac.experiment.tagging.prepare import open_tagging

        return open_tagging(folder)

    def with_text(
        self, recipe: TaggingRecipe, text: Path, tasks: Mapping[str, TaskInfo]
    ) -> TaggingRecipe:
        """The recipe with its epochs converted to steps."""
        from gradvac.experiment.tagging.prepare import scheduled

        return scheduled(recipe, tasks)

    def resumed(self, recipe: TaggingRecipe, folder: Path) -> TaggingRecipe:
        """The recipe with steps; keys derived from them are those of the run."""
        from gradvac.experiment.tagging.prepare import as_scheduled

        return as_scheduled(recipe, folder)

    def job(self, prepared: Prepared[TaggingRecipe, Any]) -> Job[Any]:
        """The encoder and a linear layer on the sentences of all languages."""
        from gradvac.experiment.tagging.job import TaggingJob

        return TaggingJob(prepared)

    def score(
        self, folder: Path, options: Mapping[str, Any], say: Say, ranks: Ranks | None = None
    ) -> Scored | None:
        """Tag the test set of every language; F1 and accuracy. Only on rank 0."""
        from gradvac.experiment.tagging.evaluate import evaluate_tagging, score_table

        others = {k: v for k, v in options.items() if k != "checkpoint"}
        if given := [key for key, value in others.items() if value not in (None, [])]:
            names = ", ".join(f"--{key.replace('_', '-')}" for key in given)
            raise RunError(f"{folder}: {names}: of translation alone, and this is a run of tagging")
        if ranks is not None and ranks.rank:
            return None
        scores = evaluate_tagging(folder, options.get("checkpoint", "best"), say)
        return Scored(score_table(str(folder), scores))

    def measure(
        self,
        run: Path,
        out: Path | None = None,
        rows: Path | None = None,
        directions: Sequence[str] | None = None,
        **options: Any,
    ) -> Path:
        """Measure on the validation text of each language."""
        from gradvac.experiment.tagging.geometry import measure_tagging

        if rows is not None:
            raise RunError(
                f"--rows: found {rows}, which has no tags; a run of tagging is measured on its own "
                "validation text"
            )
        if directions:
            raise RunError(f"--directions: found {','.join(directions)}; this run has languages")
        return measure_tagging(run, out, **options)

    def scripts(self, folder: Path, codes: Sequence[str]) -> dict[str, str]:
        """From the test sentences of a run."""
        from gradvac.experiment.tagging.prepare import test_sentences

        if not (folder / "data" / "test.jsonl").exists():
            return {}
        tagged = test_sentences(folder)
        return {c: script([" ".join(words) for words, _ in tagged.get(c, [])]) for c in codes}


KIND = TaggingKind()
