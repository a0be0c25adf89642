"""Files from strangers: whatever is in them, the only errors are declared ones."""

import io
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gradvac.errors import GradvacError, RecipeError, RunError
from gradvac.experiment.recipe.load import load_recipe, parse_recipe
from gradvac.experiment.recipe.yaml_text import parse_yaml
from gradvac.experiment.run.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gradvac.experiment.training.replay import Replay
from gradvac.geometry.record import GramRecord
from gradvac.text.account import Account
from gradvac.text.catalogues import parse_mo
from gradvac.text.readers import read_rows
from gradvac.text.sources import Source

BENCH = settings(
    max_examples=int(os.environ.get("FAULT_CASES", "200")),
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
BYTES = st.binary(max_size=300)
TEXT = st.text(max_size=200)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def edited(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file cut somewhere, with some bytes changed: nearly right, which random bytes never are."""

    def edit(cut: int, changes: list[tuple[int, int]]) -> bytes:
        data = bytearray(whole[:cut] if cut else whole)
        for place, value in changes:
            if data:
                data[place % len(data)] = value
        return bytes(data)

    change = st.tuples(st.integers(0, 2**16), st.integers(0, 255))
    return st.builds(edit, st.integers(0, len(whole)), st.lists(change, max_size=6))


TSV = b"en\tfr\nopen the file\touvrir le fichier\n\xef\xbb\xbfa\tb\n"
JSONL = b'{"en": "open", "fr": "ouvrir"}\n{"en": "a", "fr": "b"}\n'
PO = b'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\nmsgid "a"\nmsgstr "b"\n'


@pytest.mark.parametrize(("form", "like"), [("tsv", TSV), ("jsonl", JSONL), ("po", PO)])
def test_corpora(tmp_path, form, like):
    file = tmp_path / f"a.{form}"
    given_ = {"paths": {"fr": file}} if form == "po" else {"path": file}

    @BENCH
    @given(edited(like) | BYTES)
    def read(data: bytes) -> None:
        file.write_bytes(data)
        try:
            list(read_rows(Source(format=form, **given_), Account("drop")))
        except GradvacError as e:
            assert str(file) in str(e)

    read()


def catalogue() -> bytes:
    """A compiled catalogue of two messages, as the manual of gettext lays it out."""
    pairs = [(b"", b"Content-Type: text/plain; charset=UTF-8\n"), (b"open", b"ouvrir")]
    ids = b"".join(m + b"\0" for m, _ in pairs)
    texts = b"".join(t + b"\0" for _, t in pairs)
    start = 28 + 16 * len(pairs)
    tables, at = [], start
    for side in (0, 1):
        for pair in pairs:
            tables += [len(pair[side]), at]
            at += len(pair[side]) + 1
    numbers = [0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, start, *tables]
    return b"".join(n.to_bytes(4, "little") for n in numbers) + ids + texts


def test_the_catalogue_is_one():
    assert [m[:2] for m in parse_mo(catalogue(), "a.mo", 99)] == [("open", "ouvrir")]


@BENCH
@given(edited(catalogue()) | BYTES)
def test_compiled_catalogues(data):
    try:
        list(parse_mo(data, "a.mo", 1000))
    except GradvacError as e:
        assert "a.mo" in str(e)


GOOD = {"data": {"train": [{"path": "a.tsv"}]}}
REFERENCE = Path(__file__).parents[2] / "recipes" / "reference.yaml"
TREE = yaml.safe_load(REFERENCE.read_text(encoding="utf-8"))
KEYS = [(a, b) for a, below in TREE.items() for b in (below if isinstance(below, dict) else [""])]


@BENCH
@given(st.sampled_from(KEYS), VALUES)
def test_values_of_recipes(key, value):
    section, name = key
    tree = {**GOOD, section: {**TREE[section], name: value} if name else value}
    try:
        parse_recipe(tree, "r", run_code=False)
    except RecipeError as e:
        assert str(e).startswith("r: ")


@BENCH
@given(TEXT | edited(REFERENCE.read_bytes()[:4000]).map(lambda b: b.decode("latin-1")))
@example("a: 2020-13-45")
@example("? [a]\n: b")
@example("&a [*a]")
@example("[" * 5000)
@example("a: !!python/object/apply:os.system ['true']")
@example("a: 1" + "0" * 5000)
def test_texts_of_recipes(tmp_path, text):
    file = tmp_path / "r.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_recipe(file)
    except RecipeError as e:
        assert str(file) in str(e)


def test_a_bomb_of_aliases_does_not_go_off():
    """Ten lines that stand for 10^9 values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ValueError, match="more than 100,000 values once its aliases"):
        parse_yaml("\n".join(lines))


@pytest.mark.parametrize("name", ["..", ".", "../../x", "/tmp/x", "a/b", "a\n", "", "~"])
@pytest.mark.parametrize("key", ["name", "size", "variant"])
def test_no_recipe_leaves_the_folder_of_runs(key, name):
    if (key, name) == ("variant", "a/b"):
        assert parse_recipe({**GOOD, key: name}, "r").variant == name
        return
    with pytest.raises(RecipeError, match=rf"{key}: found .*must match"):
        parse_recipe({**GOOD, key: name}, "r")


@pytest.mark.parametrize("version", [0, 2, 99])
def test_a_recipe_of_another_version_is_refused_by_name(version):
    with pytest.raises(RecipeError, match=rf"version: found {version}, this gradvac reads version"):
        parse_recipe({**GOOD, "version": version}, "r")


def saved(folder: Path) -> Path:
    tensors = {"w": torch.arange(6.0)}
    state = {"best": {}, "made_with": {}}
    return save_checkpoint(folder, Checkpoint(1, tensors, tensors, tensors, state))


@pytest.mark.parametrize("with_sums", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_checkpoints(tmp_path, name, with_sums):
    folder = saved(tmp_path)
    if not with_sums:
        (folder / "SHA256SUMS").unlink()
        state = {"step": 1, "best": {}}
        (folder / "state.json").write_text(json.dumps(state))
    whole = (folder / name).read_bytes()
    code = pickle.dumps(_Touch(tmp_path / "ran"))
    buffer = io.BytesIO()
    torch.save({"w": _Touch(tmp_path / "ran")}, buffer)

    @BENCH
    @given(edited(whole) | BYTES)
    @example(code)
    @example(buffer.getvalue())
    @example(b"\xff" * 8 + b"{}")
    @example(b"[" * 9999)
    def load(data: bytes) -> None:
        (folder / name).write_bytes(data)
        try:
            load_checkpoint(folder)
        except RunError as e:
            assert str(folder) in str(e)

    load()
    assert not (tmp_path / "ran").exists()


class _Touch:
    """What a pickle does that runs code: here, making a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple:
        return open, (self.file, "w")


def test_the_malicious_pickle_would_run(tmp_path):
    pickle.loads(pickle.dumps(_Touch(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists()


LINE = json.dumps(
    {
        "step": 1,
        "offset": 0,
        "tasks": ["a", "b"],
        "groups": ["g"],
        "edits": [0],
        "pcgrad_edits": [0],
        "comparisons": [2],
    }
).encode()


def test_gram_records(tmp_path):
    (tmp_path / "gram.bin").write_bytes(bytes(48))
    (tmp_path / "frames.jsonl").write_bytes(LINE + b"\n")
    assert [f.gram.shape for f in GramRecord(tmp_path)] == [(1, 2, 2)]

    @BENCH
    @given(edited(LINE) | BYTES | VALUES.map(lambda v: json.dumps(v).encode()))
    @example(LINE.replace(b'"offset": 0', b'"offset": -8'))
    @example(LINE.replace(b'"step": 1', b'"step": 1e999'))
    @example(LINE.replace(b'["g"]', b'["g", "h"]'))
    @example(LINE.replace(b'["a", "b"]', b'"ab"'))
    @example(LINE.replace(b'["a", "b"]', b"[[], {}]"))
    @example(b"[" * 9999)
    def read(data: bytes) -> None:
        (tmp_path / "frames.jsonl").write_bytes(data + b"\n")
        record = GramRecord(tmp_path)
        try:
            list(record), record.steps(), list(record.in_order())
            record.truncate(0)
        except RunError as e:
            assert str(tmp_path) in str(e)

    read()


@BENCH
@given(VALUES | st.fixed_dictionaries({}, optional=dict.fromkeys(["step", "batches"], VALUES)))
def test_kept_steps(tmp_path, state):
    folder = tmp_path / "replay"
    folder.mkdir(exist_ok=True)
    (folder / "step-00000001.safetensors").write_bytes(b"")
    (folder / "step-00000001.json").write_text(json.dumps(state))
    with pytest.raises(RunError, match="step-00000001"):
        Replay.open(tmp_path, None)
