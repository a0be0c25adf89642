"""The Trainer with task gradients against the ordinary Trainer and loops written by hand."""

from copy import deepcopy

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import gradvac
from gradvac.engine.checks import Checks
from gradvac.integrations.transformers import TaskGradients
from gradvac.integrations.transformers_batch import segments_of
from gradvac.integrations.transformers_loss import samples_of
from tests.integrations import tiny
from tests.methods.helpers import random_order
from tests.reference.algorithm1 import Algorithm1

EXACT = 1e-10
ROUNDED = 1e-5  # where transformers computes a loss in float32, over the ~10 steps of a run


class TaskSeq2SeqTrainer(TaskGradients, transformers.Seq2SeqTrainer):
    pass


ORDINARY = {TaskGradients: transformers.Trainer, TaskSeq2SeqTrainer: transformers.Seq2SeqTrainer}


def joint_error(kind, model, data, folder, **options):
    """Largest difference of a parameter of Joint from the ordinary Trainer's, and both Trainers."""
    plain, ours = deepcopy(model), deepcopy(model)
    expected = tiny.train(ORDINARY[kind], plain, data, folder, **options)
    found = tiny.train(kind, ours, data, folder, method=gradvac.Joint(), **options)
    assert tiny.distance(plain, model) > 1e-2  # something was learned
    return tiny.distance(plain, ours), expected, found


# 18 samples in batches of 4: the last batch and, with accumulation, the last step are smaller.
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 3}, {"activation_checkpointing": True}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_joint_is_the_ordinary_seq2seq_trainer(tmp_path, options):
    model = tiny.built(tiny.t5, dropout_rate=0.1)
    error, expected, found = joint_error(
        TaskSeq2SeqTrainer, model, tiny.samples(18), tmp_path, max_grad_norm=0.5, **options
    )
    assert error < EXACT
    assert not found.task_engine.refused  # in one backward pass
    for ours, plain in zip(found.state.log_history[:-1], expected.state.log_history, strict=False):
        assert {key: ours[key] for key in plain} == pytest.approx(plain, rel=EXACT)


def test_joint_is_the_ordinary_seq2seq_trainer_with_label_smoothing(tmp_path):
    model, data = tiny.built(tiny.t5), tiny.samples(18)
    for sample in data:  # the ordinary Trainer then needs them from the collator
        made = model.prepare_decoder_input_ids_from_labels(sample["labels"][None])
        sample["decoder_input_ids"] = made[0]
    error, *_ = joint_error(
        TaskSeq2SeqTrainer, model, data, tmp_path,
        gradient_accumulation_steps=2, label_smoothing_factor=0.1,
    )  # fmt: skip
    assert error < ROUNDED


@pytest.mark.parametrize(
    ("make", "data", "smoothing", "limit"),
    [
        (tiny.llama, tiny.samples(18), 0.0, ROUNDED),
        (tiny.llama, tiny.samples(18), 0.1, ROUNDED),
        (tiny.gpt2, tiny.samples(18), 0.0, ROUNDED),
        (tiny.masked, tiny.samples(18), 0.0, ROUNDED),
        (tiny.tagger, tiny.samples(18, tiny.CLASSES), 0.0, EXACT),
        (tiny.tagger, tiny.samples(18, tiny.CLASSES), 0.1, ROUNDED),
        (tiny.classifier, tiny.samples(18, tiny.CLASSES, per_sample=True), 0.0, EXACT),
    ],
)
def test_joint_is_the_ordinary_trainer(tmp_path, make, data, smoothing, limit):
    error, *_ = joint_error(
        TaskGradients, tiny.built(make), data, tmp_path,
        gradient_accumulation_steps=2, label_smoothing_factor=smoothing,
    )  # fmt: skip
    assert error < limit


