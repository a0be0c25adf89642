"""The binary form: what was written is read, whatever the shards; damage is named."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvac.data.batches import BatchPlan
from gradvac.data.encoded import EncodedTask, Sentences
from gradvac.data.store import Store, Writer, locate, open_encoded
from gradvac.errors import RunError

PRINT = "0123456789abcdef"
Pairs = list[tuple[list[int], list[int]]]


def write(folder, tasks: dict[str, Pairs], *, size=1000, shard_pairs=4) -> None:
    with Writer(folder, PRINT, size, shard_pairs) as out:
        for name, pairs in tasks.items():
            out.add(name, pairs)


def random_pairs(count: int, seed: int = 0, top: int = 1000) -> Pairs:
    rng = np.random.default_rng(seed)
    side = lambda: [*rng.integers(4, top, rng.integers(0, 9)).tolist(), 3]
    return [(side(), side()) for _ in range(count)]


@given(count=st.integers(1, 30), shard=st.integers(1, 9), data=st.data())
@settings(max_examples=30)
def test_any_sentences_in_any_order_come_back(tmp_path_factory, count, shard, data):
    folder = tmp_path_factory.mktemp("store")
    pairs = random_pairs(count, seed=count)
    write(folder, {"fr-en": pairs}, shard_pairs=shard)
    found = open_encoded(folder, PRINT)["fr-en"]
    rows = data.draw(st.lists(st.integers(0, count - 1), max_size=12))
    for side, stored in enumerate((found.source, found.target)):
        wanted = [pairs[i][side] for i in rows]
        array = np.array(rows, np.int64)
        assert stored.gather(array).tolist() == [i for ids in wanted for i in ids]
        assert stored.lengths_of(array).tolist() == [len(ids) for ids in wanted]
        assert stored.tokens == sum(len(pair[side]) for pair in pairs)
        assert len(stored) == count
    shutil.rmtree(folder)


def test_batches_from_disk_are_those_from_memory(tmp_path):
    tasks = {"fr-en": random_pairs(300), "de-en": random_pairs(41, seed=1)}
    write(tmp_path, tasks, shard_pairs=16)
    packed = {
        name: EncodedTask(Sentences.of([s for s, _ in p]), Sentences.of([t for _, t in p]))
        for name, p in tasks.items()
    }
    plans = [
        BatchPlan(c, tokens=90, seed=4, pool=4) for c in (packed, open_encoded(tmp_path, PRINT))
    ]
    for plan in plans:
        plan.add_phase(0, np.array([0.7, 0.3]))
    for step in range(12):
        a, b = (plan(step) for plan in plans)
        assert a.source.equal(b.source) and a.target_out.equal(b.target_out)
        assert a.sentence.equal(b.sentence)


def test_places_are_exact_where_thirty_two_bits_and_doubles_are_not():
    """25 billion pairs and beyond: 2^53 + 1 is the first integer a double has not."""
    rows = [0, 2**20 - 1, 2**20, 2**32 + 5, 25 * 10**9 - 1, 2**53 + 1, 2**62 - 1]
    shard, within = locate(np.array(rows), 2**20)
    assert [(int(s), int(w)) for s, w in zip(shard, within, strict=True)] == [
        divmod(row, 2**20) for row in rows
    ]


def test_opening_a_huge_corpus_touches_its_index_alone(tmp_path):
    """Shards that do not exist: counts come from the index, and only a sentence needs its file."""
    counts = {"pairs": 25 * 10**9, "source_tokens": 10**12, "target_tokens": 9 * 10**11}
    index = {"format": 2, "vocabulary": PRINT, "dtype": "<u2", "shard_pairs": 2**20}
    (tmp_path / "index.json").write_text(json.dumps({**index, "tasks": {"fr-en": counts}}))
    found = open_encoded(tmp_path, PRINT)
    plan = BatchPlan(found, tokens=4096, seed=1)
    assert plan.sizes.tolist() == [25 * 10**9] and plan.mean_lengths.tolist() == [36.0]
    last = tmp_path / "fr-en" / f"{(25 * 10**9 - 1) // 2**20:08}"
    last.parent.mkdir()
    within = (25 * 10**9 - 1) % 2**20
    np.arange(2 * (within + 1) + 1, dtype="<i8").tofile(last.with_suffix(".offsets"))
    np.full(2 * (within + 1), 7, "<u2").tofile(last.with_suffix(".ids"))
    assert found["fr-en"].target[25 * 10**9 - 1].tolist() == [7]
    with pytest.raises(RunError, match=r"00000000\.offsets: cannot be read: No such file"):
        found["fr-en"].target[0]


def test_ids_take_two_bytes_where_they_fit(tmp_path):
    for size, width in ((2**16, 2), (2**16 + 1, 4)):
        write(tmp_path / str(size), {"a-en": [([size - 1, 3], [3])]}, size=size)
        store = Store(tmp_path / str(size), PRINT)
        assert store.encoded()["a-en"].source[0].tolist() == [size - 1, 3]
        assert (tmp_path / str(size) / "a-en" / "00000000.ids").stat().st_size == 3 * width


@pytest.mark.parametrize("suffix", [".ids", ".offsets"])
def test_a_shard_that_was_cut_off_is_named(tmp_path, suffix):
    write(tmp_path, {"fr-en": random_pairs(6)})
    file = tmp_path / "fr-en" / f"00000001{suffix}"
    file.write_bytes(file.read_bytes()[:-8])
    found = open_encoded(tmp_path, PRINT)["fr-en"]
    assert found.source[3].tolist() == random_pairs(6)[3][0]
    with pytest.raises(RunError, match=r"00000001: .* a file was cut off"):
        found.source[4]


def test_an_unfinished_corpus_has_no_index(tmp_path):
    with pytest.raises(ZeroDivisionError), Writer(tmp_path, PRINT, 1000) as out:
        out.add("fr-en", random_pairs(3))
        raise ZeroDivisionError
    with pytest.raises(RunError, match=r"index\.json: cannot be read: No such file"):
        open_encoded(tmp_path, PRINT)


def test_another_vocabulary_and_a_newer_format_are_refused(tmp_path):
    write(tmp_path, {"fr-en": random_pairs(3)})
    with pytest.raises(RunError, match=f"encoded with vocabulary {PRINT}, the run has f"):
        open_encoded(tmp_path, "f" * 16)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | {"format": 3}))
    with pytest.raises(
        RunError, match="encoded in format 3; this version of gradvac reads up to 2"
    ):
        open_encoded(tmp_path, PRINT)


def test_the_first_format_is_still_read(tmp_path):
    pairs = random_pairs(5)
    for number, side in enumerate(("source", "target")):
        packed = Sentences.of([pair[number] for pair in pairs])
        np.save(tmp_path / f"fr-en.{side}.ids.npy", packed.ids)
        np.save(tmp_path / f"fr-en.{side}.offsets.npy", packed.offsets)
    (tmp_path / "index.json").write_text(json.dumps({"tasks": ["fr-en"], "vocabulary": PRINT}))
    found = open_encoded(tmp_path, PRINT)["fr-en"]
    assert [found.target[i].tolist() for i in range(5)] == [target for _, target in pairs]
