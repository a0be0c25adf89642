"""TRL's SFTTrainer with task gradients against the ordinary one."""

from copy import deepcopy

import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

import datasets
import peft
import torch
import transformers
from torch.nn import functional as F
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import gradvac
from gradvac.integrations import trl_loss
from gradvac.integrations.transformers import TaskGradients
from gradvac.integrations.trl import TaskSFTTrainer
from tests.integrations import sft, tiny

pytestmark = pytest.mark.filterwarnings(  # of PEFT 0.21 and TRL 1.16 with transformers 5.23
    "ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"
)
EXACT = 1e-10
ROUNDED = 1e-6  # TRL's log-probabilities are float32 whatever the model is


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("CI", "1")  # no telemetry
    monkeypatch.setattr(datasets, "disable_progress_bars", lambda: None)
    datasets.disable_caching()


def lora(**options):
    shape = dict(r=2, target_modules="all-linear", init_lora_weights=False)
    return peft.LoraConfig(task_type="CAUSAL_LM", **(shape | options))


def both(model, data, folder, error=ROUNDED, **options):
    """The ordinary trainer and that with Joint, after the same training."""
    plain, ours = deepcopy(model), deepcopy(model)
    expected = sft.make(SFTTrainer, plain, data, folder, **deepcopy(options))
    before = deepcopy(expected.model)
    expected.train()
    assert tiny.distance(before, expected.model) > 10 * error  # something was learned
    found = sft.make(TaskSFTTrainer, ours, data, folder, method=gradvac.Joint(), **options)
    found.train()
    assert tiny.distance(found.model, expected.model) < error
    assert tiny.distance(plain, ours) < error
    assert not found.task_engine.refused  # in one backward pass
    for one, other in zip(found.state.log_history[:-1], expected.state.log_history, strict=False):
        assert {key: one[key] for key in other} == pytest.approx(other, rel=max(100 * error, 1e-4))
    return expected, found


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_joint_is_the_ordinary_trainer(tmp_path, adapters, steps):
    options = {"peft_config": lora()} if adapters else {}
    both(
        tiny.built(tiny.llama), sft.texts(18), tmp_path, gradient_accumulation_steps=steps,
        per_device_train_batch_size=4 if steps == 1 else 1, **options,
    )  # fmt: skip


def test_completion_only_losses(tmp_path):
    model = tiny.built(tiny.llama)
    _, found = both(model, sft.texts(18, True), tmp_path, peft_config=lora())
    assert found.completion_only_loss


@pytest.mark.parametrize(
    "options",
    [
        {"activation_checkpointing": True},
        {"loss_type": "dft"},
        {"max_length": 4},
        {
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {"selective": True, "use_reentrant": False},
        },
    ],
    ids=str,
)
def test_settings_of_sft(tmp_path, options):
    both(tiny.built(tiny.llama), sft.texts(18), tmp_path, peft_config=lora(), **options)


@pytest.mark.filterwarnings("ignore:.*label_smoothing_factor.*:FutureWarning")
def test_label_smoothing(tmp_path):
    both(tiny.built(tiny.llama), sft.texts(18), tmp_path, label_smoothing_factor=0.1)


def test_bfloat16(tmp_path):
    model = tiny.built(tiny.llama, torch.float32)
    options = dict(peft_config=lora(), bf16=True)
    both(model, sft.texts(18), tmp_path, error=1e-2, **options)  # sums of tasks are in float32


def loss_in_float64(trainer, model, batch, num_items_in_batch):
    logits = model(**{key: x for key, x in batch.items() if key != "labels"}).logits
    total = F.cross_entropy(logits[:, :-1].mT, batch["labels"][:, 1:], reduction="sum")
    return total / num_items_in_batch