def test_joint_is_the_ordinary_trainer_on_a_stream_of_single_samples(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(tiny.samples(12))

    options = dict(max_steps=4, per_device_train_batch_size=1, gradient_accumulation_steps=3)
    model = tiny.built(tiny.tagger)
    model.classifier, model.num_labels = nn.Linear(8, tiny.V).double(), tiny.V
    error, *_ = joint_error(TaskGradients, model, Stream(), tmp_path, **options)
    assert error < EXACT


@pytest.mark.parametrize("accumulation", [1, 2])
def test_after_the_first_steps_nothing_is_checked_again(tmp_path, accumulation, monkeypatch):
    checked, ends = [], []
    check = Checks.check

    def counted(self, passes, gather=None):
        checked.append(passes.batch.followed)
        return check(self, passes, gather)

    class Counting(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            ends.append(len(checked))

    data = tiny.samples(16)
    for sample in data:
        sample["labels"] = sample["input_ids"]
    monkeypatch.setattr(Checks, "check", counted)
    tiny.train(
        TaskGradients, tiny.built(tiny.llama), data, tmp_path, method=gradvac.GradVac(),
        callbacks=[Counting()], gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=4 // accumulation,
    )  # fmt: skip
    assert all(checked) and ends[0] > 0  # samples are followed to the losses; the first is checked
    assert ends[1:] == [ends[1]] * 3


class Regression(TaskGradients):
    def task_losses(self, model, inputs):
        labels = inputs.pop("labels")
        return (model(**inputs).logits - labels).square(), None


def test_a_loss_of_ones_own(tmp_path):
    data = tiny.samples(16, per_sample=True)
    for sample in data:
        sample["labels"] = torch.randn(tiny.CLASSES, dtype=torch.float64)
    model = tiny.built(tiny.classifier, problem_type="regression")
    plain, ours = deepcopy(model), deepcopy(model)
    tiny.train(transformers.Trainer, plain, data, tmp_path)
    trainer = tiny.train(Regression, ours, data, tmp_path, method=gradvac.Joint())
    assert tiny.distance(plain, ours) < EXACT < 1e-2 < tiny.distance(model, ours)
    assert trainer.state.log_history[0]["loss"] > 0


def gradients_of_tasks(model, groups, batches):
    """Per group and task, the gradient of the step's loss, by one backward per task.

    The loss of T5 is the mean of a micro-batch whatever the step, and the Trainer adds them up.
    """
    found = {group.name: {} for group in groups}
    for task in sorted({task for batch in batches for task in batch["task"]}):
        model.zero_grad()
        for batch in batches:
            own = torch.tensor([t == task for t in batch["task"]])
            labels = batch["labels"].where(own[:, None], -100)
            logits = model(input_ids=batch["input_ids"], labels=labels).logits
            total = F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum")
            (total / (batch["labels"] != -100).sum()).backward()
        for group in groups:
            gradients = [p.grad.flatten() for p in group.parameters]
            found[group.name][task] = torch.cat(gradients).clone()
    return found


def names_of_step(gradients, step):
    """A geometry with what visiting orders depend on."""
    groups, tasks = tuple(gradients), tuple(next(iter(gradients.values())))
    gram = torch.zeros(len(groups), len(tasks), len(tasks), dtype=torch.float64)
    return gradvac.StepGeometry(gram, gram[0, 0], tasks, groups, step)


def test_gradvac_is_a_loop_of_separate_backwards_and_algorithm_1(tmp_path):
    """Independent of engine and method: autograd per task, the paper's algorithm on vectors."""
    model = tiny.built(tiny.t5, dropout_rate=0.0)
    by_hand, batches, data = deepcopy(model), [], tiny.samples(48)

    def collator(samples):
        batches.append(transformers.default_data_collator(samples))
        return dict(batches[-1])

    trainer = tiny.train(
        TaskSeq2SeqTrainer, model, data, tmp_path, method=gradvac.GradVac(beta=0.3, seed=7),
        data_collator=collator, max_steps=6, gradient_accumulation_steps=2, max_grad_norm=0.7,
    )  # fmt: skip
    tasks = {tuple(sample["input_ids"].tolist()): sample["task"] for sample in data}
    for batch in batches:
        batch["task"] = [tasks[tuple(ids)] for ids in batch["input_ids"].tolist()]

    literal, edits, conflicts = Algorithm1(0.3, set(tiny.TASKS)), [], []
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.0)
    groups = gradvac.parameter_groups(by_hand, "all_layer")
    for step in range(6):
        gradients = gradients_of_tasks(by_hand, groups, batches[2 * step : 2 * step + 2])
        combined = literal.step(gradients, random_order(7, names_of_step(gradients, step)))
        edits.append(sum(literal.edits.values()))
        stacked = [torch.stack(list(g.values())) for g in gradients.values()]
        conflicts.append(sum(int((rows @ rows.T < 0).sum()) for rows in stacked))
        for group in groups:
            pieces = combined[group.name].split([p.numel() for p in group.parameters])
            for p, piece in zip(group.parameters, pieces, strict=True):
                p.grad = piece.view_as(p)
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.7)
        optimizer.param_groups[0]["lr"] = 1e-2 * (6 - step) / 6  # the Trainer's linear schedule
        optimizer.step()
    assert tiny.distance(model, by_hand) < EXACT
    logged = [entry for entry in trainer.state.log_history if "edits" in entry]
    assert [entry["edits"] for entry in logged] == edits
    assert [entry["conflicts"] for entry in logged] == conflicts
    k, groups = len(tiny.TASKS), len(trainer.report.groups)
    assert [entry["pairs"] for entry in logged] == [groups * k * (k - 1)] * len(logged)
    assert sum(edits) > 0 < sum(conflicts)


