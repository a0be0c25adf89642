"""What is of encoder alone among the verbs that serve every kind of job."""

from __future__ import annotations

from gradvac.experiment.encoder.recipe import EncoderRecipe


class Kind:
    """The kind."""

    recipe = EncoderRecipe


KIND = Kind()
