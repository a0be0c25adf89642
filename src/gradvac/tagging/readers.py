r"""Tagged sentences from files of any format: words and tags, problems with their places.

| format       | a line                                                                        |
|--------------|-------------------------------------------------------------------------------|
| `conllu`     | CoNLL-U, ten columns; the tag is UPOS                                         |
| `panx`       | ``lang:word<TAB>tag``, as in XTREME's WikiAnn                                 |
| `conll2003`  | word, part of speech, chunk, tag; ``-DOCSTART-`` begins a document            |
| `two-column` | word, white space, tag; the tag is what follows the last white space          |
| `indexed`    | ``number<TAB>word<TAB>tag``                                                   |
| `datasets`   | no file: a folder of Hugging Face `datasets`, or a name on the hub            |

An empty line ends a sentence. Files are UTF-8 and may be compressed with gzip, xz or bzip2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from gradvac.errors import CorpusError, RecipeError
from gradvac.text.account import Account
from gradvac.text.blocks import is_blank
from gradvac.text.textfiles import Fault, decode, raw_lines


@dataclass(frozen=True, slots=True)
class Tagged:
    """The words of a sentence, a tag for each, and the `file:line` where it begins."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str


Pair = tuple[str, str]


def read_tagged(path: str, format: str, account: Account, split: str = "train") -> list[Tagged]:
    """All sentences of a file in one of the `FORMATS`; ``split`` is only for `datasets`.

    A sentence with a bad line is a problem for ``account``: it is left out, or ends the reading.

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
    for sentence in _sentences(Path(path), _LINES[format], account):
        if isinstance(sentence, Fault):
            account.problem(path, sentence.reason, sentence.where, sentence.detail)
        else:
            account.keep(path)
            found.append(sentence)
    if not found:
        raise CorpusError(f"{path}:1: no tagged sentence of format {format!r} in it")
    return found


@dataclass(slots=True)
class _State:
    """What was read so far of the current sentence."""

    words: int = 0  # words with a tag
    number: int = 0  # number of the last word, if the format has numbers
    empty: int = 0  # the second number of the last empty node after it
    end: int = 0  # the last word of the last multiword token


Parse = Callable[[str, _State], Pair | None]


def _sentences(path: Path, parse: Parse, account: Account) -> Iterator[Tagged | Fault]:
    """Sentences between empty lines; for one with bad lines, the first fault."""
    words: list[str] = []
    tags: list[str] = []
    fault: Fault | None = None
    first, number, state = 0, 0, _State()
    for number, line in enumerate(chain(raw_lines(path), [b""]), 1):
        where = f"{path}:{number}"
        if line is not None and _is_blank(line):
            if line.strip():
                account.note(str(path), "a line of odd white space ends a sentence", where)
            if state.end > state.number:
                told = f"a multiword token up to {state.end}, its words up to {state.number}"
                fault = fault or Fault("not a tagged word", f"{path}:{number - 1}", told)
            if fault or words:
                yield fault or Tagged(tuple(words), tuple(tags), f"{path}:{first}")
            words, tags, fault, first, state = [], [], None, 0, _State()
            continue
        first = first or number
        try:
            pair = parse(decode(line, where), state)
        except Fault as e:
            fault = fault or e
            continue
        except ValueError as e:
            fault = fault or Fault("not a tagged word", where, str(e))
            continue
        if pair:
            words.append(pair[0])
            tags.append(pair[1])
            state.words += 1


def _is_blank(line: bytes) -> bool:
    text = line.strip()
    return not text or (text[0] > 0x7F and is_blank(text.decode("utf-8", "replace")))


_WORD = re.compile(r"[1-9]\d*", re.ASCII)
_RANGE = re.compile(r"([1-9]\d*)-([1-9]\d*)", re.ASCII)
_EMPTY = re.compile(r"(0|[1-9]\d*)\.([1-9]\d*)", re.ASCII)
_NEW = "an empty line is missing before a new sentence"


def _conllu(line: str, state: _State) -> Pair | None:
    """A syntactic word and its UPOS; None for comments, multiword tokens and empty nodes."""
    if line.startswith("#"):
        if state.words:
            raise ValueError(f"a comment after a word; {_NEW}")
        return None
    cells = line.split("\t")
    if len(cells) != 10:
        raise ValueError(f"{len(cells)} columns between tabs; CoNLL-U has 10")
    if not _advance(cells[0], state):
        return None
    return _pair(cells[1], cells[3])


def _advance(id_: str, state: _State) -> bool:
    """Whether an ID is a word's; ValueError if it does not follow the earlier ones."""
    wanted = state.number + 1
    if found := _EMPTY.fullmatch(id_):
        if (int(found[1]), int(found[2])) != (state.number, state.empty + 1):
            raise ValueError(f"ID {id_!r}; must be {state.number}.{state.empty + 1} here")
        state.empty += 1
        return False
    if found := _RANGE.fullmatch(id_):
        first, last = int(found[1]), int(found[2])
        if first != wanted or last <= first or first <= state.end:
            after = f"; {_NEW}" if first == 1 else ""
            raise ValueError(f"ID {id_!r} after {state.number}; words of it must follow{after}")
        state.end = last
        return False
    if not _WORD.fullmatch(id_):
        raise ValueError(f"ID {id_!r}; must be such as 1, 1-2 or 1.1")
    if int(id_) != wanted:
        after = f"; {_NEW}" if id_ == "1" else ""
        raise ValueError(f"ID {id_!r}; must be {wanted} here{after}")
    state.number, state.empty = wanted, 0
    return True


