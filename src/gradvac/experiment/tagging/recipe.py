"""Recipes of sequence labelling, ``job: tagging``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.recipe.sections import (
    BaseRecipe,
    Count,
    Positive,
    SamplingSection,
    Section,
    Share,
    TrainingSection,
    check_names,
)
from gradvac.tagging.labels import UPOS, iob2
from gradvac.tagging.readers import FORMATS

Place = Callable[[str], str]


class FileSection(Section):
    """A file of tagged sentences, or only its ``rows`` [first, after the last].

    A plain string is a path. ``format`` is by default that of the language; ``split`` is for the
    format `datasets`.
    """

    path: str
    format: str | None = None
    rows: tuple[Annotated[int, Field(ge=0)], Count] | None = None
    split: str = "train"

    @model_validator(mode="before")
    @classmethod
    def _a_string_is_a_path(cls, found: Any) -> Any:
        return {"path": found} if isinstance(found, str) else found

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, name: str | None) -> str | None:
        return name if name is None else _known_format(name)


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise ValueError(f"found {name!r}, must be {', '.join(FORMATS)}")
    return name


class LanguageSection(Section):
    """The files of one language, each part in order; ``map`` renames tags."""

    format: str = "conllu"
    map: dict[str, str] = Field(default={})
    train: list[FileSection] = Field(min_length=1)
    valid: list[FileSection] = Field(default=[])
    test: list[FileSection] = Field(default=[])
    max_sentences: Count | None = None

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, name: str) -> str:
        return _known_format(name)


class TaggingDataSection(Section):
    """Tagged text by language; paths are relative to ``folder``, by default the recipe's folder.

    ``labels``: kinds of entities for ``ner``, tags for ``pos`` (by default UPOS); languages may
    use fewer, but no others. ``shared``: the labels are those that all languages use, which must be
    the same. ``max_sentences`` is the maximum number of training sentences of each language, from
    the first on; ``max_held_out`` the same for validation and test text.
    """

    task: Literal["ner", "pos"]
    labels: list[str] | Literal["shared"] | None = None
    folder: str | None = None
    languages: dict[str, LanguageSection] = Field(min_length=1)
    max_sentences: Count | None = None
    max_held_out: Count | None = None
    max_tokens: Annotated[int, Field(ge=3)] = 128
    on_problem: Literal["drop", "fail"] = "fail"
    levels: tuple[Count, Count] | None = None

    @field_validator("languages")
    @classmethod
    def _languages_are_codes(cls, found: Any) -> Any:
        return check_names(found)

    def fixed_labels(self) -> list[str] | None:
        """The labels in order; None if they come from the text."""
        if self.labels == "shared":
            return None
        if self.task == "ner":
            return iob2(self.labels or ["PER", "ORG", "LOC"])
        return list(self.labels or UPOS)

    def placed(self, place: Place) -> TaggingDataSection:
        """The same with absolute file names; names of data sets on a hub are unchanged."""
        folder = place(self.folder) if self.folder is not None else None

        def move(file: FileSection, format: str) -> FileSection:
            inner = Path(folder or ".", file.path)
            absolute = str(inner) if folder and not Path(file.path).is_absolute() else file.path
            absolute = place(absolute)
            if format == "datasets" and not Path(absolute).exists():
                absolute = file.path
            return file.model_copy(update={"path": absolute})

        return self.model_copy(
            update={
                "folder": folder,
                "languages": {
                    code: own.model_copy(
                        update={
                            part: [move(f, f.format or own.format) for f in getattr(own, part)]
                            for part in ("train", "valid", "test")
                        }
                    )
                    for code, own in self.languages.items()
                },
            }
        )


class EncoderSection(Section):
    """The pretrained encoder: a folder (or run of `gradvac pretrain-encoder`), or a hub name."""

    encoder: str
    dropout: Share | None = None

    def placed(self, place: Place) -> EncoderSection:
        """The same with an absolute folder; a name that is not a folder here is a hub name."""
        folder = resolve(place(self.encoder))
        if (folder / "best" / "config.json").exists():
            folder /= "best"
        return self.model_copy(update={"encoder": str(folder) if folder.is_dir() else self.encoder})


class SentenceBatchSection(SamplingSection):
    """Batches of ``sentences`` sentences, and how often each language is drawn."""

    sentences: Count = 32
    temperature: float | list[tuple[int, float]] = 1.0

    @property
    def size(self) -> int:
        """Sentences per batch."""
        return self.sentences


class FineTuningSection(TrainingSection):
    """Fine-tuning: ``epochs`` or ``steps``, linear decay; validation after each epoch.

    The warm-up is ``warmup`` steps or the share ``warmup_share`` of all steps. By default,
    validation and checkpoints are made after each epoch.
    """

    epochs: Positive | None = 10
    steps: Count = 1000
    learning_rate: Positive = 2e-5
    warmup: Count = 100
    warmup_share: Share | None = 0.1
    schedule: Literal["inverse_sqrt", "linear"] = "linear"
    betas: tuple[Share, Share] = (0.9, 0.999)
    label_smoothing: Share = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    keep: Count = 1
    metric: str = "error"

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, found: Any) -> Any:
        """If steps are set, ignore the default of epochs."""
        for given, other in (("steps", "epochs"), ("warmup", "warmup_share")):
            if isinstance(found, dict) and given in found and other not in found:
                found = {**found, other: None}
        return found


class TaggingRecipe(BaseRecipe):
    """A complete experiment of sequence labelling: every language is a task."""

    kind = "tagging"
    ignored: ClassVar[Mapping[str, str]] = {
        "training.start_from": "name the encoder to start from as model.encoder",
        "training.shard": "leave it out: a run of tagging is trained by one process",
    }
    valid_at = "data.languages"
    job: Literal["tagging"] = "tagging"
    data: TaggingDataSection
    model: EncoderSection
    batches: SentenceBatchSection = SentenceBatchSection()  # pyright: ignore[reportIncompatibleVariableOverride]
    training: FineTuningSection = FineTuningSection()  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def has_test(self) -> bool:
        """Whether a language has test files."""
        return any(own.test for own in self.data.languages.values())

    @property
    def has_validation(self) -> bool:
        """Whether a language has validation files."""
        return any(own.valid for own in self.data.languages.values())

    @property
    def searched(self) -> str:
        """The metric that selects the best parameters (Wang et al. 2021, appendix G)."""
        return self.training.metric

    def start_in_words(self) -> str:
        """The encoder that training starts from."""
        return "its encoder"

    def batch_in_words(self) -> str:
        """The amount of text per update, in words."""
        return f"{self.batch_size:,} sentences"

    def model_in_words(self) -> str:
        """The name of the encoder."""
        return self.model.encoder

    def placed(self, place: Place) -> TaggingRecipe:
        """The same with ``place`` applied to every relative file name."""
        return self.model_copy(
            update={"data": self.data.placed(place), "model": self.model.placed(place)}
        )