def gram_by_hand(trainer, loss, batches, tasks):
    """Gram matrices [G, K, K] from a backward pass per task, of the tasks of the report."""
    n = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    rows, trained = [], [p for p in trainer.model.parameters() if p.requires_grad]
    for task in trainer.report.tasks:
        trainer.model.zero_grad()
        for batch, names in zip(batches, tasks, strict=True):
            own = torch.tensor([name == task for name in names])
            own = (
                own if len(own) == batch["labels"].shape[1] else own[:, None]
            )  # of tokens, of rows
            labels = batch["labels"].where(own, -100)
            of_task = {**batch, "labels": labels}
            loss(trainer, trainer.model, of_task, num_items_in_batch=n).backward()
        rows.append({id(p): p.grad.flatten() for p in trained})
    stacks = [
        torch.stack([torch.cat([row[id(p)] for p in group.parameters]) for row in rows])
        for group in trainer.task_engine.groups
    ]
    return torch.stack([x @ x.T for x in stacks])


@pytest.mark.parametrize(
    ("options", "loss"),
    [({}, loss_in_float64), ({"peft_config": lora()}, SFTTrainer.compute_loss)],
    ids=["full", "lora"],
)
def test_task_gradients_equal_separate_backward_passes(tmp_path, options, loss):
    trainer = sft.make(
        TaskSFTTrainer, tiny.built(tiny.llama), sft.texts(12, completions=True), tmp_path,
        method=gradvac.GradVac(), per_device_train_batch_size=6, gradient_accumulation_steps=2,
        max_steps=1, learning_rate=0.0, train_sampling_strategy="sequential", **options,
    )  # fmt: skip
    trainer.train()
    batches = [dict(batch) for batch in trainer.get_train_dataloader()]
    tasks = [batch.pop("task") for batch in batches]
    expected = gram_by_hand(trainer, loss, batches, tasks)
    assert (trainer.report.gram - expected).abs().max() < EXACT * expected.abs().max()
    assert not trainer.task_engine.refused


def test_a_trained_head_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(trl_loss, "_CHUNK", 5 * tiny.V)
    both(tiny.built(tiny.llama), sft.texts(8), tmp_path)


def test_evaluation_of_each_task(tmp_path):
    data = sft.texts(18)
    alone = {task: data.filter(lambda row, task=task: row["task"] == task) for task in tiny.TASKS}
    trainer = sft.make(
        TaskSFTTrainer, tiny.built(tiny.llama), data, tmp_path, method=gradvac.Joint(),
        eval_dataset={"all": data, **alone}, per_device_eval_batch_size=3,
    )  # fmt: skip
    found = trainer.evaluate()
    weights = torch.zeros(len(tiny.TASKS))
    for n, task in enumerate(tiny.TASKS):
        labels = trainer.eval_dataset[task]["labels"]
        weights[n] = sum(len(row) - 1 for row in labels)
        by_itself = found[f"eval_{task}_loss_{task}"]
        assert found[f"eval_all_loss_{task}"] == pytest.approx(by_itself, rel=1e-5)
    each = torch.tensor([found[f"eval_all_loss_{task}"] for task in tiny.TASKS])
    one_by_one = sft.make(
        SFTTrainer, trainer.model, data, tmp_path, eval_dataset=data, per_device_eval_batch_size=18
    )
    assert one_by_one.evaluate()["eval_loss"] == pytest.approx(
        float(each @ weights / weights.sum())
    )
    assert "eval_mean_token_accuracy" in trainer.state.log_history[-1]  # the metrics of TRL


def test_resuming_and_the_adapter(tmp_path):
    options = dict(
        method=gradvac.GradVac(beta=0.3), peft_config=lora(), save_strategy="steps", save_steps=2,
        max_steps=4, optim="adamw_torch", learning_rate=1e-2,
    )  # fmt: skip
    whole, half = (
        sft.make(
            TaskSFTTrainer, tiny.built(tiny.llama), sft.texts(18), tmp_path, **deepcopy(options)
        )
        for _ in range(2)
    )
    whole.train()
    half.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert tiny.distance(whole.model, half.model) == 0.0
    assert half.task_engine.step == 4
    whole.save_model(str(tmp_path / "adapter"))
    loaded = peft.PeftModel.from_pretrained(tiny.built(tiny.llama), str(tmp_path / "adapter"))
    assert tiny.distance(whole.model, loaded) == 0.0


def test_a_router_loss_is_refused(tmp_path):
    shape = dict(num_local_experts=2, num_experts_per_tok=1, router_aux_loss_coef=0.1)
    config = transformers.MixtralConfig(**tiny.COMMON, **tiny.ENCODER, **shape)
    model = transformers.MixtralForCausalLM(config)
    with pytest.raises(gradvac.GradientError, match=r"router.*set router_aux_loss_coef=0\.0"):
        sft.make(TaskSFTTrainer, model, sft.texts(4), tmp_path, method=gradvac.Joint())


