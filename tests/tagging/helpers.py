"""Toy languages with tags, and tiny encoders on disk with a tokenizer of their own."""

from pathlib import Path
from typing import Any

import torch
import transformers

NOUNS = "file page table image sheet frame index style".split()
VERBS = "open close save print insert delete".split()


def tagged_rows(suffix: str, n: int) -> list[list[tuple[str, str]]]:
    """Sentences of a verb, an article and a noun; ``suffix`` makes them another language."""
    rows = []
    for i in range(n):
        verb, noun = VERBS[i * 5 % 6] + suffix, NOUNS[i * 3 % 8] + suffix
        rows.append([(verb, "VERB"), ("the" + suffix, "DET"), (noun, "NOUN")])
        if i % 3 == 0:
            rows[-1].append((".", "PUNCT"))
    return rows


def write_two_column(path: Path, rows: list[list[tuple[str, str]]]) -> None:
    text = "\n".join("".join(f"{word} {tag}\n" for word, tag in row) for row in rows)
    path.write_text(text, encoding="utf-8")


LABELS = ["DET", "NOUN", "PUNCT", "VERB"]


def make_toy(folder: Path, n: int = 24) -> dict[str, Any]:
    """Two toy languages on disk, an encoder, and a recipe of them."""
    languages = {}
    for code, suffix, size in (("de", "", n), ("fr", "u", n // 2)):
        for part, count in (("train", size), ("valid", 6), ("test", 9)):
            write_two_column(folder / f"{code}.{part}", tagged_rows(suffix, count))
        files = {part: [f"{code}.{part}"] for part in ("train", "valid", "test")}
        languages[code] = {"format": "two-column", **files}
    make_encoder(folder / "encoder")
    return {
        "job": "tagging",
        "name": "toy",
        "seed": 3,
        "device": "cpu",
        "data": {
            "task": "pos", "labels": LABELS, "languages": languages, "max_tokens": 24,
            "levels": [13, 20],
        },
        "model": {"encoder": "encoder"},
        "batches": {"sentences": 4, "pool": 3},
        "training": {"epochs": 2, "learning_rate": 0.01, "log_every": 3},
    }  # fmt: skip


def make_tokenizer(bert: bool = True) -> Any:
    """A tokenizer that knows halves of the toy words: WordPiece of BERT, Unigram of XLM-R."""
    import tokenizers as t

    texts = [" ".join(w for w, _ in row) for s in ("", "u") for row in tagged_rows(s, 24)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if bert:
        inner = t.Tokenizer(t.models.WordPiece(unk_token="[UNK]"))
        inner.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
        trainer: Any = t.trainers.WordPieceTrainer(
            vocab_size=70, special_tokens=special, show_progress=False
        )
    else:
        special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]  # XLM-R: <s> is 0, padding is 1
        inner = t.Tokenizer(t.models.Unigram())
        inner.pre_tokenizer = t.pre_tokenizers.Metaspace()
        trainer = t.trainers.UnigramTrainer(
            vocab_size=60, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    inner.train_from_iterator(texts, trainer)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    marks: Any = dict(zip(names, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **marks)


SHAPE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)


def make_encoder(folder: Path, kind: str = "bert") -> Path:
    """A randomly initialised encoder in Hugging Face format."""
    tokenizer = make_tokenizer(bert=kind == "bert")
    common: Any = dict(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SHAPE)
    torch.manual_seed(0)
    if kind == "bert":
        config: Any = transformers.BertConfig(max_position_embeddings=32, **common)
        model: Any = transformers.BertForMaskedLM(config)
    elif kind == "xlm-roberta":
        config = transformers.XLMRobertaConfig(max_position_embeddings=34, **common)
        model = transformers.XLMRobertaForMaskedLM(config)
    else:
        special = dict(cls_token_id=0, sep_token_id=2, bos_token_id=0, eos_token_id=2)
        config = transformers.ModernBertConfig(
            max_position_embeddings=32, local_attention=8, **common, **special
        )
        model = transformers.ModernBertForMaskedLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
