"""Recipes of translation, the default job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.recipe.sections import (
    BaseRecipe,
    BatchSection,
    CleaningSection,
    Count,
    FolderName,
    Languages,
    Section,
    Share,
    SourceSection,
    Unbounded,
    check_codes,
    underscored,
)
from gradvac.text.languages import ENGLISH, Direction, same_language
from gradvac.translation.tokenizers import FILE, VOCABULARY, check_tokenizer
from gradvac.translation.vocabulary import Normalization

Sources = list[SourceSection]
TestSets = Annotated[
    Annotated[Sources, Tag("list")] | Annotated[dict[FolderName, Sources], Tag("named")],
    Discriminator(lambda found: "named" if isinstance(found, dict) else "list"),
]
"""One test set, or several by name."""


class DataSection(Section):
    """Corpora and the directions to learn.

    ``corpus`` is a folder made by `gradvac corpus`: the default for train, valid and test. ``test``
    is one test set, or several by name, which are scored and compared apart.
    """

    corpus: str | None = None
    train: list[SourceSection] = Field(default=[])
    valid: list[SourceSection] = Field(default=[])
    test: TestSets = Field(default=[])
    directions: Literal["to_en", "from_en", "both"] | Languages = "both"
    languages: Languages | None = None
    cleaning: CleaningSection = CleaningSection()
    on_problem: Literal["drop", "fail"] = "drop"
    max_tokens: Count = 256
    max_pairs: Count | dict[str, Count] | None = None
    max_valid: Count | None = None
    levels: tuple[Count, Count] | None = None

    @model_validator(mode="after")
    def _there_is_text(self) -> DataSection:
        if not self.train and self.corpus is None:
            raise ValueError("give train (sources of text) or corpus (a folder of gradvac corpus)")
        return self

    @field_validator("test", mode="before")
    @classmethod
    def _one_source_is_a_list(cls, found: Any) -> Any:
        if not isinstance(found, dict):
            return found
        named = cast(dict[str, Any], found)
        if "path" in named or "paths" in named:
            raise ValueError("write one test set as a list, [{path: ...}], several as NAME: [...]")
        if empty := [name for name, sources in named.items() if not sources]:
            raise ValueError(f"the test set {empty[0]!r} names no source of text")
        return {k: [v] if isinstance(v, dict) else v for k, v in named.items()}

    @property
    def tests(self) -> dict[str, Sources]:
        """The sources of each test set by name; the name of a single one is empty."""
        if isinstance(self.test, dict):
            return self.test
        return {"": self.test} if self.test else {}

    @field_validator("languages")
    @classmethod
    def _languages_are_codes(cls, found: list[str] | None) -> list[str] | None:
        return check_codes(found and [underscored(tag) for tag in found])

    @field_validator("directions", "max_pairs")
    @classmethod
    def _directions_parse(cls, found: Any) -> Any:
        try:
            for name in found if isinstance(found, list | dict) else []:
                Direction.parse(name)
        except RecipeError as e:
            raise ValueError(str(e)) from e
        return found


class VocabularySection(Section):
    """The shared SentencePiece vocabulary; ``path`` reuses one instead of training it."""

    size: Annotated[int, Field(ge=300)] = 64_000
    temperature: Unbounded = 5.0
    sample: Count = 1_000_000
    byte_fallback: bool = True
    character_coverage: Annotated[float, Field(gt=0, le=1)] = 0.9995
    symbols: list[str] = Field(default=[])
    normalization: Normalization = "nfc"
    path: str | None = None


class CLSRSection(Section):
    """Language-specific routing (Zhang et al. 2021): share of such tokens, width of gates."""

    budget: Annotated[float, Field(ge=0, le=1)] = 0.3
    hidden: Count = 128


class ModelSection(Section):
    """A preset of the Transformer, and keys that change it."""

    preset: Literal["tiny", "small", "base", "big"] = "base"
    d_model: Count | None = None
    d_ffn: Count | None = None
    heads: Count | None = None
    encoder_layers: Count | None = None
    decoder_layers: Count | None = None
    dropout: Share | None = None
    attention_dropout: Share | None = None
    activation_dropout: Share | None = None
    norm: Literal["pre", "post"] | None = None
    activation: Literal["relu", "gelu"] | None = None
    clsr: CLSRSection | None = None


class SearchSection(Section):
    """Beam search for scoring."""

    beam: Count = 5
    length_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    batch_tokens: Count = 8192
    sentences: Count | None = None
    bleu_tokenize: str | None = None
    zero_shot: Literal["all"] | list[str] = Field(default=[])

    @field_validator("bleu_tokenize")
    @classmethod
    def _tokenizer_is_known(cls, name: str | None) -> str | None:
        return name if name is None else check_tokenizer(name)

    @field_validator("zero_shot")
    @classmethod
    def _directions_parse(cls, found: Any) -> Any:
        try:
            for name in found if isinstance(found, list) else []:
                Direction.parse(name)
        except RecipeError as e:
            raise ValueError(str(e)) from e
        return found


class Recipe(BaseRecipe):
    """A complete translation experiment."""

    kind = "translation"
    data: DataSection
    vocabulary: VocabularySection = VocabularySection()
    model: ModelSection = ModelSection()
    batches: BatchSection = BatchSection()  # pyright: ignore[reportIncompatibleVariableOverride]
    search: SearchSection = SearchSection()

    @classmethod
    def of_run(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """Set the normalization nmt_nfkc of earlier versions."""
        section = tree.setdefault("vocabulary", {})
        if isinstance(section, dict):
            section.setdefault("normalization", "nmt_nfkc")
        return super().of_run(tree)

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return bool(self.data.test)

    @property
    def test_sets(self) -> tuple[str, ...]:
        """The names of the test sets; the name of a single one is empty."""
        return tuple(self.data.tests)

    @property
    def has_validation(self) -> bool:
        """Whether there is validation text."""
        return bool(self.data.valid)

    def start_in_words(self) -> str:
        """The name of the model that training starts from, if any."""
        start = self.training.start_from
        return Path(start).name if start else super().start_in_words()

    def more_steps_in_words(self) -> str:
        """The schedule of CLSR."""
        return "the gates of CLSR go back in their schedule" if self.model.clsr else ""

    def comparable(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Without the normalization, unless the recipe sets one: it is a property of the text."""
        if not self.chooses_normalization and isinstance(section := tree.get("vocabulary"), dict):
            section.pop("normalization", None)
        return tree

    @property
    def chooses_normalization(self) -> bool:
        """Whether the recipe sets the normalization of its vocabulary."""
        given = self.vocabulary.path or self.training.start_from
        return not given and "normalization" in self.vocabulary.model_fields_set

    def with_normalization(self, name: str) -> Recipe:
        """The recipe with the normalization ``name`` of its vocabulary, if it is a known one."""
        if name == self.vocabulary.normalization or name not in get_args(Normalization):
            return self
        section = self.vocabulary.model_copy(update={"normalization": name})
        return self.model_copy(update={"vocabulary": section})

    def batch_in_words(self) -> str:
        """The amount of text per update, in words."""
        return f"{self.batch_size:,} target tokens"

    def model_in_words(self) -> str:
        """The model in words, for a run without a model yet."""
        return f"preset {self.model.preset}"

    def placed(self, place: Callable[[str], str]) -> Recipe:
        """The same with ``place`` applied to every relative file name."""
        return _absolute(self, place)

    @model_validator(mode="after")
    def _routing_is_trained_jointly(self) -> Recipe:
        if self.model.clsr and self.method.name != "joint":
            raise ValueError(
                f"model.clsr: its budget is of whole batches, no task's own: with method.name "
                f"{self.method.name!r} it cannot be trained; set method.name to 'joint'"
            )
        return self