def test_another_version_of_the_head_is_refused(tmp_path, monkeypatch):
    monkeypatch.delattr(trl_loss.utils, "_ChunkedLogProbFunction")
    with pytest.raises(gradvac.GradientError, match=r"TRL .* not known here; install"):
        sft.make(TaskSFTTrainer, tiny.llama(), sft.texts(4), tmp_path, method=gradvac.Joint())


def test_a_loss_with_another_part_is_refused(tmp_path):
    class Penalised(SFTTrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) + 0.1

    class Both(TaskSFTTrainer, Penalised):
        _split_trainers = (SFTTrainer, Penalised)

    trainer = sft.make(Both, tiny.built(tiny.llama), sft.texts(4), tmp_path, method=gradvac.Joint())
    with pytest.raises(gradvac.GradientError, match="has another part"):
        trainer.train()


def test_the_mixin_alone_names_the_way(tmp_path):
    class Both(TaskGradients, SFTTrainer): ...

    with pytest.raises(gradvac.GradientError, match=r"use gradvac.*TaskSFTTrainer"):
        sft.make(Both, tiny.built(tiny.llama), sft.texts(4), tmp_path, method=gradvac.Joint())


PACKED = dict(packing=True, max_length=16)


@pytest.mark.parametrize(
    ("adapters", "steps", "attention"),
    [(False, 1, "eager"), (False, 8, "sdpa"), (True, 1, "sdpa"), (True, 8, "eager")],
)
def test_joint_is_the_ordinary_trainer_when_packed(tmp_path, adapters, steps, attention):
    model = tiny.built(tiny.llama)
    model.set_attn_implementation(attention)
    options = {"peft_config": lora()} if adapters else {}
    batch = 2 if steps == 1 else 1
    expected, found = both(
        model, sft.texts(30), tmp_path, gradient_accumulation_steps=steps,
        per_device_train_batch_size=batch, **PACKED, **options,
    )  # fmt: skip
    rows = found.train_dataset
    for column in ("input_ids", "labels", "seq_lengths"):
        assert rows[column] == expected.train_dataset[column]
    assert [len(tasks) for tasks in rows["task"]] == [len(each) for each in rows["seq_lengths"]]
    assert max(map(len, rows["task"])) > 2


@pytest.mark.parametrize(
    "options",
    [
        {"packing_strategy": "bfd_split", "max_length": 5},
        {"shuffle_dataset": True},
        {"packing": False, "padding_free": True, "max_length": None},
        {"pad_to_multiple_of": 8},
        {"activation_checkpointing": True},
    ],
    ids=str,
)
def test_ways_to_pack(tmp_path, options):
    options = PACKED | options
    _, found = both(tiny.built(tiny.llama), sft.texts(18), tmp_path, peft_config=lora(), **options)
    assert set(found.report.tasks) <= set(tiny.TASKS)


@pytest.mark.parametrize("completions", [False, True])
def test_a_packed_row_has_the_tasks_of_its_sequences(tmp_path, completions):
    data = sft.texts(18, completions)
    plain, packed = (
        sft.make(
            TaskSFTTrainer, tiny.built(tiny.llama), data, tmp_path, method=gradvac.Joint(),
            max_length=16, packing=packing,
        ).train_dataset
        for packing in (False, True)
    )  # fmt: skip
    expected = sorted(zip(map(str, plain["input_ids"]), plain["task"], strict=True))
    found = []
    for row in packed:
        ends = torch.tensor(row["seq_lengths"]).cumsum(0).tolist()
        pieces = zip([0, *ends[:-1]], ends, row["task"], strict=True)
        found += [(str(row["input_ids"][start:end]), task) for start, end, task in pieces]
    assert sorted(found) == expected


