"""Tiny random models of transformers and data with a task for each sample."""

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn

V, PAD, LENGTH, CLASSES = 23, 0, 6, 5
TASKS = ["fr", "hi", "tr"]
COMMON = dict(vocab_size=V, pad_token_id=PAD, bos_token_id=1, eos_token_id=2)
ENCODER = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)


def bert_config(**changes: Any) -> transformers.BertConfig:
    return transformers.BertConfig(**COMMON, **(ENCODER | changes), max_position_embeddings=9)


def t5(**changes: Any) -> nn.Module:
    config = transformers.T5Config(
        **COMMON, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, decoder_start_token_id=PAD,
        **changes,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON, **ENCODER))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(**COMMON, n_embd=8, n_layer=2, n_head=2, n_positions=9)
    return transformers.GPT2LMHeadModel(config)


def tagger(**changes: Any) -> nn.Module:
    config = bert_config(num_labels=CLASSES, **changes)
    return transformers.BertForTokenClassification(config)


def classifier(**changes: Any) -> nn.Module:
    config = bert_config(num_labels=CLASSES, **changes)
    return transformers.BertForSequenceClassification(config)


def masked() -> nn.Module:
    return transformers.BertForMaskedLM(bert_config())


def samples(n: int, n_labels: int = V, per_sample: bool = False) -> list[dict[str, Any]]:
    """Samples of random tokens and labels, some of them -100; tasks in no order."""
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape, high: torch.randint(4 if high == V else 0, high, shape, generator=g)
    found = []
    for i in range(n):
        labels = draw(LENGTH, high=n_labels)
        labels[LENGTH - i % 4 :] = -100
        found.append(
            {
                "input_ids": draw(LENGTH, high=V),
                "attention_mask": torch.ones(LENGTH, dtype=torch.int64),
                "labels": draw(high=n_labels) if per_sample else labels,
                "task": TASKS[i * i % 3 + i % 2],
            }
        )
    return found


def built(make: Any, dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = make(**changes).to(dtype)
    for p in model.parameters():  # no tensor is all zeros or all ones
        nn.init.normal_(p, std=0.3)
    return model


def adapted(make: Any, config: peft.PeftConfig, **changes: Any) -> peft.PeftModel:
    """A tiny model with adapters in float64, whose initial values are not zero."""
    model = built(make, **changes)
    torch.manual_seed(1)
    config.task_type = config.task_type or "CAUSAL_LM"
    with warnings.catch_warnings():  # of PEFT 0.21 with transformers 5.23
        warnings.simplefilter("ignore", FutureWarning)
        found = peft.get_peft_model(model, config, autocast_adapter_dtype=False).double()
    for p in found.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    return found


def train(
    kind: Any, model: nn.Module, data: Any, folder: Path, resume: Any = None, **options: Any
) -> Any:
    """Train a model by a Trainer of a kind; options are its own or of its arguments."""
    trainer = make_trainer(kind, model, data, folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


OF_TRAINER = (
    "method", "granularity", "engine", "task_column", "task_names", "data_collator", "eval_dataset",
    "compute_loss_func", "model_init", "callbacks",
)  # fmt: skip


def make_trainer(kind: Any, model: Any, data: Any, folder: Path, **options: Any) -> Any:
    own = {name: options.pop(name) for name in OF_TRAINER if name in options}
    defaults = dict(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True,
        per_device_train_batch_size=4, per_device_eval_batch_size=4, num_train_epochs=1,
        logging_steps=1, save_strategy="no", learning_rate=1e-2,
    )  # fmt: skip
    seq2seq = issubclass(kind, transformers.Seq2SeqTrainer)
    arguments = transformers.Seq2SeqTrainingArguments if seq2seq else transformers.TrainingArguments
    args = arguments(**(defaults | options))
    return kind(model=model, args=args, train_dataset=data, **own)


def distance(a: nn.Module, b: nn.Module) -> float:
    """The largest difference of a parameter."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((p.detach() - q.detach()).abs().max().item() for p, q in pairs)
