"""Two, three and four processes train as one does, and go wrong together."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.counted import counted
from tests.engine.ranks.cases import STEPS, Translator, cases_of, train
from tests.engine.ranks.failures import X, build
from tests.turns import by_turns

ROOT = Path(__file__).parents[3]
EXACT = 1e-10
ALONE: dict[tuple[str, ...], dict[str, Any]] = {}
SAYS = {"skip": "skipped", "raise": "raised"}


def launch(folder: Path, size: int, what: str) -> list[Any]:
    """Run ``size`` processes; what each of them found, None for one that is gone."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.engine.ranks.worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(folder), what],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    files = [folder / f"{rank}.pt" for rank in range(size)]
    if what != "gone":
        assert all(file.exists() for file in files), "\n".join(errors)
    return [torch.load(file) if file.exists() else None for file in files]


@pytest.fixture(scope="module", params=[2, *by_turns([3, 4])])
def trained(request, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("ranks"), request.param, "train")


def alone(case):
    """What one process does, to whom it is all the same who has which samples and shards."""
    key = (case.method, case.granularity, case.kind, str(case.options))
    if key not in ALONE:
        ALONE[key] = train(replace(case, split="spread", shard="", steps=STEPS))
    return ALONE[key]


def relative(a, b):
    return float((a - b).norm() / b.norm())


def test_ranks_train_as_one_process_does_and_agree_bitwise(trained):
    torch.manual_seed(0)
    begin = torch.nn.utils.parameters_to_vector(Translator().double().parameters()).detach()
    for case in cases_of(len(trained)):
        found, one = [rank[case.name] for rank in trained], alone(case)
        moved = one["parameters"][case.steps - 1] - begin
        assert relative(found[0]["parameters"][-1] - begin, moved) <= EXACT, case.name
        assert len(found[0]["gram"]) == case.steps
        for key in ("gram", "weights", "losses"):
            for step in range(case.steps):
                assert relative(found[0][key][step], one[key][step]) <= EXACT, (case.name, key)
        for other in found[1:]:
            for key in ("gram", "weights", "losses", "parameters"):
                pairs = zip(other[key], found[0][key], strict=True)
                assert all(torch.equal(a, b) for a, b in pairs), case.name


def test_the_host_waits_for_a_device_once_a_step():
    """And sends one message a step, and gives the collectives of the device its tensors alone."""
    by_layer, whole = counted("tests.engine.ranks.device")
    for each in (by_layer, whole):
        assert each["buckets"] == 3
        sums = 3 + 1 + 2  # Gram matrices, losses, the head's gradient and whether it has one
        assert each["made"] == {"message": 1, "exchange": 3, "sum": sums, "gather": 3}
        assert each["waits"] == {"engine/ranks/group.py on_host": 1}


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("failures"), 2, "failures")


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_on_all(failed):
    first, bad, third, gradients, number = failed[0]["skipped"][0::2] + failed[0]["skipped"][-1:]
    assert first == third == "" and number == 3
    assert "task 'a'" in bad and "(rank 1)" in bad
    assert failed[0]["skipped"][3] == [True] * 4
    for mine, others in zip(gradients, failed[1]["skipped"][-2], strict=True):
        assert torch.equal(mine, others)
    assert failed[1]["skipped"][:-2] == failed[0]["skipped"][:-2]


def test_a_gradient_that_is_not_finite_names_task_and_rank_and_changes_nothing(failed):
    said, step, skipped, after = failed[0]["raised"]
    assert "NotFiniteError: the gradient of task 'b' is not finite" in said and "(rank 1)" in said
    assert (step, skipped, after) == (0, "", 1)
    assert failed[1]["raised"] == failed[0]["raised"]


def test_a_failing_rank_stops_the_step_of_all_with_its_reason(failed):
    says = "RankError: step 0 is given up on all ranks: rank 1 failed: ValueError: sentence 7"
    assert says in failed[0]["forward_fails"][0]
    assert failed[1]["forward_fails"] == ["ValueError: sentence 7 has no end", 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("seed", "parameters of rank 1 and rank 0 differ .*seed all ranks alike"),
        ("granularity", "groups of rank 1 and rank 0 differ .*the same granularity"),
        ("nonfinite", "groups of rank 1 and rank 0 differ"),
        ("beta", "method of rank 1 and rank 0 differ .*the same method"),
        ("code", r"code of rank 1 and rank 0 differ \(code of 1 and code of 0\); install"),
        ("step", "rank 1 is at step 3, rank 0 is at step 0"),
        ("loss_scale", "rank 1 has loss scale 2.0, rank 0 has loss scale 1.0"),
        ("shares", "some ranks give shares and others do not"),
        ("passes", "passes=2 with 2 ranks: .*make the engine with passes=1"),
        ("budget", "budget is 0"),
        ("lazy", "lazy=True on several ranks or with sharded"),
        ("lazy_sharded", "lazy=True on several ranks or with sharded"),
        ("other_dimension", r"a parameter 'weight' \[4, 4\] is placed as \(Shard\(dim=1\),\)"),
        ("replicas", r"a parameter 'weight' .* on a mesh of 2 dimensions; the engine takes models"),
        (
            "other_ranks",
            r"parameters are sharded over ranks \[0, 1\], and the engine trains with ranks \[\d\]",
        ),
        *(
            (f"tensor_parallel{how}", r"parameter '0.weight' .*\(Shard\(dim=0\),\).*tensor or seq")
            for how in ("", "_beside", "_names")
        ),
        ("no_samples", "this rank has made no backward pass .*any samples of the step, with mask"),
        ("no_task", "this rank has made no backward pass"),
    ],
)
def test_ranks_that_do_not_fit_together_are_refused(failed, change, says):
    for rank in failed:
        assert re.search(f"(RankError|GradientError): {says}", rank[change])