def test_task_gradients_of_packed_rows_equal_separate_backward_passes(tmp_path):
    trainer = sft.make(
        TaskSFTTrainer, tiny.built(tiny.llama), sft.texts(30), tmp_path, method=gradvac.GradVac(),
        per_device_train_batch_size=2, gradient_accumulation_steps=2, peft_config=lora(),
        max_steps=1, learning_rate=0.0, train_sampling_strategy="sequential", **PACKED,
    )  # fmt: skip
    trainer.train()
    batches = [dict(batch) for batch in trainer.get_train_dataloader()][:2]
    tasks = []
    for batch in batches:
        names = [name for row in batch.pop("task") for name in row]
        starts = (batch["position_ids"][0] == 0).long().cumsum(0) - 1
        tasks.append([names[n] for n in starts.tolist()])
    expected = gram_by_hand(trainer, SFTTrainer.compute_loss, batches, tasks)
    assert (trainer.report.gram - expected).abs().max() < EXACT * expected.abs().max()
    assert not trainer.task_engine.refused


class InRows:
    """A collator of one's own: packed rows stay rows, padded, without an attention mask."""

    def __call__(self, rows):
        collate = DataCollatorForLanguageModeling(pad_token_id=0, return_position_ids=True)
        batch = collate(rows)
        del batch["attention_mask"]  # beside it transformers ignores the position ids
        batch["labels"][batch["position_ids"] == 0] = -100
        return batch


def test_rows_packed_before_and_a_collator_that_keeps_them_apart(tmp_path):
    """TRL's own collator lays them end to end, and takes no other beside packing=True."""
    model, method = tiny.built(tiny.llama), gradvac.GradVac()
    options = dict(per_device_train_batch_size=3, peft_config=lora(), max_steps=1)
    options |= dict(train_sampling_strategy="sequential")
    laid_out = sft.make(
        TaskSFTTrainer, deepcopy(model), sft.texts(30), tmp_path, method=method, **PACKED, **options
    )
    data = laid_out.train_dataset
    assert max(map(len, data["task"])) > 2
    both(model, data, tmp_path, data_collator=InRows(), gradient_accumulation_steps=2, **options)
    in_rows = sft.make(
        TaskSFTTrainer, deepcopy(model), data, tmp_path, method=gradvac.GradVac(),
        data_collator=InRows(), **options,
    )  # fmt: skip
    in_rows.model.load_state_dict(laid_out.model.state_dict())
    for trainer in (laid_out, in_rows):
        trainer.train()
        assert not trainer.task_engine.refused
    expected = laid_out.report.gram
    assert (in_rows.report.gram - expected).abs().max() < ROUNDED * expected.abs().max()


def test_rows_packed_before_without_position_ids_are_refused(tmp_path):
    data = sft.make(
        TaskSFTTrainer, tiny.built(tiny.llama), sft.texts(30), tmp_path, method=gradvac.Joint(),
        **PACKED,
    ).train_dataset  # fmt: skip
    trainer = sft.make(
        TaskSFTTrainer, tiny.built(tiny.llama), data, tmp_path, method=gradvac.Joint()
    )
    with pytest.raises(
        gradvac.GradientError, match=r"rows hold several sequences, and no position"
    ):
        trainer.train()


def test_evaluation_of_packed_rows(tmp_path):
    data = sft.texts(18)
    found = {}
    for packing in (False, True):
        trainer = sft.make(
            TaskSFTTrainer, tiny.built(tiny.llama), data, tmp_path, method=gradvac.Joint(),
            eval_dataset={"x": data}, packing=packing, max_length=16,
        )  # fmt: skip
        found[packing] = trainer.evaluate()
    for task in tiny.TASKS:
        key = f"eval_x_loss_{task}"
        assert found[True][key] == pytest.approx(found[False][key], rel=1e-5)


def test_wrapped_packing_is_refused(tmp_path):
    options = PACKED | {"packing_strategy": "wrapped"}
    with pytest.raises(gradvac.GradientError, match=r"'wrapped' lets .*set packing_strategy='bfd'"):
        sft.make(
            TaskSFTTrainer, tiny.llama(), sft.texts(4), tmp_path, method=gradvac.Joint(), **options
        )


def test_a_stream_is_packed_too(tmp_path):
    data = sft.texts(18).to_iterable_dataset()
    options = dict(PACKED, max_steps=2, peft_config=lora())
    both(tiny.built(tiny.llama), data, tmp_path, **options)
