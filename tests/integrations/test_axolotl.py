"""The mixin for Axolotl before a stand-in of its trainer; Axolotl itself is not installed here."""

from copy import deepcopy

import pytest

pytest.importorskip("transformers")

import torch
from torch.nn import functional as F
from transformers import Trainer

import gradvac
from gradvac.errors import GradientError
from gradvac.integrations.axolotl import AxolotlTaskGradients, keep_task
from gradvac.integrations.axolotl_batch import LENGTHS, PackedCollator
from gradvac.integrations.transformers_batch import TaskCollator
from tests.integrations import tiny
from tests.integrations.axolotl import Arguments, AxolotlTrainer, Collator

EXACT = 1e-10
ROUNDED = 1e-7  # the model's own loss is computed in float32 whatever the model is


class JointTrainer(AxolotlTaskGradients, AxolotlTrainer):
    method = gradvac.Joint()


class VacTrainer(AxolotlTaskGradients, AxolotlTrainer):
    method = gradvac.GradVac()


def sequences(n, task=True, first_label=True):
    """Samples of 3 to 6 tokens with the columns of Axolotl.

    In a packed row the first token is a label of the sequence before, unless that is left out.
    """
    found = []
    for i, sample in enumerate(tiny.samples(n)):
        name = sample.pop("task")
        row = {key: values[: 3 + i % 4] for key, values in sample.items()}
        row["labels"] = row["labels"].clone()
        row["labels"][0] = row["labels"][0] if first_label else -100
        row["position_ids"] = torch.arange(len(row["input_ids"]))
        found.append(row | {"task": name} if task else row)
    return found


def make(kind, folder, data, model=None, eval_dataset=None, **options):
    defaults = dict(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=1,
        per_device_train_batch_size=4, num_train_epochs=1, save_strategy="no", learning_rate=0.5,
        optim="sgd", remove_unused_columns=False,
    )  # fmt: skip
    return kind(
        model=model or tiny.built(tiny.llama), args=Arguments(**(defaults | options)),
        train_dataset=data, eval_dataset=eval_dataset, data_collator=Collator(),
        eval_data_collator=Collator(), bench_data_collator=Collator(), dataset_tags=["x"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "packing", [(), ("sample_packing",), ("sample_packing", "multipack_real_batches")]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_joint_is_the_trainer_of_axolotl(tmp_path, packing, steps):
    options = dict(dict.fromkeys(packing, True), gradient_accumulation_steps=steps)
    expected = make(AxolotlTrainer, tmp_path, sequences(18, task=False), **options)
    found = make(JointTrainer, tmp_path, sequences(18), **options)
    before = deepcopy(found.model)
    expected.train()
    found.train()
    assert tiny.distance(found.model, expected.model) < ROUNDED < tiny.distance(found.model, before)
    assert found.trained_tokens == expected.trained_tokens  # batches are prepared by Axolotl
    assert not found.task_engine.refused  # in one backward pass
    for one, other in zip(found.state.log_history[:-1], expected.state.log_history, strict=False):
        assert {key: one[key] for key in other} == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_task_gradients_of_packed_rows_equal_separate_backward_passes(tmp_path, several):
    data = sequences(6, first_label=False)
    options = dict(sample_packing=True, learning_rate=0.0, multipack_real_batches=several)
    options["gradient_accumulation_steps"] = 1 if several else 2
    trainer = make(VacTrainer, tmp_path, data, **options)
    trainer.train()
    assert not trainer.task_engine.refused
    n = sum(int((row["labels"][1:] != -100).sum()) for row in data)
    rows = []
    for task in trainer.report.tasks:
        trainer.model.zero_grad()
        for row in (row for row in data if row["task"] == task):  # each sequence by itself
            logits = trainer.model(input_ids=row["input_ids"][None]).logits[0]
            (F.cross_entropy(logits[:-1], row["labels"][1:], reduction="sum") / n).backward()
        rows.append({id(p): p.grad.flatten() for p in trainer.model.parameters()})
    for group, gram in zip(trainer.task_engine.groups, trainer.report.gram, strict=True):
        x = torch.stack([torch.cat([row[id(p)] for p in group.parameters]) for row in rows])
        assert (x @ x.T - gram).abs().max() < EXACT * gram.abs().max()


@pytest.mark.parametrize("packing", [False, True])
def test_evaluation_of_each_task(tmp_path, packing):
    data = sequences(6, first_label=False)
    trainer = make(
        JointTrainer, tmp_path, data, eval_dataset=data, sample_packing=packing,
        eval_sample_packing=packing,
    )  # fmt: skip
    found = trainer.evaluate()
    for task in {row["task"] for row in data}:
        total, n = 0.0, 0
        for row in (row for row in data if row["task"] == task):
            logits = trainer.model(input_ids=row["input_ids"][None]).logits[0]
            total += F.cross_entropy(logits[:-1], row["labels"][1:], reduction="sum").item()
            n += int((row["labels"][1:] != -100).sum())
        assert found[f"eval_loss_{task}"] == pytest.approx(total / n)
    without = make(JointTrainer, tmp_path, data, eval_dataset=sequences(6, task=False))
    assert "eval_loss_fr" not in without.evaluate()


def test_each_trainer_has_a_method_of_its_own(tmp_path):
    one, other = (make(VacTrainer, tmp_path, sequences(8)) for _ in range(2))
    one.train()
    assert one.task_engine.step > 0 == other.task_engine.step
    assert one._method is not other._method is not VacTrainer.method


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"orpo_alpha": 0.1}, "orpo_alpha does not work.*pairs of answers; leave it out"),
        ({"activation_offloading": True}, "activation_offloading does not work.*not tested"),
        ({"layer_offloading": True}, "layer_offloading does not work.*not tested"),
        ({"balance_labels": True}, "balance_labels does not work.*a collator"),
        ({"pretraining": True}, "pretraining does not work.*a pretraining_dataset"),
    ],
    ids=str,
)
def test_settings_that_are_refused(tmp_path, options, error):
    with pytest.raises(GradientError, match=error):
        make(JointTrainer, tmp_path, sequences(4), **options)


