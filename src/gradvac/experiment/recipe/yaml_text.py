"""Parsing untrusted YAML: plain values only, and a limited number of them."""

from __future__ import annotations

import re
from typing import Any

import yaml

# Maximum number of values after aliases are expanded. Chosen here: a hundred times the largest
# shipped recipe. Without a limit nine lines of aliases expand to a billion values.
MOST_VALUES = 100_000
_KINDS = ("null", "bool", "merge")  # as in YAML 1.1; for numbers see below
_NUMBERS = {
    # Unlike YAML 1.1, where 010 is eight and 1:30 is ninety
    "int": re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "float": re.compile(
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9]+|\.inf|\.Inf)$|\.nan$"
    ),
}
_DIGITS = 4000  # per number; Python rejects integers of more than 4,300


class _Plain(yaml.SafeLoader):
    """Null, booleans, numbers, strings, lists and mappings; anything else is a string or rejected.

    A recipe needs no dates, sets, binary data or tags of YAML, and their constructors raise many
    different errors.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  as in the class above
        first: [(tag, form) for tag, form in known if tag.rpartition(":")[2] in _KINDS]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            raise yaml.MarkedYAMLError(
                None, None, f"a tag ({tag[:80]}): write plain values", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > _DIGITS:
            raise yaml.MarkedYAMLError(
                None, None, f"a number of {len(node.value):,} digits", node.start_mark
            )
        return super().construct_yaml_int(node)


for _kind, _form in _NUMBERS.items():
    _Plain.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _form, list("-+.0123456789"))
_Plain.add_constructor("tag:yaml.org,2002:int", _Plain.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """Plain values of a YAML text; ValueError gives the reason, with ``:LINE`` if known."""
    try:
        tree = _Plain(text).get_single_data()
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{line}: not YAML: {getattr(e, 'problem', None) or e}") from e
    except RecursionError:
        raise ValueError(": not YAML of a recipe: brackets are nested too deep") from None
    except (ValueError, OverflowError) as e:  # a number such as 0o9
        raise ValueError(f": not YAML: {e}") from e
    left, count = [tree], 0
    while left:
        value = left.pop()
        count += 1
        if count + len(left) > MOST_VALUES:
            raise ValueError(
                f": more than {MOST_VALUES:,} values once its aliases (*name) are written out, or "
                "one that holds itself"
            )
        if isinstance(value, dict):
            if odd := [key for key in value if not isinstance(key, str)]:
                raise ValueError(f": a key that is no text: {odd[0]!r}; put it in quotes")
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return tree