@pytest.mark.parametrize("steps", [1, 3])
def test_joint_is_the_ordinary_trainer_on_rows_of_several_sequences(tmp_path, steps):
    data = [
        {"input_ids": row["input_ids"].tolist()[: 2 + n % 5], "task": row["task"]}
        for n, row in enumerate(tiny.samples(18))
    ]
    model = tiny.built(tiny.llama)
    model.config.use_cache = False  # else transformers lets the sequences see each other
    options = dict(optim="sgd", learning_rate=0.5, gradient_accumulation_steps=steps)
    collator = transformers.DataCollatorWithFlattening()
    error, _, found = joint_error(
        TaskGradients, model, data, tmp_path, data_collator=collator, **options
    )
    assert error < ROUNDED
    assert not found.task_engine.refused
    assert set(found.report.tasks) <= set(tiny.TASKS)


def padded_rows(features):
    """Rows of sequences laid end to end, padded; position ids begin again with each sequence."""
    rows = [[torch.as_tensor(ids) for ids in f["sequences"]] for f in features]
    pad = lambda pieces, value: nn.utils.rnn.pad_sequence(
        [torch.cat(row) for row in pieces], batch_first=True, padding_value=value
    )
    labels = [[torch.cat([torch.tensor([-100]), ids[1:]]) for ids in row] for row in rows]
    positions = [[torch.arange(len(ids)) for ids in row] for row in rows]
    return {
        "input_ids": pad(rows, 0),
        "labels": pad(labels, -100),
        "position_ids": pad(positions, 0),
    }


def sequences_in_rows():
    """Six rows of one to three sequences, with the task of each."""
    samples, rows = iter(tiny.samples(12)), []
    for n in (3, 1, 2, 2, 3, 1):
        own = [next(samples) for _ in range(n)]
        ids = [s["input_ids"].tolist()[: 2 + (n + k) % 4] for k, s in enumerate(own)]
        rows.append({"sequences": ids, "task": [s["task"] for s in own]})
    return rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("steps", [1, 2])
def test_joint_is_the_ordinary_trainer_on_several_rows_of_sequences(tmp_path, attention, steps):
    model = tiny.built(tiny.llama)
    model.config.use_cache = False
    model.set_attn_implementation(attention)
    options = dict(optim="sgd", learning_rate=0.5, gradient_accumulation_steps=steps)
    error, _, found = joint_error(
        TaskGradients, model, sequences_in_rows(), tmp_path, data_collator=padded_rows,
        remove_unused_columns=False, per_device_train_batch_size=3, **options,
    )  # fmt: skip
    assert error < ROUNDED
    assert not found.task_engine.refused


