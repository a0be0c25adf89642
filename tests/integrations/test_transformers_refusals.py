"""What cannot work with per-task gradients is refused, with the mend."""

import accelerate
import pytest
import torch
import transformers
from torch import nn

import gradvac
from gradvac.integrations.transformers import TaskGradients
from tests.integrations import tiny

DATA = tiny.samples(8, tiny.CLASSES)


def trainer_of(folder, kind=TaskGradients, data=DATA, make=tiny.tagger, **options):
    options = {"max_steps": 1, "method": gradvac.Joint()} | options
    return tiny.make_trainer(kind, tiny.built(make), data, folder, **options)


def without(key, samples=DATA):
    return [{k: v for k, v in sample.items() if k != key} for sample in samples]


def renamed(to):
    return [{**rest, to: s["task"]} for rest, s in zip(without("task"), DATA, strict=True)]


def test_data_without_tasks(tmp_path):
    trainer = trainer_of(tmp_path, data=without("task"))
    with pytest.raises(gradvac.GradientError, match=r"no 'task', only .*labels.*task_column="):
        trainer.train()


def test_a_misspelt_column_is_found(tmp_path):
    trainer = trainer_of(tmp_path, data=renamed("tasks"), remove_unused_columns=False)
    trainer.data_collator.collator = lambda samples: {
        "tasks": [s.pop("tasks") for s in samples],
        **transformers.default_data_collator(samples),
    }
    with pytest.raises(gradvac.GradientError, match=r"no 'task'.*is it 'tasks'\?"):
        trainer.train()


def test_another_name_for_the_column(tmp_path):
    trainer = trainer_of(tmp_path, data=renamed("language"), task_column="language")
    trainer.train()
    assert set(trainer.report.tasks) <= set(tiny.TASKS)


@pytest.mark.parametrize("none", [{}, {"task": None}])
def test_a_sample_without_a_task(tmp_path, none):
    data = [*without("task", DATA[:1]), *DATA[1:4]]
    data[0] |= none
    options = dict(train_sampling_strategy="sequential")
    with pytest.raises(gradvac.GradientError, match="sample 0 of a batch has no 'task'"):
        trainer_of(tmp_path, data=data, **options).train()


@pytest.mark.parametrize(
    ("value", "message"),
    [("fr ", r"unknown task 'fr '; .* fr, hi, tr; did you mean 'fr'\?"), (3, "task '3'; .*tr$")],
)
def test_an_unknown_task(tmp_path, value, message):
    data = [{**sample, "task": value} for sample in DATA]
    with pytest.raises(gradvac.GradientError, match=message):
        trainer_of(tmp_path, data=data, task_names=tiny.TASKS).train()


@pytest.mark.parametrize("wrap", [nn.DataParallel, nn.Sequential])
def test_a_wrapped_model_is_named(tmp_path, wrap):
    trainer = trainer_of(tmp_path)
    with pytest.raises(gradvac.GradientError, match=f"wrapped in {wrap.__name__}"):
        trainer.training_step(wrap(trainer.model), {})


def test_several_gpus_are_refused(tmp_path):
    class TwoGPUs(transformers.TrainingArguments):
        n_gpu = 2

    args = TwoGPUs(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(gradvac.GradientError, match=r"2 GPUs are visible.*CUDA_VISIBLE_DEVICES=0"):
        TaskGradients(tiny.tagger(), args, train_dataset=DATA, method=gradvac.Joint())


def test_other_parallelism_than_ranks_is_refused(tmp_path, monkeypatch):
    kind = property(lambda self: accelerate.DistributedType.FSDP)
    monkeypatch.setattr(accelerate.Accelerator, "distributed_type", kind)
    with pytest.raises(gradvac.GradientError, match=r"FSDP.*ranks drift apart.*torchrun without"):
        trainer_of(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_loss_func": lambda *_: 0}, "compute_loss_func.*override task_losses"),
        ({"torch_compile": True}, "torch_compile hides"),
        ({"optim": "galore_adamw_layerwise"}, "updates inside the backward pass"),
    ],
)
def test_options_that_leave_no_room(tmp_path, options, message):
    with pytest.raises(gradvac.GradientError, match=message):
        trainer_of(tmp_path, **options)


class OwnLoss(transformers.Trainer):
    def compute_loss(self, *args, **kwargs):
        raise AssertionError


class OwnStep(transformers.Trainer):
    def training_step(self, *args, **kwargs):
        raise AssertionError


def test_a_loss_or_step_that_would_be_left_out(tmp_path):
    class A(TaskGradients, OwnLoss): ...

    class B(TaskGradients, OwnStep): ...

    with pytest.raises(gradvac.GradientError, match=r"OwnLoss\.compute_loss.*override task_losses"):
        trainer_of(tmp_path, A)
    with pytest.raises(gradvac.GradientError, match=r"OwnStep\.training_step would not be called"):
        trainer_of(tmp_path, B)


class WithPenalty(transformers.BertForTokenClassification):
    def forward(self, input_ids, attention_mask=None, labels=None):
        out = super().forward(input_ids, attention_mask, labels=labels)
        out.loss = out.loss + 0.01 * out.logits.square().mean()
        return out


def penalised():
    return WithPenalty(tiny.bert_config(num_labels=tiny.CLASSES))


def test_a_loss_that_is_more_than_the_cross_entropy(tmp_path):
    with pytest.raises(gradvac.GradientError, match=r"WithPenalty is .* another loss; override"):
        trainer_of(tmp_path, make=penalised).train()


def test_a_routers_loss_is_named_with_what_to_do(tmp_path):
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4}
    config = transformers.MixtralConfig(vocab_size=20, output_router_logits=True, **shape, **heads)
    data = [
        {"input_ids": ids, "labels": ids, "task": n % 2} for n, ids in enumerate([[3, 4, 5]] * 8)
    ]

    def make():
        model = transformers.MixtralForCausalLM(config)
        model.set_experts_implementation("eager")  # the other takes no float64
        return model

    trainer = trainer_of(tmp_path, data=data, make=make)
    with pytest.raises(gradvac.GradientError, match=r"includes a router's loss.*router_losses"):
        trainer.train()


def test_regression_and_several_labels(tmp_path):
    data = [{**sample, "labels": torch.randn(tiny.CLASSES).double()} for sample in DATA]
    trainer = trainer_of(tmp_path, data=data, make=tiny.classifier)
    with pytest.raises(gradvac.GradientError, match=r"cross-entropy needs.*override task_losses"):
        trainer.train()


def test_data_without_labels(tmp_path):
    with pytest.raises(gradvac.GradientError, match=r"no 'labels'.*override task_losses"):
        trainer_of(tmp_path, data=without("labels")).train()


class Averaged(TaskGradients):
    def task_losses(self, model, inputs):
        return model(**inputs).loss, None


def test_a_loss_of_ones_own_that_is_averaged(tmp_path):
    with pytest.raises(gradvac.GradientError, match=r"returned \[\] for 4 samples"):
        trainer_of(tmp_path, Averaged).train()


def test_a_gradient_that_is_not_finite_names_the_task(tmp_path):
    class Infinite(TaskGradients):
        def task_losses(self, model, inputs):
            losses, rows = super().task_losses(model, inputs)
            return losses * float("inf"), rows

    trainer = trainer_of(tmp_path, Infinite)
    before = tiny.built(tiny.tagger)
    with pytest.raises(gradvac.NotFiniteError, match=r"task '(fr|hi|tr)' is not finite"):
        trainer.train()
    assert tiny.distance(trainer.model, before) == 0.0