def _absolute(recipe: Recipe, file: Callable[[str], str]) -> Recipe:
    """Make every file name of the recipe independent of the working directory."""

    def place(name: str | None) -> str | None:
        return name if name is None else file(name)

    tokenize = recipe.search.bleu_tokenize
    if tokenize and tokenize.startswith(FILE) and tokenize != VOCABULARY:
        tokenize = f"{FILE}{place(tokenize.removeprefix(FILE))}"
    data = recipe.data
    placed = lambda sources: [source.placed(file) for source in sources]
    texts: dict[str, Any] = {part: placed(getattr(data, part)) for part in ("train", "valid")}
    texts["test"] = (
        {name: placed(own) for name, own in data.test.items()}
        if isinstance(data.test, dict)
        else placed(data.test)
    )
    corpus = place(data.corpus)
    if corpus is not None:
        for part, found in _of_corpus(resolve(corpus), data.languages).items():
            texts[part] = texts[part] or found
    return recipe.model_copy(
        update={
            "data": data.model_copy(update={**texts, "corpus": corpus}),
            "vocabulary": recipe.vocabulary.model_copy(
                update={"path": place(recipe.vocabulary.path)}
            ),
            "training": recipe.training.model_copy(
                update={"start_from": place(recipe.training.start_from)}
            ),
            "search": recipe.search.model_copy(update={"bleu_tokenize": tokenize}),
        }
    )


def _of_corpus(folder: Path, languages: list[str] | None) -> dict[str, list[SourceSection]]:
    """The text of a `gradvac corpus` folder, without training files of other languages."""
    there = sorted((folder / "train").glob("*.tsv"))
    wanted = (*(languages or ()), ENGLISH)
    named = lambda code: any(same_language(code, w) for w in wanted)
    train = [f for f in there if not languages or all(map(named, f.stem.split("-")))]
    if not train:
        have = ", ".join(f.stem for f in there) or "no file"
        raise RecipeError(
            f"data.corpus: {folder}: no train/*.tsv to read; there is {have}. Make one with "
            "gradvac corpus debian or gradvac corpus import"
        )
    files = {"train": train, **{part: [folder / f"{part}.tsv"] for part in ("valid", "test")}}
    return {
        part: [SourceSection(path=str(file)) for file in own if file.exists()]
        for part, own in files.items()
    }
