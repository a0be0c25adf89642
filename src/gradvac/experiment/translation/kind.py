"""What is of translation alone among the verbs that serve every kind of job."""

from __future__ import annotations

from gradvac.experiment.translation.recipe import Recipe


class Kind:
    """The kind."""

    recipe = Recipe


KIND = Kind()
