"""What a SentencePiece model says of the text it takes: the name of its normalisation rule.

The model is a protocol buffer; its message ``normalizer_spec`` is field 3, and ``name`` field 1 of
that (sentencepiece_model.proto). SentencePiece itself reads the name but does not go by it.
"""

from __future__ import annotations

from collections.abc import Iterator

_SPEC, _NAME = 3, 1
_BYTES = 2  # the wire type of what has a length: texts and messages
_FIXED = {1: 8, 5: 4}  # sizes of the wire types that have one


def rule_name(model: bytes) -> str:
    """The name of the normalisation rule, empty without one: identity, nmt_nfkc, ..."""
    return _field(_field(model, _SPEC), _NAME).decode("utf-8", "replace")


def with_rule_name(model: bytes, name: str) -> bytes:
    """The same model with another name for its rule, which stays what it is."""
    spec = _replaced(_field(model, _SPEC), _NAME, name.encode())
    return _replaced(model, _SPEC, spec)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Number of each field that has a length; where it, its value and the next field begin."""
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _BYTES:
            length, at = _varint(message, at)
            yield key >> 3, start, at, at + length
            at += length
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            at = _varint(message, at)[1]


def _field(message: bytes, number: int) -> bytes:
    found = (message[value:end] for n, _, value, end in _fields(message) if n == number)
    return next(found, b"")


def _replaced(message: bytes, number: int, value: bytes) -> bytes:
    field = _as_varint(number << 3 | _BYTES) + _as_varint(len(value)) + value
    for n, start, _, end in _fields(message):
        if n == number:
            return message[:start] + field + message[end:]
    return message + field


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where the next thing begins."""
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