def _panx(line: str, _: _State) -> Pair:
    cells = line.split("\t")
    language, colon, word = cells[0].partition(":")
    if len(cells) != 2 or not colon or not language:
        raise ValueError(f"found {line!r}; must be lang:word, a tab, and a tag")
    return _pair(word, cells[1])


def _conll2003(line: str, state: _State) -> Pair | None:
    # A space outside ASCII is part of a word.
    cells = re.split(r"[ \t]+", line.strip(" \t"))
    if cells[0] == "-DOCSTART-":
        if state.words:
            raise ValueError(f"-DOCSTART- after a word; {_NEW}")
        return None
    if len(cells) != 4:
        raise ValueError(f"{len(cells)} columns; CoNLL-2003 has 4: word, POS, chunk, tag")
    return _pair(cells[0], cells[3])


def _two_column(line: str, _: _State) -> Pair:
    found = re.fullmatch(r"(.*?)[ \t]+([^ \t]+)[ \t]*", line)
    if found is None:
        raise ValueError(f"found {line!r}; must be a word and a tag")
    return _pair(found[1], found[2])


def _indexed(line: str, state: _State) -> Pair:
    cells = line.split("\t")
    if len(cells) != 3 or not re.fullmatch(r"\d+", cells[0], re.ASCII):
        raise ValueError(f"found {line!r}; must be a number, a word and a tag between tabs")
    if state.words and int(cells[0]) <= state.number:
        raise ValueError(f"number {cells[0]} after {state.number}; {_NEW}")
    state.number = int(cells[0])
    return _pair(cells[1], cells[2])


def _pair(word: str, tag: str) -> Pair:
    if not word.strip() or not tag.strip():
        raise ValueError(f"the {'tag' if word.strip() else 'word'} is empty")
    return word, tag


_LINES: dict[str, Parse] = {
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


def check_overlap(language: str, parts: Mapping[str, Sequence[Tagged]], account: Account) -> None:
    """Note held-out sentences that are in the training text, by their words.

    Raises:
        CorpusError: a part has the same lines of a file, or the same text, as the training text.
    """
    trained = {sentence.words: sentence.where for sentence in parts["train"]}
    places = {sentence.where for sentence in parts["train"]}
    for part in parts.keys() - {"train"}:
        held = parts[part]
        both = [s for s in held if s.words in trained]
        if not both:
            continue
        where, twin = both[0].where, trained[both[0].words]
        if any(s.where in places for s in held) or trained.keys() == {s.words for s in held}:
            raise CorpusError(
                f"{where}: {language}: {part} is training text: {len(both):,} of its {len(held):,} "
                f"sentences were trained on, this one at {twin}"
            )
        file, _, _ = where.rpartition(":")
        account.note(file, f"{part} of {language}, in training too", where, len(both))
