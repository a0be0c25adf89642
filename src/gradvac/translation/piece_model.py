"""Reads the name of the normalisation rule of a SentencePiece model.

The model is a protocol buffer; its message ``normalizer_spec`` is field 3, and ``name`` is field 1
of that (sentencepiece_model.proto). SentencePiece itself reads the name but does not use it.
"""

from __future__ import annotations

from collections.abc import Iterator

_SPEC, _NAME = 3, 1
_BYTES = 2  # the wire type of fields with a length: texts and messages
_FIXED = {1: 8, 5: 4}  # sizes of the wire types of fixed size


def rule_name(model: bytes) -> str:
    """The name of the normalisation rule (identity, nmt_nfkc, ...), empty if there is none."""
    return _field(_field(model, _SPEC), _NAME).decode("utf-8", "replace")


def with_rule_name(model: bytes, name: str) -> bytes:
    """The same model with another name for its rule; the rule is unchanged."""
    spec = _replaced(_field(model, _SPEC), _NAME, name.encode())
    return _replaced(model, _SPEC, spec)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """For each field with a length: its number; start of it, of its value and of the next field."""
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
    """A number stored as seven bits per byte, lowest first, and the position after it."""
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
