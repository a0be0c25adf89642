"""The README of an exported model: what it translates, and how it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from gradvac.text.languages import Direction, language
from gradvac.translation.vocabulary import Vocabulary

_LOADING = {
    "gradvac": """The gradvac command translates lines of standard input:

```console
$ echo "..." | gradvac translate FOLDER --to {target}
```
""",
    "huggingface": """The first word of each text names the target language, as
`>>{target}<<`; without it the model does not know the language to write.

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSeq2SeqLM.from_pretrained("FOLDER")
batch = tokenizer([">>{target}<< ..."], return_tensors="pt", padding=True)
print(tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True))
```
""",
    "ctranslate2": """The first token of each source names the target language, as `<2{target}>`,
the last is `</s>`:

```python
import ctranslate2
import sentencepiece

translator = ctranslate2.Translator("FOLDER")
pieces = sentencepiece.SentencePieceProcessor(model_file="FOLDER/vocabulary.model")
source = ["<2{target}>", *pieces.encode("...", out_type=str), "</s>"]
(result,) = translator.translate_batch([source], beam_size=5)
print(pieces.decode(result.hypotheses[0]))
```
""",
}


def readme(name: str, to: str, directions: Sequence[Direction], vocabulary: Vocabulary) -> str:
    """The text of ``README.md`` for an export of the run or model called ``name``."""
    targets = list(dict.fromkeys(d.target for d in directions))
    rows = [
        f"| {language(code).name} | `{code}` | `>>{code}<<` | `<2{code}>` | "
        f"{', '.join(d.source for d in directions if d.target == code)} |"
        for code in targets
    ]
    table = ["| target | code | in transformers | token | trained from |", "|---|---|---|---|---|"]
    parts = [
        f"# {name}",
        f"A translation model, written by `gradvac export --to {to}`, {version('gradvac')}.",
        "\n".join([*table, *rows]),
        _LOADING[to].format(target=targets[0]).rstrip(),
    ]
    if vocabulary.normalization == "nfc":
        parts.append(
            "The text given to it must be in Unicode NFC with single spaces: "
            '`" ".join(unicodedata.normalize("NFC", text).split())`.'
        )
    return "\n\n".join(parts) + "\n"
