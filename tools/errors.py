"""The list of error messages in docs/errors.md, from the source.

    python -m tools.errors

Every place in the package that raises one of the errors is found in its syntax tree. What is
inserted into a message is shown as `...`. A message says first what is wrong, and then what is
allowed or what to do; where it has no second part, the class says it, under "To do:" in its
docstring.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gradvac import errors

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gradvac"
PAGE = ROOT / "docs" / "errors.md"
# Names that are raised, and the public error that a user sees.
SHOWN_AS = {
    "CorpusError": "CorpusError",
    "Fault": "CorpusError",  # a row of text; with file and line before it
    "RecipeError": "RecipeError",
    "OptionError": "RecipeError",  # an option of a method; with file and key before it
    "RunError": "RunError",
    "Diverged": "RunError",
    "GradientError": "GradientError",
    "NotFiniteError": "NotFiniteError",
    "RankError": "RankError",
}


@dataclass(frozen=True, order=True)
class Message:
    """One place where an error is raised."""

    kind: str
    room: str
    cause: str
    cure: str


def _text(node: ast.expr) -> str:
    """A message as it is written, what is inserted as `...`; a choice of two shows both."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(_text(value) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
        case ast.FormattedValue(value=ast.IfExp() as value):
            return _text(value)
        case ast.IfExp(body=body, orelse=other):
            both = [text for text in (_text(body), _text(other)) if text not in ("", "...")]
            return " / ".join(both)
        case _:
            return "..."


def _parts(message: str) -> tuple[str, str]:
    """What is wrong, and what to do: after a semicolon, or from a word such as "allowed" on."""
    cause, *cure = re.split(
        r"; |: (?=allowed|use |install|pip |choose |give |remove |write |run |must )|, (?=must be)",
        message,
        maxsplit=1,
    )
    return (cause, "".join(cure)) if re.search(r"\w", cause) else (message, "")


def _messages(file: Path) -> Iterator[Message]:
    room = str(file.relative_to(SOURCE).parent.as_posix())
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        kind = SHOWN_AS.get(getattr(node.func, "id", ""))
        if kind:
            whole = " ".join(_text(node.args[0]).split())
            if re.search(r"\w{3}", whole):  # else the message is made elsewhere and passed on
                cause, cure = _parts(whole)
                yield Message(kind, "" if room == "." else room, cause, cure)


def messages() -> list[Message]:
    """Every message of the package, each once."""
    return sorted({one for file in sorted(SOURCE.rglob("*.py")) for one in _messages(file)})


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("`", "'")


def _about(kind: str) -> tuple[str, str]:
    """What a class means, and what to do, from its docstring."""
    doc = inspect.getdoc(getattr(errors, kind)) or ""
    found = re.search(r"^To do: (.*?)(?:\n\n|\Z)", doc, re.MULTILINE | re.DOTALL)
    if not found:
        raise SystemExit(f"errors.{kind}: its docstring has no paragraph 'To do: ...'")
    first = doc.split("\n\n")[0]
    return " ".join(first.split()).replace("``", "`"), " ".join(found[1].split()).replace("``", "`")


def page() -> str:
    """The whole page."""
    found = messages()
    parts = [HEAD.format(count=len(found))]
    for kind in dict.fromkeys(SHOWN_AS.values()):
        means, cure = _about(kind)
        parts.append(f"## {kind}\n\n{means}\n\n**To do:** {cure}")
        own = [one for one in found if one.kind == kind]
        for room in dict.fromkeys(one.room for one in own):
            rows = [
                f"| {_cell(one.cause)} | {_cell(one.cure)} |" for one in own if one.room == room
            ]
            head = f"### {kind} in `{room}`" if room else f"### {kind} elsewhere"
            parts.append(
                "\n".join([head, "", "| what is wrong | what to do |", "|---|---|", *rows])
            )
    return "\n\n".join(parts) + "\n"


HEAD = """# Error messages

gradvac raises six errors on purpose. The command line prints their message and exits with code 2.
A message names the file and line, the key of the recipe, or the task; where a name is misspelt it
has the nearest valid one. Below are all {count} messages, by error and by the
[room](architecture.md) of the code that raises them. `...` stands for what is inserted. An empty
cell means that the paragraph above its table says what to do.

Search this page for a few words of a message, without names and numbers. What is rejected when, and
how steps that are not finite are treated: [errors and guards](guards.md).

This page is written by `python -m tools.errors` from the source."""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.name}: {len(messages())} messages")


if __name__ == "__main__":
    main()
