"""Architectures of transformers and torchvision with tiny configurations and random weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .compare import Way, examine, worst
from .reference import Case, Unfit
from .report import Row
from .tiny import built, configured, perturbed

TASKS = "b a c a b b".split()
B, T, V, PAD = len(TASKS), 8, 23, 0
EXPERTS = ("eager", "batched_mm", "grouped_mm")


@dataclass(frozen=True)
class Architecture:
    """What the matrix has rows for: one, or one for each way of using it.

    Attributes:
        case: makes the model and a batch, given the way.
        variants: returns the ways, "" for the only one; imports the model, which takes time.
    """

    name: str
    kind: str
    case: Callable[[str], Case]
    variants: Callable[[], Sequence[str]] = lambda: ("",)


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(seed: int, length: int = T, padded: bool = True) -> Tensor:
    """Return token ids ``[B, T]``, some sentences padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, V, (B, length), generator=generator)
    if padded:
        for i in range(1, B):
            ids[i, length - i % 3 :] = PAD
    return ids


def loss_of(out: Any, seed: int = 3) -> Tensor:
    """Return losses ``[B, ...]`` of what a model returns."""
    found = None
    for key in ("logits", "prediction_logits", "last_hidden_state", "reconstruction"):
        found = getattr(out, key, None) if found is None else found
    if found is None:
        found = next(x for x in out.values() if isinstance(x, Tensor) and x.shape[:1] == (B,))
    if found.ndim in (2, 3) and found.shape[-1] > 1:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(found.shape[-1], found.shape[:-1], generator=generator)
        return F.cross_entropy(found.movedim(-1, 1), labels, reduction="none")
    return (found * _draw(*found.shape, seed=seed).to(found.dtype)).flatten(1).sum(1)


def text(model: nn.Module) -> dict[str, Tensor]:
    ids = tokens(1)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def pair(model: nn.Module) -> dict[str, Tensor]:
    return {**text(model), "decoder_input_ids": tokens(2, 6)}


def unpadded(model: nn.Module) -> dict[str, Tensor]:
    return {"input_ids": tokens(1, padded=False)}


def image(model: nn.Module) -> dict[str, Tensor]:
    config: Any = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": _draw(B, getattr(config, "num_channels", 3), height, width, seed=1)}


def video(model: nn.Module) -> dict[str, Tensor]:
    config: Any = model.config
    size = getattr(config, "image_size", 8)
    return {"pixel_values": _draw(B, getattr(config, "num_frames", 2), 3, size, size, seed=1)}


def speech(model: nn.Module) -> dict[str, Tensor]:
    return {**frames(model), "decoder_input_ids": tokens(2, 6)}


def wave_pair(model: nn.Module) -> dict[str, Tensor]:
    return {**wave(model), "decoder_input_ids": tokens(2, 6)}


def wave(model: nn.Module) -> dict[str, Tensor]:
    return {"input_values": _draw(B, 600, seed=1)}


def spectrum(model: nn.Module) -> dict[str, Tensor]:
    config: Any = model.config
    bins = getattr(config, "num_mel_bins", 8)
    length = 2 * getattr(config, "max_source_positions", 16)
    features = {"input_features": _draw(B, bins, length, seed=1)}
    return {**features, "decoder_input_ids": tokens(2, 6)}


def frames(model: nn.Module) -> dict[str, Tensor]:
    config: Any = model.config
    bins = getattr(config, "num_mel_bins", 8)
    size = getattr(config, "feature_projection_input_dim", None) or bins
    return {"input_features": _draw(B, 32, size, seed=1)}


