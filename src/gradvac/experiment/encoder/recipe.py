"""Recipes of encoders: masked-language-model training, ``job: encoder``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from gradvac.experiment.recipe.sections import (
    BaseRecipe,
    BatchSection,
    Count,
    Languages,
    Positive,
    Section,
    Share,
    SourceSection,
    TrainingSection,
    Unbounded,
    check_names,
)
from gradvac.experiment.tagging.recipe import LanguageSection, Place, TaggingDataSection


class EncoderDataSection(Section):
    """Text of each language, from parallel and tagged corpora."""

    parallel: list[SourceSection] = Field(default=[])
    valid: list[SourceSection] = Field(default=[])
    tagged: dict[str, LanguageSection] = Field(default={})
    folder: str | None = None
    languages: Languages | None = None
    max_sentences: Count | None = None
    max_held_out: Count | None = None
    max_tokens: Annotated[int, Field(ge=3)] = 128

    @field_validator("languages", "tagged")
    @classmethod
    def _languages_are_codes(cls, found: Any) -> Any:
        return check_names(found)

    @model_validator(mode="after")
    def _some_text(self) -> EncoderDataSection:
        if not self.parallel and not self.tagged:
            raise ValueError("give parallel or tagged: there is no text to train on")
        return self


class WordPieceSection(Section):
    """The vocabulary of an encoder: WordPiece, trained on text sampled by temperature."""

    size: Annotated[int, Field(ge=100)] = 8000
    temperature: Unbounded = 5.0
    sample: Count = 200_000


class ShapeSection(Section):
    """The shape of a BERT; ``masked`` is the share of masked subwords."""

    hidden_size: Count = 128
    num_hidden_layers: Count = 4
    num_attention_heads: Count = 4
    intermediate_size: Count = 512
    max_position_embeddings: Count = 128
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1
    masked: Annotated[float, Field(gt=0, lt=1)] = 0.15

    def of_bert(self) -> dict[str, Any]:
        """The same as arguments of BertConfig."""
        return self.model_dump(exclude={"masked"})


class PretrainingSection(TrainingSection):
    """As Devlin et al. 2019: linear decay, AdamW with weight decay."""

    learning_rate: Positive = 5e-4
    warmup: Count = 200
    schedule: Literal["inverse_sqrt", "linear"] = "linear"
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    label_smoothing: Share = 0.0
    keep: Count = 1


class EncoderRecipe(BaseRecipe):
    """Masked-language-model training of an encoder: every language is a task."""

    kind = "encoder"
    ignored: ClassVar[Mapping[str, str]] = {
        "training.start_from": "leave it out: an encoder is trained from random parameters",
        "training.shard": "leave it out: an encoder is trained by one process",
        "training.label_smoothing": "leave it out: the loss of masked text is not smoothed",
    }
    job: Literal["encoder"] = "encoder"
    data: EncoderDataSection
    vocabulary: WordPieceSection = WordPieceSection()
    model: ShapeSection = ShapeSection()
    batches: BatchSection = BatchSection()  # pyright: ignore[reportIncompatibleVariableOverride]
    training: PretrainingSection = PretrainingSection()  # pyright: ignore[reportIncompatibleVariableOverride]

    @classmethod
    def of_run(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """Remove the empty list of test files that earlier versions wrote."""
        if isinstance(data := tree.get("data"), dict) and data.get("test") == []:
            del data["test"]
        return super().of_run(tree)

    @property
    def has_validation(self) -> bool:
        """Whether there is validation text."""
        return bool(self.data.valid) or any(own.valid for own in self.data.tagged.values())

    def batch_in_words(self) -> str:
        """The amount of text per update, in words."""
        return f"{self.batch_size:,} subwords"

    def model_in_words(self) -> str:
        """The shape of the encoder."""
        return f"BERT, {self.model.num_hidden_layers} layers, width {self.model.hidden_size}"

    def placed(self, place: Place) -> EncoderRecipe:
        """The same with ``place`` applied to every relative file name."""
        data = self.data
        if data.tagged:
            inner = TaggingDataSection(task="pos", folder=data.folder, languages=data.tagged)
            moved = inner.placed(place)
            data = data.model_copy(update={"tagged": moved.languages, "folder": moved.folder})
        parts = {
            name: [source.placed(place) for source in getattr(data, name)]
            for name in ("parallel", "valid")
        }
        return self.model_copy(update={"data": data.model_copy(update=parts)})

    @model_validator(mode="after")
    def _positions_are_enough(self) -> EncoderRecipe:
        if self.data.max_tokens > self.model.max_position_embeddings:
            raise ValueError(
                f"data.max_tokens: found {self.data.max_tokens}, must not exceed "
                f"model.max_position_embeddings, {self.model.max_position_embeddings}"
            )
        return self
