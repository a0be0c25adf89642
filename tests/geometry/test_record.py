import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradvac.errors import RunError
from gradvac.geometry.record import Frame, GramRecord


def frame(step: int, tasks: str = "abc", groups: str = "xy", targets: bool = False) -> Frame:
    random = np.random.default_rng(step)
    j = random.normal(size=(len(groups), len(tasks), 7))
    return Frame(
        step=step,
        tasks=tuple(tasks),
        groups=tuple(groups),
        gram=j @ j.transpose(0, 2, 1),
        weights=random.normal(size=(len(groups), len(tasks))),
        edits=(step,) * len(groups),
        pcgrad_edits=(1,) * len(groups),
        comparisons=(6,) * len(groups),
        targets=random.normal(size=(len(groups), len(tasks), len(tasks))) if targets else None,
    )


def same(read: list[Frame], wrote: list[Frame]) -> bool:
    return len(read) == len(wrote) and all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name))
        for a, b in zip(read, wrote, strict=True)
        for f in dataclasses.fields(Frame)
    )


@pytest.fixture
def frames() -> list[Frame]:
    return [frame(0), frame(10, "ab", targets=True), frame(20, "cabd", "yxz")]


@pytest.fixture
def record(tmp_path: Path, frames: list[Frame]) -> GramRecord:
    record = GramRecord(tmp_path / "geometry")
    for f in frames:
        record.append(f)
    return record


def test_what_was_appended_is_read_back_exactly(record: GramRecord, frames: list[Frame]) -> None:
    assert same(list(record), frames)
    assert same(list(GramRecord(record.folder)), frames)


def test_a_folder_that_is_not_there_holds_no_frames(tmp_path: Path) -> None:
    assert list(GramRecord(tmp_path / "geometry")) == []


def test_it_is_read_while_it_grows(tmp_path: Path) -> None:
    writer, reader = GramRecord(tmp_path), GramRecord(tmp_path)
    for n in range(4):
        writer.append(frame(n))
        assert same(list(reader), [frame(m) for m in range(n + 1)])


def test_the_file_holds_nothing_but_the_numbers(record: GramRecord, frames: list[Frame]) -> None:
    numbers = np.fromfile(record.folder / "gram.bin", dtype="<f8")
    parts = [(f.gram, f.weights, f.targets) for f in frames]
    expected = [array.ravel() for each in parts for array in each if array is not None]
    assert np.array_equal(numbers, np.concatenate(expected))


@pytest.mark.parametrize("lost", [1, 8, 100])
def test_a_frame_cut_short_does_not_exist(
    record: GramRecord, frames: list[Frame], lost: int
) -> None:
    data = record.folder / "gram.bin"
    data.write_bytes(data.read_bytes()[:-lost])
    again = GramRecord(record.folder)
    assert same(list(again), frames[:2])
    again.append(frame(30))
    assert same(list(again), [*frames[:2], frame(30)])


def test_a_line_cut_short_does_not_exist(record: GramRecord, frames: list[Frame]) -> None:
    index = record.folder / "frames.jsonl"
    index.write_bytes(index.read_bytes()[:-20])
    again = GramRecord(record.folder)
    assert same(list(again), frames[:2])
    again.append(frame(30))
    assert same(list(again), [*frames[:2], frame(30)])


def test_numbers_without_a_line_are_overwritten(record: GramRecord, frames: list[Frame]) -> None:
    with (record.folder / "gram.bin").open("ab") as data:
        data.write(b"\x7f" * 10_001)
    again = GramRecord(record.folder)
    again.append(frame(30))
    assert same(list(again), [*frames, frame(30)])
    # 8 bytes of the numbers of 2 x 3 x (3 + 1), 2 x 2 x (2 + 1 + 2), 3 x 4 x (4 + 1), 2 x 3 x 4
    size = 8 * (24 + 20 + 60 + 24)
    assert (record.folder / "gram.bin").stat().st_size == size


def test_truncate_forgets_later_steps_and_appends_after_the_kept(
    record: GramRecord, frames: list[Frame]
) -> None:
    record.truncate(10)
    assert same(list(record), frames[:2])
    record.append(frame(15))
    record.append(frame(20))
    assert same(list(record), [*frames[:2], frame(15), frame(20)])
    record.truncate(-1)
    assert list(record) == []
    record.append(frame(0))
    assert same(list(record), [frame(0)])