Inputs = Callable[[nn.Module], dict[str, Tensor]]
KINDS: list[tuple[str, str, tuple[Inputs, ...]]] = [
    ("decoder", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", (text, unpadded)),
    ("encoder", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", (text, unpadded)),
    ("encoder-decoder", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", (pair, text, spectrum)),
    ("vision", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", (image,)),
    ("video", "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES", (video,)),
    ("audio", "MODEL_FOR_CTC_MAPPING_NAMES", (wave, frames)),
    ("audio", "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", (wave, frames, spectrum)),
    ("speech to text", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", (spectrum, speech, wave_pair)),
]


def hugging_face(class_name: str, inputs: tuple[Inputs, ...], experts: str) -> Case:
    """Build a tiny model of transformers and a batch for it.

    Raises:
        Exception: the last of what went wrong, if no kind of input fits.
    """
    import transformers

    kind: Any = getattr(transformers, class_name)
    model: Any = built(kind, configured(kind.config_class))
    if experts:
        model.set_experts_implementation(experts)
    if experts == "grouped_mm":  # torch has it for 32 bits and less
        model = model.float()
        inputs = tuple(partial(_single, make) for make in inputs)
    batch = _batch(model, inputs)
    return Case(model, lambda m: loss_of(m(**batch)), TASKS)


def _batch(model: Any, inputs: tuple[Inputs, ...]) -> dict[str, Tensor]:
    """Return the first kind of batch that a model takes."""
    errors = []
    for make in inputs:
        try:
            batch = make(model)
            with torch.no_grad():
                loss_of(model(**batch))
            return batch
        except Exception as e:
            errors.append(e)
    raise errors[0]


def _single(make: Inputs, model: nn.Module) -> dict[str, Tensor]:
    return {k: x.float() if x.is_floating_point() else x for k, x in make(model).items()}


def experts_of(class_name: str) -> tuple[str, ...]:
    """Return the ways in which transformers computes the experts of a model, if it has any."""
    import transformers

    kind: Any = getattr(transformers, class_name)
    try:
        return EXPERTS if kind._can_set_experts_implementation() else ("",)
    except AttributeError:
        return ("",)


def transformers_models() -> Iterator[Architecture]:
    """Yield every text, vision and audio model that transformers names."""
    from transformers.models.auto import modeling_auto
    from transformers.utils import logging

    logging.set_verbosity_error()
    seen = set()
    for kind, mapping, inputs in KINDS:
        for names in getattr(modeling_auto, mapping).values():
            class_name = names if isinstance(names, str) else names[0]
            if class_name in seen:
                continue
            seen.add(class_name)
            yield Architecture(
                class_name,
                kind,
                partial(hugging_face, class_name, inputs),
                partial(experts_of, class_name),
            )


def architectures() -> Iterator[Architecture]:
    """Yield all models of the matrix."""
    if find_spec("transformers") is not None:
        yield from transformers_models()
    for name in TORCHVISION:
        case = partial(_picture_case, name)
        yield Architecture(f"torchvision {name}", "vision", case, lambda: ("", "eval"))


def rows(model: Architecture, ways: Sequence[Way]) -> Iterator[Row]:
    """Try an architecture."""
    try:
        variants = model.variants()
    except Exception as e:
        yield _not_built(model.name, model.kind, e)
        return
    for experts in variants:
        name = f"{model.name}, {experts}" if experts else model.name
        try:
            case = model.case(experts)
        except Exception as e:
            yield _not_built(name, model.kind, e)
        else:
            yield row(name, model.kind, case, ways)


def _not_built(name: str, kind: str, error: Exception) -> Row:
    lines = f"{type(error).__name__}: {error}".split()
    return Row(name, kind, "not tested", " ".join(lines)[:200])


def row(name: str, kind: str, case: Case, ways: Sequence[Way]) -> Row:
    """Try a model."""
    try:
        each, casts = examine(case, ways)
    except Unfit as e:
        return Row(name, kind, "not tested", str(e))
    way, found = worst(each)
    error = max(f.error for f in each.values())
    counts = dict(Counter(f.outcome for f in each.values()))
    each_way = {way: asdict(f) for way, f in each.items()}
    return Row(name, kind, found.outcome, found.reason, error, way, counts, each_way, casts)


TORCHVISION: dict[str, Callable[[Any], nn.Module]] = {
    "VisionTransformer": lambda of: of.VisionTransformer(32, 8, 2, 2, 16, 12, num_classes=5),
    "SwinTransformer": lambda of: of.SwinTransformer(
        [4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=5
    ),
    "ConvNeXt": lambda of: of.ConvNeXt(
        [of.convnext.CNBlockConfig(8, 16, 1), of.convnext.CNBlockConfig(16, None, 1)],
        num_classes=5,
    ),
    "DenseNet": lambda of: of.DenseNet(4, (1, 1), 8, 2, num_classes=5),
    "ShuffleNetV2": lambda of: of.ShuffleNetV2([1, 1, 1], [8, 8, 16, 16, 16], 5),
    "MNASNet": lambda of: of.MNASNet(0.1, num_classes=5),
    "MobileNetV2": lambda of: of.MobileNetV2(5, 0.1, [[1, 8, 1, 1], [2, 8, 1, 2]], 4),
}
"""Models of torchvision, as small as their constructors allow, made from ``torchvision.models``."""


def _picture_case(name: str, mode: str) -> Case:
    from torchvision import models  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    model = perturbed(TORCHVISION[name](models)).train(mode != "eval")
    images, labels = _draw(B, 3, 32, 32, seed=1), torch.arange(B) % 5
    return Case(model, lambda m: F.cross_entropy(m(images), labels, reduction="none"), TASKS)
