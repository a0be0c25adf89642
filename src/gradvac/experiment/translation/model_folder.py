"""Opening a model in a run folder or in a model folder.

A model folder holds ``model.json`` (the shape), ``model.safetensors``, ``vocabulary.model``,
``tasks.json`` (the directions it was trained on) and ``SHA256SUMS`` of these.
A run folder has the same files, with parameters in ``best/`` and ``checkpoints/``.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.recipe.paths import TASKS
from gradvac.experiment.run.checkpoint import list_checkpoints
from gradvac.experiment.run.files import MODEL, VOCABULARY
from gradvac.experiment.run.folder import check_fits, parameters_of_run, save_parameters
from gradvac.experiment.run.sums import check_sums, write_sums
from gradvac.experiment.run.tensor_file import load_tensors
from gradvac.reading import read_bytes, read_json
from gradvac.text.languages import Direction
from gradvac.translation.clsr import make_transformer
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer
from gradvac.translation.vocabulary import Vocabulary
from gradvac.writing import write_bytes, write_text


@dataclass(frozen=True)
class FoundModel:
    """A model's shape, its vocabulary, and the file of its parameters."""

    config: TransformerConfig
    vocabulary: Vocabulary
    parameters: Path

    def load(self, device: torch.device | str = "cpu") -> Transformer:
        """Build the Transformer and fill it, in float32, ready to translate."""
        tensors = self.tensors()
        model = make_transformer(self.config)
        model.load_state_dict(tensors)  # converts half precision to the model's precision
        return model.to(device).eval()

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name; RunError if they do not match the shape of the model."""
        tensors = load_tensors(self.parameters)
        numbers, c = sum(t.numel() for t in tensors.values()), self.config
        layers = c.encoder_layers + c.decoder_layers
        least = c.vocabulary_size * c.d_model + layers * (c.d_model**2 + c.d_model * c.d_ffn)
        if least > numbers:  # before a large model is built
            raise RunError(
                f"{self.parameters}: {numbers:,} parameters; model.json describes a model of more "
                f"than {least:,}"
            )
        with torch.device("meta"):
            check_fits(make_transformer(c), tensors, self.parameters)
        return tensors


def find_model(folder: Path, checkpoint: str = "best") -> FoundModel:
    """Find the model in a model folder or run folder.

    ``checkpoint``: "best", "last", or a step number; only runs have a choice. RunError says what
    is missing or damaged.
    """
    if not (folder / MODEL).exists():
        if (best := folder / "best" / "config.json").exists():
            raise RunError(
                f"{folder}: no run of translation; its model is in {best.parent}, for transformers"
            )
        raise RunError(f"{folder}: holds no model: no {folder / MODEL}")
    with suppress(FileNotFoundError):  # runs and older models have no sums
        check_sums(folder, (MODEL, VOCABULARY, TASKS))  # parameters are compared when loaded
    config = read_json(folder / MODEL, TransformerConfig)
    parameters = folder / "model.safetensors"
    if not parameters.exists():
        parameters = parameters_of_run(folder, checkpoint)
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    _check_vocabulary(folder, vocabulary.fingerprint)
    return FoundModel(config, vocabulary, parameters)


def _check_vocabulary(folder: Path, found: str) -> None:
    """RunError if the vocabulary is not that of the model.

    A run stores which vocabulary encoded its text; a checkpoint, which one it was trained with.
    """
    states = [c / "state.json" for c in list_checkpoints(folder / "checkpoints")]
    for file in [folder / "data" / "train" / "index.json", *states[-1:]]:
        wanted = read_json(file).get("vocabulary", found) if file.exists() else found
        if wanted != found:
            raise RunError(
                f"{folder / VOCABULARY}: is not the vocabulary of this model: its fingerprint is "
                f"{found}, and {file} has {wanted}"
            )


def export_model(run: Path, out: Path, checkpoint: str) -> None:
    """Write the model of a run as a model folder in half precision."""
    found = find_model(run, checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    save_shape(out, found.config)
    write_bytes(out / VOCABULARY, found.vocabulary.model)
    trained_directions(run)  # RunError for an invalid list of tasks
    shutil.copy(run / TASKS, out)
    save_parameters(out / "model.safetensors", found.tensors(), half=True)
    shutil.copymode(out / MODEL, out / "model.safetensors")  # else readable by the owner only
    write_sums(out, (MODEL, VOCABULARY, TASKS, "model.safetensors"))


def check_target(folder: Path, language: str) -> None:
    """RunError for a target language that the model was not trained on; it lists those it was.

    A tag is not enough: the vocabulary may have languages for later training.
    """
    known = sorted({d.target for d in trained_directions(folder)})
    if language not in known:
        raise RunError(
            f"{folder}: this model was not trained to translate into {language!r}; "
            f"it translates into: {', '.join(known)}"
        )


def trained_directions(folder: Path) -> list[Direction]:
    """The directions that ``tasks.json`` of a run or model names; RunError if it names none."""
    file = folder / TASKS
    try:
        found = [Direction.parse(name) for name in read_json(file)]
    except RecipeError as e:
        raise RunError(f"{file}: {e}") from e
    if not found:
        raise RunError(f"{file}: names no task")
    return found


def save_shape(folder: Path, config: TransformerConfig) -> None:
    """Write ``model.json``."""
    text = json.dumps(dataclasses.asdict(config), indent=1)
    file = folder / MODEL
    if not file.exists() or read_bytes(file) != text.encode():
        write_text(file, text)