def test_a_resumed_record_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    straight, resumed = GramRecord(tmp_path / "straight"), GramRecord(tmp_path / "resumed")
    for n in range(5):
        straight.append(frame(n))
    for n in range(4):
        resumed.append(frame(n))
    resumed = GramRecord(tmp_path / "resumed")
    resumed.truncate(1)
    for n in range(2, 5):
        resumed.append(frame(n))
    for name in ("gram.bin", "frames.jsonl"):
        assert (straight.folder / name).read_bytes() == (resumed.folder / name).read_bytes()


@pytest.mark.parametrize(
    "damage", [b"nonsense", b"[1]", b'{"step": 10, "offset": 0}', b"\x00\xff\xfe", b"{}", b"null"]
)
def test_a_damaged_line_is_named(record: GramRecord, damage: bytes) -> None:
    index = record.folder / "frames.jsonl"
    lines = index.read_bytes().splitlines()
    index.write_bytes(b"\n".join([lines[0], damage, lines[2]]) + b"\n")
    for use in (list, lambda r: r.truncate(0), lambda r: r.append(frame(30))):
        with pytest.raises(RunError, match=r"frames\.jsonl:2: not a line of a Gram record"):
            use(GramRecord(record.folder))
    assert index.read_bytes().splitlines()[1] == damage


def test_a_line_without_one_of_its_keys_is_named(record: GramRecord) -> None:
    index = record.folder / "frames.jsonl"
    for key in ("step", "offset", "tasks", "groups", "edits", "pcgrad_edits", "comparisons"):
        line = json.loads(index.read_text().splitlines()[0])
        del line[key]
        other = GramRecord(record.folder.with_name("other"))
        other.folder.mkdir(exist_ok=True)
        (other.folder / "frames.jsonl").write_text(json.dumps(line) + "\n")
        with pytest.raises(RunError, match=r"frames\.jsonl:1"):
            list(other)


def test_a_frame_that_does_not_fit_its_names_is_refused(tmp_path: Path) -> None:
    wrong = {"weights": np.zeros((2, 2))}, {"targets": np.zeros((2, 2, 3))}
    for arrays in wrong:
        with pytest.raises(RunError, match=r"step 7: gram, .* do not fit 2 groups and 3 tasks"):
            GramRecord(tmp_path).append(dataclasses.replace(frame(7), **arrays))
        assert list(GramRecord(tmp_path)) == []


def test_cosines_equal_those_of_the_vectors_and_are_nan_for_a_zero_gradient() -> None:
    j = np.random.default_rng(0).normal(size=(3, 5))
    j[1] = 0
    f = Frame(0, ("a", "b", "c"), ("x",), (j @ j.T)[None], np.ones((1, 3)), (0,), (0,), (0,))
    for i in range(3):
        for k in range(3):
            if 1 in (i, k):
                assert np.isnan(f.cosine()[0, i, k])
            else:
                norms = np.linalg.norm(j[i]) * np.linalg.norm(j[k])
                assert f.cosine()[0, i, k] == pytest.approx(j[i] @ j[k] / norms, rel=1e-14)


def test_the_benchmark_of_its_cost_runs_and_writes_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    script = Path(__file__).parents[2] / "benchmarks" / "record_cost.py"
    flags = ["--quick", "--tokens", "256", "--rounds", "1", "--json", str(out)]
    subprocess.run([sys.executable, str(script), *flags], check=True, capture_output=True)
    ((row),) = json.loads(out.read_text())
    # 5 groups of 8 x 8 inner products and 8 weights, and a line of the index
    assert row["bytes_per_record"] > 5 * 8 * 9 * 8
    assert row["record_per_step"] > 0
    assert row["record_per_step_at_default"] == row["record_per_step"] / 10


def test_frames_come_in_order_of_their_steps_when_asked_for(tmp_path: Path) -> None:
    record = GramRecord(tmp_path)
    for step in (20, 0, 10):
        record.append(frame(step))
    assert record.steps() == [20, 0, 10]
    assert same(list(record.in_order()), [frame(0), frame(10), frame(20)])
