"""Translation as a kind of job: every direction is a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradvac.engine.ranks.group import Ranks
from gradvac.experiment.recipe.paths import RECIPE, TASKS
from gradvac.experiment.recipe.variants import read_yaml
from gradvac.experiment.run.files import VOCABULARY
from gradvac.experiment.run.folder import TaskInfo, any_recipe
from gradvac.experiment.training.job import Job, Prepared, RankJob
from gradvac.experiment.training.kind import Kind, Say, Scored
from gradvac.experiment.training.prepare import text_key
from gradvac.experiment.translation.recipe import Recipe
from gradvac.text.scripts import script
from gradvac.translation.vocabulary import Vocabulary


class TranslationKind(Kind[Recipe, Vocabulary]):
    """Parallel text, a SentencePiece vocabulary, the Transformer."""

    recipe = Recipe
    parts = ("data", VOCABULARY)
    on_ranks = True
    samples = True

    def prepare_text(self, recipe: Recipe, folder: Path, say: Say) -> dict[str, TaskInfo]:
        """Clean and encode parallel text, and train the vocabulary if none is given."""
        from gradvac.experiment.translation.prepare import prepare_text

        return prepare_text(recipe, folder, say)

    def text_of(self, recipe: Recipe) -> list[Any]:
        """Data, vocabulary, and the model that the run starts from, if any."""
        tree = recipe.model_dump(mode="json")
        if recipe.vocabulary.normalization == "nmt_nfkc":  # earlier text keys did not have it
            del tree["vocabulary"]["normalization"]
        return [tree["data"], tree["vocabulary"], tree["training"]["start_from"]]

    def open(self, folder: Path) -> Prepared[Recipe, Vocabulary]:
        """The encoded pairs of every direction, and the vocabulary."""
        from gradvac.experiment.translation.prepare import open_prepared

        return open_prepared(folder)

    def in_store(self, recipe: Recipe, store: Path, say: Say) -> Recipe:
        """The recipe, with the normalization of text prepared by an earlier version."""
        earlier = recipe.with_normalization("nmt_nfkc")
        text = store / f"text-{text_key(earlier)}"
        if recipe.chooses_normalization or not (text / TASKS).exists():
            return recipe
        if "normalization" in read_yaml(text / RECIPE).get("vocabulary", {}):  # a variant chose it
            return recipe
        say("the text of this sweep was prepared with vocabulary.normalization: nmt_nfkc")
        return earlier

    def with_text(self, recipe: Recipe, text: Path, tasks: Mapping[str, TaskInfo]) -> Recipe:
        """The recipe with the normalization of the vocabulary."""
        return recipe.with_normalization(Vocabulary.load(text / VOCABULARY).normalization)

    def resumed(self, recipe: Recipe, folder: Path) -> Recipe:
        """The recipe with the normalization of the run, unless the recipe sets one."""
        kept = any_recipe(folder)
        if recipe.chooses_normalization or not isinstance(kept, Recipe):
            return recipe
        return recipe.with_normalization(kept.vocabulary.normalization)

    def job(self, prepared: Prepared[Recipe, Vocabulary]) -> Job[Any]:
        """The Transformer on the pairs of all directions."""
        from gradvac.experiment.translation.job import TranslationJob

        return TranslationJob(prepared)

    def rank_job(self, prepared: Prepared[Recipe, Vocabulary], ranks: Ranks) -> RankJob[Any]:
        """The same, on a part of each batch."""
        from gradvac.experiment.translation.shared_job import SharedJob

        return SharedJob(prepared, ranks)

    def score(
        self, folder: Path, options: Mapping[str, Any], say: Say, ranks: Ranks | None = None
    ) -> Scored:
        """Translate the test set in every direction; BLEU, chrF++ and their signatures."""
        from gradvac.experiment.translation.evaluate import evaluate_run, score_table

        scores = evaluate_run(folder, **options, say=say, ranks=ranks)
        title = f"{folder}: {test}" if (test := options.get("test")) else str(folder)
        return Scored(score_table(title, scores), list(scores.signatures.values()))

    def measure(
        self,
        run: Path,
        out: Path | None = None,
        rows: Path | None = None,
        directions: Sequence[str] | None = None,
        **options: Any,
    ) -> Path:
        """Measure on the same sentences in all directions."""
        from gradvac.experiment.translation.geometry import measure_run

        return measure_run(run, out, rows=rows, directions=directions, **options)

    def scripts(self, folder: Path, codes: Sequence[str]) -> dict[str, str]:
        """From the validation rows of a run, or its test rows."""
        from gradvac.experiment.translation.prepare import test_rows

        if not (folder / "data" / "test.jsonl").exists():
            return {}
        rows = test_rows(folder, "valid") or test_rows(folder)
        return {c: script([r.texts[c] for r in rows[:200] if c in r.texts]) for c in codes}


KIND = TranslationKind()