def test_a_rank_may_have_nothing_but_not_all_of_them(failed):
    model = build()
    model(X).square().sum().backward()
    for tasks, gradients, said in (rank["nobody"] for rank in failed):
        assert tasks == ("a",)
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(gradient, p.grad, rtol=EXACT, atol=1e-15)
        assert said == "GradientError: no rank has a loss at step 1; there is nothing to combine"


def test_plain_gradients_are_added_up_while_the_backward_pass_goes_on(failed):
    """The last layer's before the first one's are there; and where a rank has no samples."""
    model = build()
    model(X).square().sum().backward()
    for rank, said in enumerate(each["reduction"] for each in failed):
        for number, (launched, buckets, gradients) in enumerate(said):
            unused, used = gradients[:2], gradients[2:]
            assert buckets == 4 and unused == [None, None]
            assert (launched >= [1]) == (number == 0 or rank == 0)
            for p, gradient in zip(model.parameters(), used, strict=True):
                torch.testing.assert_close(gradient, p.grad, rtol=EXACT, atol=1e-15)


def test_hosts_talk_in_a_group_of_their_own_where_that_of_the_gradients_takes_devices(failed):
    """One for all engines of a group; a message longer than before takes two turns, once."""
    assert [rank["side_group"] for rank in failed] == [[True, True, [0, 1], 1, ""]] * 2


def test_a_group_of_one_rank_trains_alone(failed):
    assert [rank["one"] for rank in failed] == ["", ""]


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_shards_survive_a_step_that_is_not_finite_on_one_rank(failed, policy):
    said, left, number, first, third = failed[0]["sharded_" + SAYS[policy]]
    if policy == "skip":
        assert said == "" and left == [True] * 4 and number == 2
    else:
        assert "NotFiniteError: the gradient of task 'a'" in said and "(rank 1)" in said
        assert left == [False] * 4 and number == 1
    for before, after, others in zip(
        first, third, failed[1]["sharded_" + SAYS[policy]][4], strict=True
    ):
        assert torch.equal(before, after) and torch.equal(after, others)


def test_shards_of_gradients_travel_during_a_pass_that_is_alike_on_all_ranks(failed):
    for rank in failed:
        (split, kinds), (uneven, _) = rank["streams"]
        assert kinds == {"DTensor"}
        assert split == [3] and uneven == [3]  # all three buckets, whatever tasks a rank has


def test_shards_that_one_rank_keeps_to_itself(failed):
    for sharded, plain in (rank["alone"] for rank in failed):
        for a, b in zip(sharded, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=EXACT, atol=1e-15)


def test_what_two_ranks_wrote_is_read_by_one_that_keeps_all_rows(failed):
    for read, written, names in (rank["checkpoint"] for rank in failed):
        assert names == ["0.bias", "0.weight", "2.bias", "2.weight", "step"]
        assert all(torch.equal(a, b) for a, b in zip(read, written, strict=True))


def test_a_rank_that_fails_amid_gathering_says_why(failed):
    (survivor, seconds), (failing, _) = failed[0]["amid"], failed[1]["amid"]
    first, second = survivor.split(" / ")
    assert first == (
        "RankError: rank 1 failed: ValueError: sentence 7 has no end (seen by rank 0); start all "
        "ranks again from the last checkpoint"
    )
    assert "can exchange nothing more" in second
    assert failing.startswith("ValueError: sentence 7 has no end / RankError: ")
    assert seconds < 60


def test_a_killed_rank_is_named_in_time(tmp_path):
    started = time.monotonic()
    survivor, killed = launch(tmp_path, 2, "gone")
    assert killed is None and time.monotonic() - started < 60
    first, second = survivor["message"].split(" / ")
    assert first == (
        "RankError: rank 1 is gone (seen by rank 0); start all ranks again from the last checkpoint"
    )
    assert "can exchange nothing more" in second
