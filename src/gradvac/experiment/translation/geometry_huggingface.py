"""`gradvac geometry` on the checkpoints of a Hugging Face seq2seq model.

The folder has one checkpoint (``config.json``), or several of the Trainer (``checkpoint-500``,
``checkpoint-1000`` ...). The measurement has the same files as that of a run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gradvac.errors import RunError
from gradvac.experiment.run.lock import alone
from gradvac.experiment.training.build import device_of
from gradvac.experiment.training.measuring import (
    Measurement,
    Origins,
    measured_folder,
    prepare_folder,
)
from gradvac.experiment.translation.geometry_text import aligned_text, file_rows
from gradvac.foreign import check_loaded, opening
from gradvac.geometry.kinds import group_of
from gradvac.geometry.measure import HOLD, measure_seq2seq
from gradvac.geometry.record import GramRecord
from gradvac.terminal import Terminal
from gradvac.text.languages import Direction
from gradvac.text.scripts import script
from gradvac.translation.bitext import Bitext

SENTENCES = 16  # per batch; affects only speed and memory


def is_huggingface(folder: Path) -> bool:
    """Whether a folder has Hugging Face checkpoints and is not a run."""
    return not (folder / "recipe.yaml").exists() and bool(checkpoints(folder))


def checkpoints(folder: Path) -> dict[int, Path]:
    """Folders of checkpoints by step, ascending; a single model counts as step 0."""
    if (folder / "config.json").exists():
        return {0: folder}
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*/")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
        and (path / "config.json").exists()
    }
    return dict(sorted(found.items()))


def measure_huggingface(
    folder: Path,
    rows: Path | None,
    directions: Sequence[str] | None,
    out: Path | None = None,
    *,
    every: int | None = None,
    granularity: str = "parameter",
    strings: int | None = None,
    codes: Sequence[str] = (),
    curvature: int = 0,
    device: str | None = None,
    hold: int = HOLD,
    console: Console | None = None,
) -> Path:
    """Measure the checkpoints in a folder; returns the folder that figures and reports read.

    The loss is the negative log-likelihood per target token. The measurement is in
    ``geometry/measured`` of ``folder``, or of ``out``.

    Args:
        folder: with one checkpoint or several.
        rows: parallel text to measure on.
        directions: such as ``fr-en`` and ``en-hi``.
        out: the folder to write, if the model folder must not change.
        codes: the tokenizer's language codes, if not found automatically: ``fr=fra_Latn``.
        curvature: must be 0; only runs support it.
        every: only checkpoints whose step is a multiple of this.
        granularity: of the Gram matrices.
        strings: maximum number of sentences, from the first on.
        device: as in a recipe; auto by default.
        hold: numbers of gradients held at a time.
        console: receives a line for each checkpoint.

    Raises:
        RunError: without checkpoints, text or directions, for a language unknown to the
            tokenizer, or if there is a measurement with other settings.
    """
    console = console or Terminal()
    say = partial(console.print, markup=False, soft_wrap=True)
    chosen = _chosen(folder, every)
    if rows is None or directions is None:
        raise RunError(
            f"{folder}: a Hugging Face model says neither text nor directions: give --rows FILE "
            "and --directions fr-en,en-fr"
        )
    if curvature:
        raise RunError(
            f"{folder}: --curvature is for runs; of other models, "
            "gradvac.geometry.curvature measures it"
        )
    found, origin = file_rows(rows)
    parsed = [Direction.parse(name) for name in directions]
    texts, multiway = aligned_text(found, parsed, origin, say)
    texts = [Bitext(t.direction, t.sources[:strings], t.targets[:strings]) for t in texts]
    if empty := [t.direction.name for t in texts if not len(t)]:
        raise RunError(f"{origin}: no sentence to measure on for {', '.join(empty)}")
    place = device_of(device or "auto")
    marks = _marks(next(iter(chosen.values())), codes)
    batches = {t.direction.name: marks.batches(t, place) for t in texts}
    home = out or folder
    out = measured_folder(home)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, "measuring into this folder"):
        record, origins = GramRecord(out), Origins(out)
        for step, path in chosen.items():
            digest = _digest(path)
            if step in record.steps():
                origins.check(step, digest)
                continue
            origins.note(step, digest)
            model = _load(path).to(place)
            prepare_folder(out, _description(texts, model, granularity, origin, multiway))
            record.append(measure_seq2seq(model, batches, granularity, step, hold))
            say(f"step {step} measured")
    return home


def _chosen(folder: Path, every: int | None) -> dict[int, Path]:
    """The checkpoints whose step is a multiple of ``every``; RunError if there is none."""
    there = checkpoints(folder)
    chosen = {step: path for step, path in there.items() if not every or step % every == 0}
    if not chosen:
        steps = ", ".join(map(str, there))
        raise RunError(f"{folder}: no checkpoint to measure; steps with one: {steps}")
    return chosen


def _marks(folder: Path, codes: Sequence[str]) -> _Marks:
    """The tokenizer of a checkpoint; ``codes`` are its names of languages, as ``fr=fra_Latn``."""
    from transformers import AutoTokenizer

    with opening(folder):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    named = {code: name for code, _, name in (pair.partition("=") for pair in codes)}
    return _Marks(tokenizer, named, folder)


def _load(folder: Path) -> Any:
    """The model of a checkpoint; RunError if parameters are missing."""
    from transformers import AutoModelForSeq2SeqLM

    with opening(folder):
        model, said = AutoModelForSeq2SeqLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    check_loaded(said, folder)
    return model


def _digest(folder: Path) -> str:
    """The SHA-256 of the files that make a model."""
    digest = hashlib.sha256()
    weights = re.compile(r"config\.json|(pytorch_)?model.*\.(safetensors|bin)")
    for file in sorted(f for f in folder.iterdir() if weights.fullmatch(f.name)):
        with file.open("rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Marks:
    """How a tokenizer marks languages: by its own codes, by ``>>xx<<``, or not at all."""

    tokenizer: Any
    codes: Mapping[str, str]
    where: Path

    def batches(self, text: Bitext, device: torch.device) -> list[Mapping[str, torch.Tensor]]:
        """Inputs and labels of the sentences of a direction, in batches."""
        source, target = text.direction.source, text.direction.target
        sources, known = list(text.sources), self.tokenizer.get_vocab()
        if hasattr(self.tokenizer, "src_lang"):
            self.tokenizer.src_lang = self._code(source, known)
            self.tokenizer.tgt_lang = self._code(target, known)
        elif any(piece.startswith(">>") for piece in known):
            if f">>{target}<<" not in known:
                raise RunError(f"{self.where}: its tokenizer has no >>{target}<<")
            sources = [f">>{target}<< {line}" for line in sources]
        made = []
        for start in range(0, len(text), SENTENCES):
            part = slice(start, start + SENTENCES)
            own = self.tokenizer(
                sources[part],
                text_target=list(text.targets[part]),
                return_tensors="pt",
                padding=True,
                truncation=True,
            )
            pad = own["labels"] == self.tokenizer.pad_token_id
            own["labels"] = own["labels"].masked_fill(pad, -100)
            names = ("input_ids", "attention_mask", "labels")
            made.append({name: own[name].to(device) for name in names})
        return made

    def _code(self, code: str, known: Mapping[str, int]) -> str:
        """The tokenizer's code for ``fr``: fr (M2M-100), fr_XX (mBART), or given by the user."""
        code = self.codes.get(code, code)
        if code in known or code in getattr(self.tokenizer, "lang_code_to_token", {}):  # M2M-100's
            return code
        region = [piece for piece in known if re.fullmatch(rf"{re.escape(code)}_[A-Z]{{2}}", piece)]
        if len(region) == 1:
            return region[0]
        raise RunError(
            f"{self.where}: its tokenizer has no code for the language {code!r}; say what it calls "
            f"it by --code {code}=..., as in --code fr=fra_Latn"
        )


def _description(
    texts: Sequence[Bitext], model: Any, granularity: str, origin: str, multiway: bool
) -> Measurement:
    shapes = {n: list(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    group_of(shapes, granularity)  # GradientError for an unknown granularity
    sides = {t.direction.source: t.sources for t in texts}
    sides |= {t.direction.target: t.targets for t in texts}
    lines = "\n".join(line for t in texts for line in [*t.sources, *t.targets])
    return Measurement(
        tasks=[t.direction.name for t in texts],
        granularity=granularity,
        strings=max(map(len, texts)),
        origin=origin,
        multiway=multiway,
        fingerprint=hashlib.sha256(lines.encode()).hexdigest()[:16],
        label_smoothing=0.0,
        parameters=shapes,
        scripts={code: script(list(lines)) for code, lines in sides.items()},
    )
