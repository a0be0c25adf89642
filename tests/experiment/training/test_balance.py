"""Shares of directions: by temperature schedule, by UniMax, learned by MultiDDS-S."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gradvac.errors import GradientError, RecipeError
from tests.build import trainer
from tests.reference.multidds import literal_rewards, literal_scorer, literal_update

MULTIDDS = ["batches.sampling=multidds_s", "batches.multidds_s={every: 4, learning_rate: 0.01}"]


def sampling_lines(run: Path) -> list[dict]:
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "sampling"]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_rewards_are_those_of_separate_backwards(toy, tmp_path, dtype, error):
    t = trainer(toy, tmp_path / "run", [*MULTIDDS, "model.dropout=0"])
    for _ in range(3):
        t.train_step()
    literal = copy.deepcopy(t.job.model).double()
    t.job.model.to(dtype)
    batches = []
    loss_of = lambda batch: (batches.append(batch), t.job.mean_loss(batch))[1]
    ours = t.job.balance.rewards(4, t.job.model, loss_of)
    n = len(t.job.prepared.train)
    assert len(batches) == 2 * n
    for k, batch in enumerate(batches):
        assert batch.present == [k % n]
        corpus = t.job.prepared.valid if k < n else t.job.prepared.train
        assert batch.tasks == tuple(corpus) and batch.tokens <= 60 * 1.5

    t.job.model = literal
    parameters = list(literal.parameters())
    expected = literal_rewards(t.job.mean_loss, parameters, batches[:n], batches[n:])
    assert ours == pytest.approx(expected.numpy(), abs=error)
    assert np.abs(ours).min() > 100 * error  # far from what a wrong pairing would still give


def test_a_run_draws_with_what_it_learned_and_says_so(toy, tmp_path):
    run = tmp_path / "run"
    t = trainer(toy, run, MULTIDDS)
    t.train()
    lines = sampling_lines(run)
    assert [line["step"] for line in lines] == [1, 5, 9]  # learned after steps 4 and 8 of 12
    sizes = torch.tensor([len(c) for c in t.job.prepared.train.values()]).double()
    psi, adam = literal_scorer(2, 0.01)
    with torch.no_grad():
        psi.copy_(sizes.log())
    shares = sizes / sizes.sum()
    for line, phase in zip(lines, t.job.balance.plan.phases, strict=True):
        if "task_reward" in line:
            assert all(-1 <= r <= 1 for r in line["task_reward"].values())
            rewards = torch.tensor(list(line["task_reward"].values())).double()
            shares = literal_update(psi, adam, rewards, steps=200)
        assert list(line["task_share"]) == ["fr-en", "ne-en"]
        # Adam near a minimum divides two vanishing numbers: 1e-9 per step is what rounding leaves
        assert list(line["task_share"].values()) == pytest.approx(shares.tolist(), abs=1e-6)
        assert phase.shares.tolist() == list(line["task_share"].values())
    assert abs(float(shares[0] - sizes[0] / sizes.sum())) > 0.01


def test_learning_leaves_no_trace_but_the_shares(toy, tmp_path):
    """A measurement between two steps changes neither parameters, gradients nor dropout."""
    idle = ["batches.sampling=multidds_s", "batches.multidds_s={every: 2, learning_rate: 1.0e-30}"]
    t, plain = (
        trainer(toy, tmp_path / name, ["batches.pool=2", *sets])
        for name, sets in (("learned", idle), ("plain", ["batches.temperature=1"]))
    )
    for _ in range(5):
        t.train_step()
        plain.train_step()
    assert len(t.job.balance.plan.phases) == 3
    for p, q in zip(t.job.model.parameters(), plain.job.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_learning_needs_validation_text(toy, tmp_path):
    with pytest.raises(RecipeError, match=r"batches\.sampling: multidds_s .* data\.valid has no"):
        trainer(toy, tmp_path / "run", [*MULTIDDS, "data.valid=[]"])


@pytest.mark.parametrize(("call", "part"), [(1, "validation"), (2, "training")])
def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing(toy, tmp_path, call, part):
    t = trainer(toy, tmp_path / "run", MULTIDDS)
    before = copy.deepcopy(t.job.balance.state_dict())
    calls = iter(range(9))
    loss_of = lambda batch: t.job.mean_loss(batch) * (float("nan") if next(calls) == call else 1.0)
    task = {1: "ne-en", 2: "fr-en"}[call]
    with pytest.raises(GradientError, match=f"the {part} gradient of task '{task}' .* at step 4"):
        t.job.balance.begin(4, t.job.model, loss_of)
    assert t.job.balance.state_dict() == before


def test_a_schedule_is_logged_where_it_changes(toy, tmp_path):
    run = tmp_path / "run"
    sets = ["batches.temperature=[[0, .inf], [7, 1], [50, 2]]", "batches.accumulate=2"]
    t = trainer(toy, run, sets)
    t.train()
    sizes = {name: len(c) for name, c in t.job.prepared.train.items()}
    first, second = sampling_lines(run)
    assert (first["step"], second["step"]) == (1, 8)  # the eighth step is the first at T = 1
    assert first["task_share"] == pytest.approx({"fr-en": 0.5, "ne-en": 0.5})
    total = sum(sizes.values())
    assert second["task_share"] == pytest.approx({name: n / total for name, n in sizes.items()})
    head, columns, french, nepali = t.job.balance.table().splitlines()
    assert head == "sampling: temperature inf from step 0, 1 from step 7, 2 from step 50"
    assert columns.split() == "direction pairs from 0 from 7 from 50 epochs".split()
    assert french.split()[:4] == [
        "fr-en",
        str(sizes["fr-en"]),
        "50.0%",
        f"{sizes['fr-en'] / total:.1%}",
    ]
    seen = np.zeros(2)
    for step in range(24):
        seen += np.bincount(t.job.balance.plan(step).task, minlength=2)
    epochs = [float(row.split()[-1]) for row in (french, nepali)]
    assert epochs == pytest.approx(seen / list(sizes.values()), rel=0.2)


def test_unimax_gives_equal_tokens_but_nobody_more_than_the_cap(toy, tmp_path):
    sets = ["batches.sampling=unimax", "batches.max_epochs=2", "training.steps=50"]
    t = trainer(toy, tmp_path / "run", sets)
    text = {name: int(c.target.lengths.sum()) for name, c in t.job.prepared.train.items()}
    wanted = [3000 - 2 * text["ne-en"], 2 * text["ne-en"]]  # of 50 steps of 60 tokens
    assert wanted[1] < 1500 < wanted[0] < 2 * text["fr-en"]
    (phase,) = t.job.balance.plan.phases
    pairs = 50 * t.job.balance.plan.sentences_per_batch(phase.shares) * phase.shares
    assert pairs * t.job.balance.plan.mean_lengths == pytest.approx(wanted, rel=1e-12)
    drawn = sum(np.bincount(t.job.balance.plan(step).task, minlength=2) for step in range(50))
    assert np.all(np.abs(drawn - pairs) < 5 * np.sqrt(pairs))
    rows = [row.split() for row in t.job.balance.table().splitlines()[2:]]
    assert rows[1][-1] == "2.00"
    long = trainer(toy, tmp_path / "long", [*sets, "batches.max_epochs=0.1"]).job.balance.table()
    assert "all directions are seen equally often" in long
    epochs = [row.split()[-1] for row in long.splitlines()[2:]]
    assert epochs[0] == epochs[1] == f"{3000 / sum(text.values()):,.2f}"
