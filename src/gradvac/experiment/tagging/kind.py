"""What is of tagging alone among the verbs that serve every kind of job."""

from __future__ import annotations

from gradvac.experiment.tagging.recipe import TaggingRecipe


class Kind:
    """The kind."""

    recipe = TaggingRecipe


KIND = Kind()
