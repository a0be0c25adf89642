"""Reads parameter names of this package, PyTorch, fairseq and Hugging Face.

Parameter groups and kinds of parameters (:mod:`gradvac.geometry.kinds`) both read names here.
"""

import re

_STACK = re.compile(r"(?:^|\.)(?:\w*(?:layers?|blocks?)|h)\.(\d+)\.")
_NORM = re.compile(r"norm|(?:^|[._])ln(?:[_.]|\d|$)", re.IGNORECASE)
_EMBEDDING = re.compile(
    r"embed|(?:^|[._])emb(?:[._]|$)|(?:^|\.)(?:wte|wpe|shared|lm_head|generator|softmax|proj_out)"
    r"(?:\.|$)|output_projection|final_logits_bias|relative_attention_bias",
    re.IGNORECASE,
)


def layer_of(name: str) -> str | None:
    """Return the Transformer layer of a parameter; None if it is outside the layers.

    Example:
        >>> layer_of("model.encoder.layers.0.fc1.weight")
        'model.encoder.layers.0'
    """
    match = _STACK.search(name)
    return name[: match.end() - 1] if match else None


def is_norm(name: str) -> bool:
    """Return whether a parameter belongs to a normalisation."""
    return bool(_NORM.search(name))


def is_embedding(name: str) -> bool:
    """Return whether a parameter belongs to an embedding or the softmax projection."""
    return bool(_EMBEDDING.search(name))