def test_classes_that_are_refused(tmp_path):
    class NoMethod(AxolotlTaskGradients, AxolotlTrainer): ...

    class NoAxolotl(AxolotlTaskGradients, Trainer):
        method = gradvac.Joint()

    class Penalised(AxolotlTrainer):
        def compute_loss(self, *args, **kwargs): ...

    class OtherLoss(AxolotlTaskGradients, Penalised):
        method = gradvac.Joint()

    for kind, error in [
        (NoMethod, "NoMethod has no method; write e.g. method"),
        (NoAxolotl, r"write class NoAxolotl\(AxolotlTaskGradients, AxolotlTrainer\)"),
        (OtherLoss, "Penalised.compute_loss returns one loss for all tasks"),
    ]:
        with pytest.raises(GradientError, match=error):
            make(kind, tmp_path, sequences(4))


def test_packed_rows_that_are_refused():
    collate = PackedCollator(TaskCollator(Collator(), "task"), "task")
    one, other = sequences(2)
    assert collate([[one], [one, other]])[LENGTHS] == [[3], [3, 4]]
    del other["task"]
    with pytest.raises(GradientError, match="sequence 1 of a packed row has no 'task'"):
        collate([[one, other]])
    with pytest.raises(GradientError, match=r"padded on the left; set padding_side='right'"):
        PackedCollator(TaskCollator(Collator("left"), "task"), "task")([[one]])


class Strategy:
    """Rows to tokens, one by one or in batches; texts without letters are left out."""

    def tokenize_prompt(self, prompt):
        text = prompt["text"]
        if isinstance(text, str):
            return {"input_ids": list(text.encode())}
        return {"input_ids": [list(each.encode()) for each in text if each]}


def test_a_prompt_strategy_keeps_the_task():
    tokenize = keep_task(Strategy()).tokenize_prompt
    assert tokenize({"text": "a", "task": "fr"}) == {"input_ids": [97], "task": "fr"}
    both = tokenize({"text": ["a", "b"], "task": ["fr", "hi"]})
    assert both == {"input_ids": [[97], [98]], "task": ["fr", "hi"]}
    with pytest.raises(GradientError, match="makes 1 rows of 2"):
        tokenize({"text": ["a", ""], "task": ["fr", "hi"]})
    with pytest.raises(GradientError, match="no column 'task', only text"):
        tokenize({"text": "a"})
