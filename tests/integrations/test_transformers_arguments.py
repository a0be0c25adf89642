"""Every argument of the Trainer is split, refused or said to have no effect; none slips through."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

import gradvac
from gradvac.integrations import transformers as integration
from gradvac.integrations import transformers_arguments as arguments
from gradvac.integrations.transformers import TaskGradients
from tests.integrations import tiny

GROUPS = ("UNCHANGED", "SPLIT", "SOME_VALUES", "REFUSED", "WITHOUT_EFFECT")
PAGE = Path(__file__).parents[2] / "docs" / "drop-in.md"


def kinds():
    found = [transformers.TrainingArguments, transformers.Seq2SeqTrainingArguments]
    try:
        from trl import SFTConfig
    except ImportError:
        return found
    return [*found, SFTConfig]


@pytest.mark.parametrize("kind", kinds())
def test_every_argument_of_the_installed_version_is_in_a_group(kind):
    names = {field.name for field in arguments.declared(kind)}
    assert len(names) > 100
    assert names <= arguments.KNOWN


def test_an_argument_is_in_one_group():
    assert sum(len(getattr(arguments, group)) for group in GROUPS) == len(arguments.KNOWN)


def test_the_page_names_every_argument_that_is_not_just_the_trainers():
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index("### The arguments") :]
    named = set(re.findall(r"`(\w+)`", section[: section.index("\n### ", 1)]))
    for group in GROUPS[1:]:
        assert getattr(arguments, group) <= named, group


def trainer_of(folder, **options):
    model, data = tiny.built(tiny.classifier), tiny.samples(8, tiny.CLASSES, True)
    options = {"max_steps": 1, "method": gradvac.Joint()} | options
    return tiny.make_trainer(TaskGradients, model, data, folder, **options)


def test_an_argument_that_is_not_known_is_said(caplog, monkeypatch):
    monkeypatch.setattr(arguments, "KNOWN", arguments.KNOWN - {"data_seed", "weight_decay"})
    with caplog.at_level(logging.WARNING, "gradvac"):
        arguments.say_without_effect(transformers.TrainingArguments("x", data_seed=3))
    assert re.search("data_seed: newer than .* may ignore it", caplog.text)
    assert "weight_decay" not in caplog.text  # as it always is


def test_fields_of_another_class_are_not_our_business(caplog):
    @dataclass
    class Own(transformers.TrainingArguments):
        colour: str = "red"

    with caplog.at_level(logging.WARNING, "gradvac"):
        arguments.say_without_effect(Own("x", colour="green"))
    assert not caplog.text


def test_arguments_of_a_wrapper_are_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "gradvac"):
        trainer_of(tmp_path, ddp_find_unused_parameters=False, ddp_bucket_cap_mb=5)
    assert "ddp_bucket_cap_mb, ddp_find_unused_parameters: no effect" in caplog.text


def test_buffers_that_would_be_sent_are_refused(tmp_path):
    with pytest.raises(gradvac.GradientError, match="ddp_broadcast_buffers would be ignored"):
        trainer_of(tmp_path, ddp_broadcast_buffers=True)


@pytest.mark.parametrize("name", ["deepspeed", "parallelism_config", "fsdp"])
def test_other_parallelism_is_refused_by_name(tmp_path, name):
    class Arguments(transformers.TrainingArguments): ...

    args = Arguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = TaskGradients.__new__(TaskGradients)
    trainer.args, trainer.model = args, tiny.classifier()
    setattr(args, name, {"some": "plan"})
    with pytest.raises(gradvac.GradientError, match=rf"{name}.*DistributedConfig\(fsdp_size=N\)"):
        integration.refuse_settings(trainer)


@pytest.mark.parametrize(
    ("name", "value"), [("tp_size", 2), ("dp_replicate_size", 2), ("fsdp_cpu_offload", True)]
)
def test_other_plans_of_a_model_in_shards_are_refused_by_name(tmp_path, monkeypatch, name, value):
    trainer = trainer_of(tmp_path)
    flag = "is_distributed_loading_by_transformers"
    monkeypatch.setattr(type(trainer.model), flag, True, raising=False)
    trainer.model.config.distributed_config = SimpleNamespace(tp_size=1)
    integration.refuse_settings(trainer)
    setattr(trainer.model.config.distributed_config, name, value)
    with pytest.raises(gradvac.GradientError, match=rf"loaded with {name}={value}.*fsdp_size=N"):
        integration.refuse_settings(trainer)


@pytest.mark.parametrize("every", [None, 1, 2])
def test_the_cache_is_emptied_as_often_as_asked(tmp_path, monkeypatch, every):
    emptied = []
    monkeypatch.setattr(integration, "clear_device_cache", lambda: emptied.append(1))
    trainer = trainer_of(tmp_path, max_steps=4, torch_empty_cache_steps=every)
    trainer.train()
    assert len(emptied) == (0 if every is None else 4 // every)


def test_a_smaller_batch_is_found(tmp_path):
    class Small(TaskGradients):
        sizes = ()

        def _padded_losses(self, model, inputs):
            self.sizes += (len(inputs["labels"]),)
            if self.sizes[-1] > 2:
                raise RuntimeError("CUDA out of memory.")
            return super()._padded_losses(model, inputs)

    trainer = tiny.make_trainer(
        Small, tiny.built(tiny.classifier), tiny.samples(8, tiny.CLASSES, True), tmp_path,
        method=gradvac.GradVac(), auto_find_batch_size=True, max_steps=2,
    )  # fmt: skip
    trainer.train()
    assert trainer.sizes[0] == 4 and trainer.sizes[-1] <= 2
    assert trainer.task_engine.step == 2


def test_noise_in_embeddings_is_that_of_the_trainer(tmp_path):
    found = []
    for kind, own in ((transformers.Trainer, {}), (TaskGradients, {"method": gradvac.Joint()})):
        model = tiny.built(tiny.llama)
        trainer = tiny.make_trainer(
            kind, model, tiny.samples(8), tmp_path, neftune_noise_alpha=5.0, max_steps=2,
            optim="sgd", learning_rate=0.1, **own,
        )  # fmt: skip
        trainer.train()
        found.append(model)
    assert tiny.distance(*found) < 1e-5 < tiny.distance(found[0], tiny.built(tiny.llama))
