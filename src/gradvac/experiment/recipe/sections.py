"""The sections of recipes, and the base class of all recipes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.method_options import (
    READERS,
    check_name,
    import_methods,
    make_method,
    of_a_run,
    with_old_keys,
)
from gradvac.experiment.recipe.paths import resolve
from gradvac.text.cleaning import CleaningRules
from gradvac.text.languages import ENGLISH, LONGEST_CODE, is_code
from gradvac.text.sources import Source

VERSION = 1
"""Version of the recipe format; increased when a key is renamed or its meaning changes."""
SEEDS = 2**64
"""PyTorch's generators take seeds below it."""
_PLAIN = r"[\w.-]*[\w-][\w.-]*"  # also the name of a folder, so not .. nor /
_LONGEST = 100  # characters in a name used for a folder: file systems allow 255 bytes
FolderName = Annotated[str, Field(pattern=f"^{_PLAIN}$", max_length=_LONGEST)]
Granularity = Literal[
    "whole_model", "enc_dec", "all_layer", "all_module", "all_adapter", "all_matrix"
]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Unbounded = Annotated[float, Field(gt=0)]
"""Positive, or ``.inf``, which means uniform shares or no limit."""
Languages = Annotated[list[str], Field(min_length=1)]


class Section(BaseModel):
    """A section of a recipe: unknown keys are errors, values are never converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def underscored(tag: str) -> str:
    """A tag with underscores: a hyphen separates the languages of a direction."""
    return tag.replace("-", "_")


class SourceSection(Section):
    """Where parallel text comes from: one table, or one file per language."""

    format: Literal["tsv", "text", "jsonl", "mo", "po", "csv"] | None = None
    path: str | None = None
    paths: Annotated[dict[str, str], Field(min_length=1)] | None = None
    languages: Languages | None = None
    msgid: str = ENGLISH
    check: bool = True
    quoted: bool = False
    unescape: bool = False

    @field_validator("paths")
    @classmethod
    def _tags_have_underscores(cls, found: dict[str, str] | None) -> dict[str, str] | None:
        paths = found and {underscored(tag): path for tag, path in found.items()}
        if found and paths and len(paths) < len(found):
            raise ValueError(f"found {', '.join(found)}: a language is named twice")
        return paths

    @field_validator("languages")
    @classmethod
    def _columns_have_underscores(cls, found: list[str] | None) -> list[str] | None:
        return found and [underscored(tag) for tag in found]

    def source(self) -> Source:
        """The same as a `Source`, for the readers; ``shipped:`` names become files."""
        return Source(
            format=self.format,
            path=resolve(self.path) if self.path else None,
            paths={k: resolve(v) for k, v in self.paths.items()} if self.paths else None,
            languages=tuple(self.languages) if self.languages else None,
            msgid_language=self.msgid,
            check=self.check,
            quoted=self.quoted,
            unescape=self.unescape,
        )

    def placed(self, place: Callable[[str], str]) -> SourceSection:
        """The same with ``place`` applied to every file name."""
        path = place(self.path) if self.path else None
        paths = {k: place(v) for k, v in self.paths.items()} if self.paths else None
        return self.model_copy(update={"path": path, "paths": paths})

    @model_validator(mode="after")
    def _one_place(self) -> SourceSection:
        if (self.path is None) == (self.paths is None):
            raise ValueError("give either path (one file) or paths (language: file)")
        return self


class CleaningSection(Section):
    """When a pair is left out of training; `CleaningRules` explains the defaults."""

    min_characters: int = CleaningRules().min_characters
    max_characters: int = CleaningRules().max_characters
    min_words: int = CleaningRules().min_words
    max_words: int = CleaningRules().max_words
    max_ratio: float = CleaningRules().max_ratio
    ratio_smoothing: float = CleaningRules().ratio_smoothing
    drop_copies: bool = CleaningRules().drop_copies
    drop_duplicates: bool = CleaningRules().drop_duplicates

    def rules(self) -> CleaningRules:
        """The same as `CleaningRules`, for the cleaner."""
        return CleaningRules(**self.model_dump())

    @model_validator(mode="after")
    def _in_range(self) -> CleaningSection:
        try:
            self.rules()
        except RecipeError as e:
            raise ValueError(str(e)) from e
        return self


class MultiDDSSection(Section):
    """Learning the shares of directions; the defaults are those of Wang et al. 2020."""

    every: Count = 1000
    steps: Count = 200
    learning_rate: Positive = 1e-4


class SamplingSection(Section):
    """How often each task is drawn; for batches of tokens and of sentences."""

    sampling: Literal["temperature", "unimax", "multidds_s"] = "temperature"
    temperature: float | list[tuple[int, float]] = 5.0
    max_epochs: Unbounded = 1.0
    multidds_s: MultiDDSSection = MultiDDSSection()
    pool: Count = 64
    accumulate: Count = 1

    @property
    def size(self) -> int:
        """The size of a batch in tokens or sentences."""
        raise NotImplementedError

    @property
    def schedule(self) -> list[tuple[int, float]]:
        """Pairs of a first step and the temperature from there on."""
        t = self.temperature
        return t if isinstance(t, list) else [(0, t)]

    @field_validator("temperature", mode="before")
    @classmethod
    def _temperature_is_positive_and_steps_ascend(cls, found: Any) -> Any:
        forms = "a positive number, or [step, number] pairs such as [[0, 5], [40000, 1]]"
        return _schedule(found, (int, float), forms)


class BatchSection(SamplingSection):
    """Batches of about ``tokens`` target tokens, and how often each direction is drawn."""

    tokens: Count = 4096

    @property
    def size(self) -> int:
        """Tokens per batch."""
        return self.tokens


def _schedule(found: Any, kinds: tuple[type, ...], forms: str) -> Any:
    """The value, if a positive number or [step, number] pairs from step 0 on; else ValueError."""
    number = lambda x, kinds: isinstance(x, kinds) and not isinstance(x, bool)
    pairs = [[0, found]] if number(found, kinds) else found
    if not isinstance(pairs, list) or not all(
        isinstance(p, list | tuple) and len(p) == 2 and number(p[0], int) and number(p[1], kinds)
        for p in pairs
    ):
        raise ValueError(f"found {found!r}, must be {forms}")
    steps = [step for step, _ in pairs]
    if steps[:1] != [0] or any(a >= b for a, b in itertools.pairwise(steps)):
        raise ValueError(f"found steps {steps}; they begin at 0 and ascend")
    if bad := [n for _, n in pairs if not n > 0]:
        raise ValueError(f"found {bad[0]!r}, must be greater than 0")
    return found


class TrainingSection(Section):
    """Optimisation, validation, and which checkpoints are kept."""

    steps: Count = 100_000
    learning_rate: Positive = 1e-3
    warmup: Count = 4000
    schedule: Literal["inverse_sqrt", "linear"] = "inverse_sqrt"
    betas: tuple[Share, Share] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    clip: Unbounded | None = 1.0
    label_smoothing: Share = 0.1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    nonfinite: Literal["raise", "skip"] = "raise"
    deterministic: bool = False
    shard: bool = False
    validate_every: Count = 1000
    checkpoint_every: Count = 1000
    keep: Count = 5
    keep_every: Count | None = None
    metric: str = "nll"
    patience: Count | None = None
    average: Annotated[int, Field(ge=0)] = 0
    log_every: Count = 50
    start_from: str | None = None
    loggers: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _tensorboard_is_a_logger(cls, found: Any) -> Any:
        """Read the key ``tensorboard`` of earlier versions."""
        if not isinstance(found, dict) or "tensorboard" not in found:
            return found
        section = cast(dict[str, Any], found).copy()
        old = section.pop("tensorboard")
        if not isinstance(old, bool) or (old and "loggers" in section):
            raise ValueError("training.tensorboard: write it into training.loggers instead")
        return section | {"loggers": ["tensorboard"]} if old else section


class MethodSection(Section):
    """How task gradients become one update.

    ``options`` are the arguments of the method's constructor. Those of GradVac, PCGrad and static
    weights are also allowed in the section itself, with defaults, see `with_old_keys`.
    """

    module: str | None = None
    name: str = "joint"
    engine: Literal["single_pass", "per_task", "measured"] = "single_pass"
    granularity: Granularity = "all_layer"
    options: Annotated[dict[str, Any], Field(validate_default=True)] = {}
    record_every: int | list[tuple[int, int]] = 10

    @model_validator(mode="before")
    @classmethod
    def _old_keys_are_options(cls, found: Any) -> Any:
        return with_old_keys(cast(dict[str, Any], found)) if isinstance(found, dict) else found

    @field_validator("record_every", mode="before")
    @classmethod
    def _intervals_are_positive_and_steps_ascend(cls, found: Any) -> Any:
        forms = "a number of steps, or [step, number] pairs such as [[0, 1], [100, 10]]"
        return _schedule(found, (int,), forms)

    def records(self, step: int) -> bool:
        """Whether the Gram matrices of a step are recorded; depends on the step only."""
        given = self.record_every
        pairs = given if isinstance(given, list) else [(0, given)]
        every = [n for start, n in pairs if start <= step][-1]
        return step % every == 0

    @field_validator("module")
    @classmethod
    def _module_is_there(cls, module: str | None, info: ValidationInfo) -> str | None:
        if module and _may_run_code(info):
            import_methods(module)
        return module

    @field_validator("name")
    @classmethod
    def _name_is_registered(cls, name: str, info: ValidationInfo) -> str:
        broken = "module" not in info.data  # rejected: its methods are unknown
        return check_name(name) if _may_run_code(info) and not broken else name

    @field_validator("options")
    @classmethod
    def _options_fit_the_method(cls, options: dict[str, Any], info: ValidationInfo) -> Any:
        name = info.data.get("name")  # missing if it was rejected
        if name in READERS or (name and "module" in info.data and _may_run_code(info)):
            make_method(name, options, seed=0, compare_pcgrad=False)
        return options


class BaseRecipe(Section):
    """The keys that every recipe has, of any kind.

    Attributes:
        kind: the name of its kind of job.
        ignored: dotted keys that the kind does not read, and what to do instead.
        valid_at: the section that names validation text.
    """

    kind: ClassVar[str]
    ignored: ClassVar[Mapping[str, str]] = {}
    valid_at: ClassVar[str] = "data"

    version: int = VERSION
    name: FolderName = "run"
    size: FolderName | None = None
    variant: (
        Annotated[str, Field(pattern=f"^{_PLAIN}(/{_PLAIN})?$", max_length=_LONGEST)] | None
    ) = None
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 1
    device: str = "auto"
    batches: SamplingSection = SamplingSection()
    training: TrainingSection = TrainingSection()
    method: MethodSection = MethodSection()

    @field_validator("version")
    @classmethod
    def _version_is_this_one(cls, found: int) -> int:
        if found != VERSION:
            later = "a later gradvac wrote it" if found > VERSION else "there is no such version"
            raise ValueError(f"found {found}, this gradvac reads version {VERSION}: {later}")
        return found

    @classmethod
    def of_run(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """The recipe of a run, possibly of an earlier version, as this version reads it."""
        if isinstance(method := tree.get("method"), dict):
            tree["method"] = of_a_run(method)
        for dotted in cls.ignored:  # in all versions
            section, _, key = dotted.partition(".")
            if isinstance(found := tree.get(section), dict):
                found.pop(key, None)
        return tree

    @property
    def batch_size(self) -> int:
        """Tokens or sentences per update."""
        return self.batches.size * self.batches.accumulate

    @property
    def shape(self) -> str:
        """The section ``model``: equal for models of one shape."""
        return str(self.model_dump(include={"model"}))

    @property
    def has_test(self) -> bool:
        """Whether a run has test data."""
        return False

    @property
    def test_sets(self) -> tuple[str, ...]:
        """The names of the test sets; the name of a single one is empty."""
        return ("",) if self.has_test else ()

    @property
    def has_validation(self) -> bool:
        """Whether a run has validation text."""
        return False

    @property
    def searched(self) -> str:
        """The name of the validation metric that `gradvac tune` minimises."""
        return "perplexity"

    def batch_in_words(self) -> str:
        """The amount of text per update, in words."""
        return ""

    def model_in_words(self) -> str:
        """The model in words, for a run without a model yet."""
        return ""

    def start_in_words(self) -> str:
        """The initial parameters in words."""
        return "random parameters"

    def more_steps_in_words(self) -> str:
        """Which settings of the kind depend on the number of steps; for a run that gets more."""
        return ""

    def comparable(self, tree: dict[str, Any]) -> dict[str, Any]:
        """A dumped recipe without keys that an earlier version did not have."""
        return tree

    def placed(self, place: Callable[[str], str]) -> Self:
        """The same with ``place`` applied to every relative file name."""
        return self

    @model_validator(mode="after")
    def _every_key_is_read(self) -> Self:
        for dotted, instead in self.ignored.items():
            section, _, key = dotted.partition(".")
            own = getattr(self, section)
            found, usual = getattr(own, key), type(own).model_fields[key].default
            if found != usual:
                raise ValueError(
                    f"{dotted}: found {found!r}; a recipe with job: {self.kind} does not read it; "
                    f"{instead}"
                )
        return self


def check_codes(found: Any) -> Any:
    """The same list or mapping of language codes; ValueError for an invalid code."""
    if odd := [code for code in found or () if not is_code(code)]:
        raise ValueError(
            f"found {odd[0][:60]!r}, must be language codes: up to {LONGEST_CODE} letters, digits "
            "and underscores, as in 'fr' or 'pt_BR'"
        )
    return found


def check_names(found: Any) -> Any:
    """The same list or mapping of names used for files; ValueError for an invalid name."""
    if odd := [n for n in found or () if len(n) > _LONGEST or not re.fullmatch(_PLAIN, n)]:
        raise ValueError(
            f"found {odd[0][:60]!r}, must be up to {_LONGEST} letters, digits, - . and _, since "
            "files are called after it"
        )
    return found


def _may_run_code(info: ValidationInfo) -> bool:
    return bool((info.context or {}).get("run_code"))
