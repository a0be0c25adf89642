"""How BLEU splits text into words: sacreBLEU's tokenizers, or a SentencePiece model by path."""

from __future__ import annotations

import difflib
import hashlib
from functools import lru_cache
from pathlib import Path

import sentencepiece
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers import tokenizer_spm
from sacrebleu.tokenizers.tokenizer_base import BaseTokenizer

from gradvac.errors import RecipeError, RunError
from gradvac.reading import read_bytes
from gradvac.text.languages import language

FILE = "spm:"
VOCABULARY = "spm:vocabulary"
"""The run's own vocabulary: such scores are not comparable between vocabularies."""

OFFLINE = ("13a", "intl", "char", "zh", "none", "ja-mecab", "ko-mecab")
DOWNLOADED = ("flores200", "flores101", "spBLEU-1K")


def tokenizer(code: str) -> str:
    """Return sacreBLEU's name of the tokenizer for BLEU in a language."""
    return language(code).tokenizer


def check_tokenizer(name: str) -> str:
    """Return a known name unchanged; else raise ValueError with the nearest one."""
    known = [*OFFLINE, *DOWNLOADED]
    if name in known or (name.startswith(FILE) and name != FILE):
        return name
    near = difflib.get_close_matches(name, known, 1)
    raise ValueError(
        f"found {name!r}, must be one of {', '.join(known)}, {FILE}PATH of a SentencePiece model, "
        f"or {VOCABULARY}, the run's own" + (f"; did you mean {near[0]!r}?" if near else "")
    )


def bleu_metric(tokenize: str) -> BLEU:
    """BLEU with a sacreBLEU tokenizer by name, or ``spm:PATH``; RecipeError if it is missing.

    ``spm:PATH`` is spBLEU (Goyal et al. 2022) with that model: its signature has the first eight
    hexadecimal digits of the file's SHA-256.
    """
    # force: no warning about text that looks tokenized; catalogues sometimes end in " .".
    if tokenize.startswith(FILE):
        metric = BLEU(tokenize="none", force=True)
        metric.tokenizer = _Pieces(Path(tokenize.removeprefix(FILE)))
        metric.tokenizer_signature = metric.tokenizer.signature()
        return metric
    try:
        return BLEU(tokenize=tokenize, force=True)
    except OSError as e:
        models = tokenizer_spm.SPM_MODELS
        if tokenize not in models:
            raise
        url = models[tokenize]["url"]
        place = Path(vars(tokenizer_spm)["SACREBLEU_DIR"]) / "models" / Path(url).name
        raise RecipeError(
            f"BLEU tokenizer {tokenize!r}: sacreBLEU downloads a model for it from {url}, and that "
            f"failed: {e}. Put the file at {place}, or name a copy: {FILE}PATH"
        ) from e
    except (ImportError, RuntimeError) as e:  # MeCab is an extra of sacreBLEU
        raise RecipeError(f"BLEU tokenizer {tokenize!r}: {' '.join(str(e).split())}") from e


class _Pieces(BaseTokenizer):
    """Pieces of a SentencePiece model, separated by spaces."""

    def __init__(self, path: Path) -> None:
        try:
            model = read_bytes(path)
            self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RunError as e:
            raise RecipeError(f"BLEU tokenizer {FILE}{e}") from e
        except (RuntimeError, ValueError) as e:  # ValueError: its own message is not UTF-8
            raise RecipeError(f"BLEU tokenizer {FILE}{path}: not a SentencePiece model") from e
        self.name = f"spm-{hashlib.sha256(model).hexdigest()[:8]}"
        self.cut = lru_cache(2**16)(lambda line: " ".join(self.pieces.encode(line, out_type=str)))

    def signature(self) -> str:
        return self.name

    def __call__(self, line: str) -> str:
        return self.cut(line)
