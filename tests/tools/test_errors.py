"""docs/errors.md has every message that the package raises."""

from gradvac import errors
from tools.errors import PAGE, SHOWN_AS, messages, page


def test_the_page_is_what_the_command_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: python -m tools.errors"


def test_every_error_class_is_on_the_page() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert set(SHOWN_AS.values()) == classes - {"GradvacError"}


def test_messages_are_found_with_what_to_do() -> None:
    """Two that are raised in other tests, as a user would look them up."""
    found = {(one.kind, one.cause): one.cure for one in messages()}
    assert found["GradientError", "beta is ..."] == "it must lie in [0, 1]"
    assert "copied nor pickled" in next(cause for _, cause in found if "pickled" in cause)
    assert sum(1 for cure in found.values() if cure) > 200