def test_task_gradients_of_several_rows_of_sequences(tmp_path):
    """Against a forward and a backward pass of each sequence by itself."""
    model, data = tiny.built(tiny.llama), sequences_in_rows()
    model.config.use_cache = False
    trainer = tiny.make_trainer(
        TaskGradients, model, data, tmp_path, method=gradvac.GradVac(), data_collator=padded_rows,
        remove_unused_columns=False, per_device_train_batch_size=6, max_steps=1, learning_rate=0.0,
        eval_dataset=data, per_device_eval_batch_size=3,
    )  # fmt: skip
    trainer.train()
    assert not trainer.task_engine.refused
    rows, losses = [], {}
    n = sum(len(ids) - 1 for row in data for ids in row["sequences"])
    for task in trainer.report.tasks:
        model.zero_grad()
        total, count = 0.0, 0
        for row in data:
            for ids, name in zip(row["sequences"], row["task"], strict=True):
                if name == task:
                    ids = torch.tensor(ids)
                    loss = F.cross_entropy(
                        model(ids[None]).logits[0, :-1], ids[1:], reduction="sum"
                    )
                    (loss / n).backward()
                    total, count = total + loss.item(), count + len(ids) - 1
        rows.append({id(p): p.grad.flatten() for p in model.parameters()})
        losses[task] = total / count
    for group, gram in zip(trainer.task_engine.groups, trainer.report.gram, strict=True):
        x = torch.stack([torch.cat([row[id(p)] for p in group.parameters]) for row in rows])
        assert (x @ x.T - gram).abs().max() < EXACT * gram.abs().max()
    found = trainer.evaluate()
    for task, loss in losses.items():
        assert found[f"eval_loss_{task}"] == pytest.approx(loss)


def test_rows_whose_attention_mask_hides_the_packing_fall_back(tmp_path):
    """Beside an attention mask transformers ignores position ids that begin again."""
    model = tiny.built(tiny.llama)
    model.config.use_cache = False

    def masked(features):
        batch = padded_rows(features)
        return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}

    error, _, found = joint_error(
        TaskGradients, model, sequences_in_rows(), tmp_path, data_collator=masked,
        remove_unused_columns=False, per_device_train_batch_size=3, optim="sgd", learning_rate=0.5,
    )  # fmt: skip
    assert error < ROUNDED
    assert "tokens of different tasks see each other" in found.task_engine.refused


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[0, 1, 2, 3]], "2 tasks and its position ids begin 1 sequences"),
        ([[0, 1, 0, 1, 0, 1]], "2 tasks and its position ids begin 3"),
        ([[2, 3, 0, 1, 0]], "begin 2 sequences; each sequence needs .* begin with 0"),
    ],
)
def test_rows_with_another_number_of_tasks(positions, message):
    with pytest.raises(gradvac.GradientError, match=message):
        segments_of({"position_ids": torch.tensor(positions)}, [["fr"], ["hi"]])
    several = {"position_ids": torch.tensor([*positions, [0] + [1] * (len(positions[0]) - 1)])}
    with pytest.raises(gradvac.GradientError, match=message):
        segments_of(several, [["fr", "hi"], ["hi"]])


def test_rows_of_sequences_without_position_ids():
    batch = {"input_ids": torch.zeros(2, 5)}
    message = (
        r"2 rows of a batch have 3 tasks, .* no position_ids \[2, 5\] .*; let the data collator"
    )
    with pytest.raises(gradvac.GradientError, match=message):
        segments_of(batch, [["fr", "hi"], ["hi"]])


def test_padding_at_the_end_of_a_row_begins_no_sequence():
    positions = {"position_ids": torch.tensor([[0, 1, 0, 1, 0, 0]])}
    assert segments_of(positions, [["fr", "hi"]]).tolist() == [[0, 0, 1, 1, 1, 1]]
    assert segments_of(positions, [["fr"]]) is None
    several = {"position_ids": torch.tensor([[0, 1, 0, 1, 0, 0], [0, 1, 2, 0, 1, 2]])}
    found = [[0, 0, 1, 1, 1, 1], [2, 2, 2, 3, 3, 3]]
    assert segments_of(several, [["fr", "hi"], ["hi", "fr"]]).tolist() == found


def test_losses_of_other_tokens_than_those_of_a_row_are_refused():
    counted = torch.ones(2, 7, dtype=torch.bool)  # two virtual tokens before five
    assert samples_of(counted, 0).tolist() == [0] * 7 + [1] * 7
    with pytest.raises(gradvac.GradientError, match=r"\[2, 7\] and packed rows have 5 tokens"):
        samples_of(counted, 5)


def test_a_batch_of_one_sequence_in_each_row_has_no_segments():
    names = [["fr"], ["hi"]]
    assert segments_of({"position_ids": torch.zeros(2, 3)}, names) is None
    shared = {"position_ids": torch.arange(3)[None], "input_ids": torch.zeros(2, 3)}
    assert segments_of(shared, names) is None
