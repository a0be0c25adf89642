"""YAML of a stranger: plain values, and not more of them than a recipe can have."""

from __future__ import annotations

from typing import Any

import yaml

# Values a recipe may hold once its aliases are written out. Chosen here: a hundred times the
# largest of ours. Without a limit nine lines of aliases stand for a billion values.
MOST_VALUES = 100_000


def parse_yaml(text: str) -> Any:
    """Plain values of a YAML text; ValueError says what is wrong, with ``:LINE`` where known."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{line}: not YAML: {getattr(e, 'problem', None) or e}") from e
    except RecursionError:
        raise ValueError(": not YAML of a recipe: brackets are nested too deep") from None
    except (ValueError, OverflowError) as e:  # a date that does not exist, a number too long
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
            left.extend(value.values())
        elif isinstance(value, list | tuple | set):
            left.extend(value)
    return tree
