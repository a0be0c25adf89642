"""What else a Trainer does in a run: checkpoints, logs, precisions, evaluation."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import transformers

import gradvac
from gradvac.integrations.transformers import STATE_FILE, TaskGradients
from tests.integrations import tiny
from tests.integrations.test_transformers import TaskSeq2SeqTrainer

DATA = tiny.samples(24, tiny.CLASSES)


def test_a_resumed_run_ends_where_one_without_a_break_does(tmp_path):
    start = tiny.built(tiny.tagger, hidden_dropout_prob=0.1)
    options = dict(max_steps=6, gradient_accumulation_steps=2, save_strategy="steps", save_steps=3)
    through, halted, resumed = deepcopy(start), deepcopy(start), deepcopy(start)
    method = lambda: gradvac.GradVac(beta=0.3)
    a = tiny.train(TaskGradients, through, DATA, tmp_path / "a", method=method(), **options)
    tiny.train(TaskGradients, halted, DATA, tmp_path / "b", method=method(), **options)
    last = tmp_path / "b" / "checkpoint-3"
    b = tiny.train(
        TaskGradients, resumed, DATA, tmp_path / "b", str(last), method=method(), **options
    )
    assert tiny.distance(through, resumed) == 0.0
    one, other = a.task_engine.state_dict(), b.task_engine.state_dict()
    assert one["step"] == other["step"] == 6
    assert torch.equal(one["method"]["targets"], other["method"]["targets"])
    assert one["method"]["targets"].abs().max() > 0.1

    (last / STATE_FILE).unlink()  # what the state is good for
    forgetful = deepcopy(start)
    tiny.train(
        TaskGradients, forgetful, DATA, tmp_path / "b", str(last), method=method(), **options
    )
    assert tiny.distance(through, forgetful) > 1e-6


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    options = dict(max_steps=2, save_strategy="steps", save_steps=1)
    model = tiny.built(tiny.tagger)
    tiny.train(TaskGradients, model, DATA, tmp_path, method=gradvac.GradVac(), **options)
    with pytest.raises(gradvac.GradientError, match=r"state of GradVac and the method is PCGrad"):
        tiny.train(
            TaskGradients, model, DATA, tmp_path, True, method=gradvac.PCGrad(), **options
        )  # fmt: skip


def test_logged_losses_are_the_means_of_each_task(tmp_path):
    model = tiny.built(tiny.t5, dropout_rate=0.0)
    data = tiny.samples(8)
    expected = {}
    for task in tiny.TASKS:
        own = [sample for sample in data if sample["task"] == task]
        batch = transformers.default_data_collator([{**s, "task": 0} for s in own])
        with torch.no_grad():
            out = model(input_ids=batch["input_ids"], labels=batch["labels"])
        expected[task] = out.loss.item()
    trainer = tiny.train(
        TaskSeq2SeqTrainer, model, data, tmp_path, method=gradvac.Joint(),
        max_steps=1, per_device_train_batch_size=8,
    )  # fmt: skip
    entry = trainer.state.log_history[0]
    assert {task: entry[f"loss_{task}"] for task in tiny.TASKS} == pytest.approx(expected, 1e-10)


class Seen(transformers.TrainerCallback):
    """What a logger of the Trainer, such as that of wandb, is given."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_the_loggers_of_the_trainer_get_our_numbers(tmp_path):
    seen = Seen()
    model = tiny.built(tiny.tagger)
    tiny.train(
        TaskGradients, model, DATA, tmp_path, method=gradvac.PCGrad(), max_steps=2, callbacks=[seen]
    )
    for logs in seen.logs[:2]:
        assert {"loss", "conflicts", "pairs", "edits"} <= set(logs)
        assert {name for name in logs if name.startswith("loss_")} <= {
            f"loss_{task}" for task in tiny.TASKS
        }
        assert 0 <= logs["edits"] <= logs["pairs"] and logs["conflicts"] <= logs["pairs"]


def test_a_new_model_begins_with_a_method_without_a_past(tmp_path):
    options = dict(method=gradvac.GradVac(beta=0.3), max_steps=3)
    trainer = tiny.train(
        TaskGradients, None, DATA, tmp_path, model_init=lambda: tiny.built(tiny.tagger), **options
    )
    first, targets = deepcopy(trainer.model), trainer.task_engine.state_dict()["method"]["targets"]
    trainer.train()
    assert trainer.model is not first
    assert tiny.distance(trainer.model, first) == 0.0
    assert torch.equal(trainer.task_engine.state_dict()["method"]["targets"], targets)


def in_16_bits(kind, model, folder, scale=None, **options):
    """Train under autocast; with a scale, in float16 with a GradScaler, which a CPU can do too."""
    options = dict(optim="sgd", learning_rate=0.1) | options
    if scale is None:
        return tiny.train(kind, model, DATA, folder, bf16=True, **options)
    trainer = tiny.make_trainer(kind, model, DATA, folder, **options)
    accelerator = trainer.accelerator
    accelerator.state._mixed_precision = "fp16"  # refused on a CPU if asked for openly
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.train()
    return trainer


