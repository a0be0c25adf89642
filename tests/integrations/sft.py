"""A tiny tokenizer, dialogues in several tasks, and TRL's SFTTrainer on them."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig

from tests.integrations import tiny

WORDS = ["<pad>", "<s>", "</s>", *(f"w{n}" for n in range(tiny.V - 3))]


def tokenizer() -> PreTrainedTokenizerFast:
    model = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "w0"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=model, **names)


def texts(n: int, completions: bool = False) -> Dataset:
    """Texts of 2 to 7 random words, or prompts with completions; tasks in no order."""
    g = torch.Generator().manual_seed(3)
    rows = []
    for i in range(n):
        length = int(torch.randint(2, 8, (1,), generator=g))
        words = torch.randint(3, tiny.V, (length,), generator=g).tolist()
        text = " ".join(WORDS[w] for w in words)
        row = {"text": text, "task": tiny.TASKS[i * i % 3 + i % 2]}
        if completions:
            prompt, _, completion = row.pop("text").partition(" ")
            row |= {"prompt": prompt, "completion": " " + completion + " </s>"}
        rows.append(row)
    return Dataset.from_list(rows)


OF_TRAINER = (*tiny.OF_TRAINER, "peft_config")


def make(kind: Any, model: nn.Module, data: Any, folder: Path, **options: Any) -> Any:
    own = {name: options.pop(name) for name in OF_TRAINER if name in options}
    defaults = dict(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, bf16=False,
        per_device_train_batch_size=4, per_device_eval_batch_size=4, num_train_epochs=1,
        logging_steps=1, save_strategy="no", learning_rate=0.5, optim="sgd",
        activation_checkpointing=False,
    )  # fmt: skip
    args = SFTConfig(**(defaults | options))
    return kind(model=model, args=args, train_dataset=data, processing_class=tokenizer(), **own)
