"""Pretrained encoders of Hugging Face: opened from a folder or the hub, or rebuilt from a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import TypedDict

from gradvac.errors import RecipeError, RunError
from gradvac.foreign import check_loaded, first_line, opening
from gradvac.reading import read_json
from gradvac.tagging.encoding import IGNORED, TokenBatch


class _Labels(TypedDict):
    id2label: dict[str, str]


def transformers() -> Any:
    """The transformers package; RecipeError without the extra."""
    try:
        import transformers as package
    except ImportError as e:
        raise RecipeError("model.encoder: needs: pip install 'gradvac[transformers]'") from e
    return package


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the package's message that a head is new, which is normal in fine-tuning."""
    logging = transformers().logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def open_tokenizer(name: str) -> Any:
    """The tokenizer of an encoder; RecipeError if there is none, or it gives no word ids."""
    try:
        with _folder(name):
            tokenizer = transformers().AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as e:
        raise RecipeError(f"model.encoder: no tokenizer in {_absent(name, e)}") from e
    if not tokenizer.is_fast:
        raise RecipeError(f"model.encoder: the tokenizer of {name!r} does not tell words apart")
    return tokenizer


def check_encoder(name: str) -> None:
    """Raise RecipeError if there is no encoder of that name, or no suitable tokenizer."""
    _config(name)
    open_tokenizer(name)


def fingerprint(tokenizer: Any) -> str:
    """A text that two tokenizers share only if they encode alike."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def save_shape(name: str, folder: Path, labels: Sequence[str], dropout: float | None) -> None:
    """Save in a run what is needed to rebuild the tagger: configuration and tokenizer."""
    config = _config(name)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: n for n, label in enumerate(labels)}
    if dropout is not None:
        config.classifier_dropout = dropout
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    open_tokenizer(name).save_pretrained(folder)


def pretrained_tagger(name: str, shape: Path, seed: int) -> Any:
    """An encoder with its pretrained parameters and a linear layer initialised from ``seed``."""
    torch.manual_seed(seed)
    auto = transformers().AutoModelForTokenClassification
    try:
        with _quiet(), _folder(name):
            model, said = auto.from_pretrained(
                name,
                config=_config(str(shape)),
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
            )
        check_loaded(said, Path(name), head="classifier")
        return model
    except (OSError, ValueError, RuntimeError) as e:
        raise RecipeError(f"model.encoder: cannot load {name!r}: {first_line(e)}") from e


def empty_tagger(shape: Path) -> Any:
    """The same model without its parameters, rebuilt from the files of a run."""
    auto, config = transformers().AutoModelForTokenClassification, _config(str(shape))
    with opening(shape):  # sizes that give no valid model
        return auto.from_config(config, trust_remote_code=False)


def _config(name: str) -> Any:
    try:
        with _folder(name):
            return transformers().AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as e:
        raise RecipeError(f"model.encoder: no encoder in {_absent(name, e)}") from e


def label_losses(
    model: Any, batch: TokenBatch, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Training loss [N], negative log-likelihood [N] and sentence index [N] of each label."""
    logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
    logits = logits.flatten(0, 1).index_select(0, batch.kept).float()
    labels = batch.labels.flatten().index_select(0, batch.kept)
    nll = F.cross_entropy(logits, labels, reduction="none")
    loss = nll
    if smoothing:
        loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return loss, nll.detach(), batch.rows


def cells_at_once(device: torch.device) -> int:
    """Padded subwords per batch outside training; affects only speed and memory.

    A CPU is twice as fast with few: what a layer gives then stays in its cache.
    """
    return 512 if device.type == "cpu" else 4096


@torch.no_grad()
def predict(model: Any, batch: TokenBatch) -> list[list[int]]:
    """The most likely label of every first subword, one list per sentence."""
    guesses = model(input_ids=batch.ids, attention_mask=batch.mask).logits.argmax(-1)
    known = batch.labels != IGNORED
    return [row[there].tolist() for row, there in zip(guesses, known, strict=True)]


def labels_of(shape: Path) -> list[str]:
    """The labels of a run's tagger, in the order of its outputs; RunError if it has none."""
    file = shape / "config.json"
    tree = read_json(file, _Labels)["id2label"]
    found = [tree.get(str(n), "") for n in range(len(tree))]
    if not found or not all(found):
        raise RunError(f"{file}: id2label: not the labels of a tagger, numbered from 0 on")
    return found


def _folder(name: str) -> AbstractContextManager[None]:
    """Turn errors of a folder into ours; a name that is not a folder is a name on the hub."""
    return opening(Path(name)) if Path(name).is_dir() else nullcontext()


def _absent(name: str, error: Exception) -> str:
    """What was searched, and where; a name that is not a folder is searched on the hub."""
    where = "" if Path(name).is_dir() else "no such folder, and on the hub: "
    return f"{name!r}: {where}{first_line(error)}"
