"""Adapters of PEFT in the Trainer: task gradients equal those of separate backward passes."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("peft")

import peft

from gradvac.integrations.transformers import TaskGradients
from gradvac.methods.static import StaticWeights
from tests.integrations import tiny

pytestmark = pytest.mark.filterwarnings(  # of PEFT 0.21 with transformers 5.23
    "ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"
)
EXACT = 1e-10
WEIGHTS = {"fr": 0.5, "hi": 2.0, "tr": 1.25}
RATE = 0.1
LINEAR = "all-linear"


def lora(**options):
    return peft.LoraConfig(**({"r": 2, "target_modules": ["q_proj", "v_proj"]} | options))


ADAPTERS = {
    "LoRA, attention": (tiny.llama, lora()),
    "LoRA, all linear": (tiny.llama, lora(target_modules=LINEAR)),
    "LoRA, Conv1D": (tiny.gpt2, lora(target_modules=["c_attn"], fan_in_fan_out=True)),
    "LoRA, biases": (tiny.gpt2, lora(target_modules=["c_fc"], fan_in_fan_out=True, bias="all")),
    "rsLoRA": (tiny.llama, lora(target_modules=LINEAR, use_rslora=True)),
    "modules_to_save": (tiny.llama, lora(modules_to_save=["lm_head"])),
    "embeddings saved": (tiny.llama, lora(modules_to_save=["embed_tokens", "lm_head"])),
    "embeddings": (tiny.llama, lora(target_modules=["embed_tokens", "q_proj"])),
    "DoRA": (tiny.llama, lora(target_modules=LINEAR, use_dora=True)),
    "IA3": (
        tiny.llama,
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "prefix tuning": (tiny.llama, peft.PrefixTuningConfig(num_virtual_tokens=3)),
    "prompt tuning": (tiny.llama, peft.PromptTuningConfig(num_virtual_tokens=3)),
}


def samples(n):
    """Samples that all have equally many labels."""
    found = tiny.samples(n)
    for sample in found:
        sample["labels"] = sample["labels"].where(sample["labels"] != -100, torch.tensor(5))
    return found


def counted(model, labels):
    """The labels of a step as the Trainer counts them: all of GPT-2's, none of virtual tokens."""
    shifts = model.get_base_model().config.model_type == "llama"
    return labels[:, int(shifts) :].numel()


def separate(model, step):
    """The gradient of each task, [trained], by a forward and backward pass of its own samples."""
    trained = [p for p in model.parameters() if p.requires_grad]
    words = torch.stack([sample["input_ids"] for sample in step])
    mask = torch.stack([sample["attention_mask"] for sample in step])
    labels = torch.stack([sample["labels"] for sample in step])
    found = {}
    for task in sorted({sample["task"] for sample in step}):
        own = torch.tensor([sample["task"] == task for sample in step])
        logits = model(input_ids=words[own], attention_mask=mask[own]).logits
        padded = F.pad(labels[own], (logits.shape[1] - labels.shape[1], 0), value=-100)
        loss = F.cross_entropy(logits[:, :-1].mT, padded[:, 1:], reduction="sum")
        loss = loss / counted(model, labels)
        found[task] = torch.autograd.grad(loss, trained, allow_unused=True)
    return trained, found


class Seen(StaticWeights):
    """Fixed weights; keeps the Gram matrix of the whole model of each step."""

    def __init__(self):
        super().__init__(WEIGHTS)
        self.grams = []

    def _weights(self, geometry):
        order = sorted(range(len(geometry.tasks)), key=lambda k: geometry.tasks[k])
        self.grams.append(geometry.gram.sum(0)[order][:, order])
        return super()._weights(geometry)


def trained_by_hand(model, steps, size, data):
    """Take the steps of gradient descent that the Trainer has to; the Gram matrices it has to see.

    Without dropout, and on all samples of a step at once.
    """
    grams = []
    for step in range(steps):
        parameters, gradients = separate(model, data[step * size : (step + 1) * size])
        rows = [
            torch.cat([g.flatten() for g in own if g is not None]) for own in gradients.values()
        ]
        grams.append(torch.stack(rows) @ torch.stack(rows).T)
        with torch.no_grad():
            for n, p in enumerate(parameters):
                for task, own in gradients.items():
                    if own[n] is not None:
                        p -= RATE * WEIGHTS[task] * own[n]
    return grams


@pytest.mark.parametrize("accumulation", [1, 8])
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_gradients_are_those_of_separate_backward_passes(tmp_path, name, accumulation):
    make, config = ADAPTERS[name]
    start = tiny.adapted(make, deepcopy(config))
    for module in start.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    size = 2 * accumulation if accumulation > 1 else 6  # micro-batches of 2, or one of 6
    data = samples(2 * size)
    by_hand = deepcopy(start)
    grams = trained_by_hand(by_hand, 2, size, data)
    for engine in ({}, {"engine": "per_task"}):
        model, method = deepcopy(start), Seen()
        trainer = tiny.train(
            TaskGradients, model, data, tmp_path, method=method, engine=engine, max_grad_norm=0.0,
            per_device_train_batch_size=size // accumulation, lr_scheduler_type="constant",
            gradient_accumulation_steps=accumulation, optim="sgd", learning_rate=RATE,
            train_sampling_strategy="sequential",
        )  # fmt: skip
        assert bool(trainer.task_engine.refused) is False
        assert tiny.distance(model, by_hand) < EXACT * tiny.distance(start, by_hand) < EXACT
        for found, expected in zip(method.grams, grams, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
