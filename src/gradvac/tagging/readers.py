r"""Tagged sentences from files, whatever their format: words and tags, problems located.

| format       | a line                                                                        |
|--------------|-------------------------------------------------------------------------------|
| `conllu`     | CoNLL-U, ten columns; the tag is UPOS                                         |
| `panx`       | ``lang:word<TAB>tag``, as XTREME has WikiAnn                                  |
| `conll2003`  | word, part of speech, chunk, tag; ``-DOCSTART-`` begins a document            |
| `two-column` | word, white space, tag; the tag is what follows the last white space          |
| `indexed`    | ``number<TAB>word<TAB>tag``                                                   |
| `datasets`   | no file: a folder of Hugging Face `datasets`, or a name on the hub            |

An empty line ends a sentence. Files are UTF-8 and may be compressed with gzip, xz or bzip2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradvac.errors import CorpusError, RecipeError
from gradvac.translation.account import Account
from gradvac.translation.textfiles import Fault, decode, raw_lines


@dataclass(frozen=True, slots=True)
class Tagged:
    """The words of a sentence, a tag for each, and the `file:line` where it begins."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str


Pair = tuple[str, str]


def read_tagged(path: str, format: str, account: Account, split: str = "train") -> list[Tagged]:
    """All sentences of a file in one of the `FORMATS`; ``split`` is for `datasets` alone.

    A sentence with a bad line is a problem of ``account``: left out, or the end of the reading.

    Raises:
        CorpusError: the file cannot be read, has no sentence, or a line is bad and the policy of
            ``account`` is "fail"; starts with ``file:line``.
        RecipeError: there is no such format, or the extra for `datasets` is not installed.
    """
    account.start(path)
    if format == "datasets":
        found = list(_of_datasets(path, split))
        for _ in found:
            account.keep(path)
        return found
    if format not in _LINES:
        near = difflib.get_close_matches(format, FORMATS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"format: found {format!r}, must be {', '.join(FORMATS)}{hint}")
    found = []
    for sentence in _sentences(Path(path), _LINES[format]):
        if isinstance(sentence, Fault):
            account.problem(path, sentence.reason, sentence.where, sentence.detail)
        else:
            account.keep(path)
            found.append(sentence)
    if not found:
        raise CorpusError(f"{path}:1: no tagged sentence of format {format!r} in it")
    return found


def _sentences(path: Path, parse: Callable[[str], Pair | None]) -> Iterator[Tagged | Fault]:
    """Sentences between empty lines; of one with bad lines the first fault."""
    words: list[str] = []
    tags: list[str] = []
    fault: Fault | None = None
    first = 0
    number = 0
    for number, line in enumerate(raw_lines(path), 1):
        where = f"{path}:{number}"
        if line is not None and not line.strip():
            if fault or words:
                yield fault or Tagged(tuple(words), tuple(tags), f"{path}:{first}")
            words, tags, fault, first = [], [], None, 0
            continue
        first = first or number
        try:
            pair = parse(decode(line, where))
        except Fault as e:
            fault = fault or e
            continue
        except ValueError as e:
            fault = fault or Fault("not a tagged word", where, str(e))
            continue
        if pair:
            words.append(pair[0])
            tags.append(pair[1])
    if fault or words:
        yield fault or Tagged(tuple(words), tuple(tags), f"{path}:{first}")


_WORD = re.compile(r"[1-9]\d*")
_NOT_A_WORD = re.compile(r"[1-9]\d*-[1-9]\d*|\d+\.[1-9]\d*")  # multiword tokens; empty nodes


def _conllu(line: str) -> Pair | None:
    """A syntactic word and its UPOS; comments, multiword tokens and empty nodes have none."""
    if line.startswith("#"):
        return None
    cells = line.split("\t")
    if len(cells) != 10:
        raise ValueError(f"{len(cells)} columns between tabs; CoNLL-U has 10")
    if _NOT_A_WORD.fullmatch(cells[0]):
        return None
    if not _WORD.fullmatch(cells[0]):
        raise ValueError(f"ID {cells[0]!r}; must be such as 1, 1-2 or 1.1")
    return _pair(cells[1], cells[3])


def _panx(line: str) -> Pair:
    cells = line.split("\t")
    language, colon, word = cells[0].partition(":")
    if len(cells) != 2 or not colon or not language:
        raise ValueError(f"found {line!r}; must be lang:word, a tab, and a tag")
    return _pair(word, cells[1])


def _conll2003(line: str) -> Pair | None:
    cells = line.split()
    if cells[0] == "-DOCSTART-":
        return None
    if len(cells) != 4:
        raise ValueError(f"{len(cells)} columns; CoNLL-2003 has 4: word, POS, chunk, tag")
    return _pair(cells[0], cells[3])


def _two_column(line: str) -> Pair:
    cells = line.rsplit(None, 1)
    if len(cells) != 2:
        raise ValueError(f"found {line!r}; must be a word and a tag")
    return _pair(cells[0], cells[1])


def _indexed(line: str) -> Pair:
    cells = line.split("\t")
    if len(cells) != 3 or not cells[0].isdecimal():
        raise ValueError(f"found {line!r}; must be a number, a word and a tag between tabs")
    return _pair(cells[1], cells[2])


def _pair(word: str, tag: str) -> Pair:
    if not word.strip() or not tag.strip():
        raise ValueError(f"the {'tag' if word.strip() else 'word'} is empty")
    return word, tag


_LINES: dict[str, Callable[[str], Pair | None]] = {
    "conllu": _conllu,
    "panx": _panx,
    "conll2003": _conll2003,
    "two-column": _two_column,
    "indexed": _indexed,
}
FORMATS = (*_LINES, "datasets")


def _of_datasets(path: str, split: str) -> Iterator[Tagged]:
    """Sentences of a data set with a column of words and one of tags."""
    try:
        import datasets
    except ImportError as e:
        raise RecipeError("format: 'datasets' needs: pip install 'gradvac[datasets]'") from e
    try:
        on_disk = Path(path).is_dir() and any(Path(path).rglob("*.arrow"))
        data: Any = datasets.load_from_disk(path) if on_disk else datasets.load_dataset(path)
    except (OSError, ValueError) as e:
        raise CorpusError(f"{path}: not a data set: {e}") from e
    if isinstance(data, dict):
        if split not in data:
            raise CorpusError(f"{path}: has no split {split!r}; there: {', '.join(data)}")
        data = data[split]
    columns: dict[str, Any] = data.features
    tags = next((c for c in ("ner_tags", "upos", "pos_tags", "tags") if c in columns), None)
    if "tokens" not in columns or tags is None:
        raise CorpusError(
            f"{path}: columns {', '.join(columns)}; must be tokens and one of ner_tags, upos, "
            "pos_tags, tags"
        )
    kind: Any = getattr(columns[tags], "feature", None)
    name = kind.int2str if hasattr(kind, "int2str") else str
    for number, row in enumerate(data):
        words, found = row["tokens"], [name(t) for t in row[tags]]
        where = f"{path}[{split}]:{number}"
        if len(words) != len(found):
            raise CorpusError(f"{where}: {len(words)} tokens, {len(found)} tags")
        if words:
            yield Tagged(tuple(words), tuple(found), where)