@pytest.mark.parametrize("scale", [None, 2.0**10])
def test_joint_is_the_ordinary_trainer_in_16_bits(tmp_path, scale):
    start = tiny.built(tiny.tagger, torch.float32)
    plain, ours = deepcopy(start), deepcopy(start)
    options = dict(scale=scale, gradient_accumulation_steps=2)
    a = in_16_bits(transformers.Trainer, plain, tmp_path, **options)
    b = in_16_bits(TaskGradients, ours, tmp_path, method=gradvac.Joint(), **options)
    first, ours_first = a.state.log_history[0], b.state.log_history[0]
    assert ours_first["loss"] == pytest.approx(first["loss"], rel=1e-6)  # the same forward pass
    assert ours_first["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-2)
    assert tiny.distance(plain, ours) < 0.01 * tiny.distance(start, plain)


def test_an_overflow_skips_the_step_as_in_the_ordinary_trainer(tmp_path, caplog):
    start = tiny.built(tiny.tagger, torch.float32)
    for kind, own in ((transformers.Trainer, {}), (TaskGradients, {"method": gradvac.GradVac()})):
        model = deepcopy(start)
        trainer = in_16_bits(kind, model, tmp_path, scale=2.0**24, max_steps=1, **own)
        assert tiny.distance(model, start) == 0.0
        assert trainer.accelerator.scaler.get_scale() == 2.0**23
        assert trainer.lr_scheduler.last_epoch == 0  # the schedule waits
    assert "step skipped: the gradient of task" in caplog.text


def test_after_overflows_the_training_goes_on(tmp_path, caplog):
    start = tiny.built(tiny.tagger, torch.float32)
    model, method = deepcopy(start), gradvac.GradVac()
    trainer = in_16_bits(TaskGradients, model, tmp_path, scale=2.0**20, max_steps=12, method=method)
    skipped = caplog.text.count("step skipped")
    assert 0 < skipped < 6
    assert trainer.accelerator.scaler.get_scale() == 2.0 ** (20 - skipped)
    assert trainer.lr_scheduler.last_epoch == 12 - skipped
    assert trainer.task_engine.step == 12
    assert tiny.distance(model, start) > 1e-3
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("kind", [tiny.t5, tiny.tagger])
def test_one_evaluation_set_gives_the_loss_of_each_task(tmp_path, kind):
    """The mean of the model's own loss over a task's labels, sample by sample."""
    model = tiny.built(kind).eval()
    data = tiny.samples(10) if kind is tiny.t5 else DATA[:10]
    names = ("input_ids", "attention_mask", "labels")
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for sample in data:
            given = {k: torch.as_tensor(sample[k])[None] for k in names if k in sample}
            count = int((given["labels"] != -100).sum())
            own = sums.setdefault(sample["task"], [0.0, 0])
            own[0] += model(**given).loss.item() * count
            own[1] += count
    trainer = tiny.make_trainer(
        TaskGradients, model, data, tmp_path, method=gradvac.GradVac(), per_device_eval_batch_size=3
    )
    found = trainer.evaluate(data)
    expected = {f"eval_loss_{task}": total / count for task, (total, count) in sums.items()}
    assert len(expected) > 1
    assert {key: found[key] for key in found if key.startswith("eval_loss_")} == pytest.approx(
        expected, rel=1e-6
    )
    assert trainer.evaluate({"x": data})["eval_x_loss"] == pytest.approx(found["eval_loss"])


def test_evaluation_changes_nothing_of_training(tmp_path):
    """Even before the first batch, from which the Trainer learns what the model divides by."""
    start = tiny.built(tiny.t5)
    plain, ours = deepcopy(start), deepcopy(start)
    for kind, model, own in (
        (transformers.Seq2SeqTrainer, plain, {}),
        (TaskSeq2SeqTrainer, ours, {"method": gradvac.Joint()}),
    ):
        data = tiny.samples(8)
        if not own:
            data = [{k: v for k, v in sample.items() if k != "task"} for sample in data]
        tiny.train(
            kind, model, data, tmp_path, max_steps=2, gradient_accumulation_steps=2,
            eval_dataset=data[:4], eval_on_start=True, **own,
        )  # fmt: skip
    assert tiny.distance(plain, ours) < 1e-9 < 1e-3 < tiny.distance(start, plain)


def test_evaluation_and_prediction_need_no_task_and_do_not_mind_one(tmp_path):
    model = tiny.built(tiny.t5)
    with_tasks = tiny.samples(6)
    without = [{k: v for k, v in sample.items() if k != "task"} for sample in with_tasks]
    options = dict(predict_with_generate=True, generation_max_length=4, max_steps=1)
    trainer = tiny.train(
        TaskSeq2SeqTrainer, model, with_tasks, tmp_path, method=gradvac.Joint(), **options
    )
    plain = tiny.make_trainer(transformers.Seq2SeqTrainer, model, without, tmp_path, **options)
    expected = plain.evaluate(without)["eval_loss"]
    assert trainer.evaluate(without)["eval_loss"] == expected
    assert trainer.evaluate(with_tasks)["eval_loss"] == expected
    predicted = trainer.predict(with_tasks).predictions
    assert (predicted == plain.predict(without).predictions).all()


def test_collators_that_pad_by_a_tokenizer(tmp_path: Path):
    from tokenizers import Tokenizer, models

    words = {"<pad>": 0} | {f"w{n}": n for n in range(1, tiny.V)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words)), pad_token="<pad>"
    )
    model = tiny.built(tiny.t5)
    data = [
        {
            "input_ids": sample["input_ids"][: 3 + n % 3].tolist(),
            "labels": sample["labels"][: 2 + n % 2].tolist(),
            "task": n % 2,
        }
        for n, sample in enumerate(tiny.samples(8))
    ]
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, model)
    options = dict(data_collator=collator, dataloader_num_workers=1, task_names=["fr", "hi"])
    trainer = tiny.train(
        TaskSeq2SeqTrainer, model, data, tmp_path, method=gradvac.GradVac(), **options
    )
    assert set(trainer.report.tasks) == {"fr", "hi"}
