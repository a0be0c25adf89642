"""One shared SentencePiece vocabulary for all languages, source and target.

Trained on temperature-sampled text (Wang et al. 2021, section 2.1 and appendix B: 64k pieces, a
``<2xx>`` tag before the source names the target language). With byte fallback no character is
unknown. Tags are control symbols: they have their own ids, and no text can contain one.

Decoding returns the encoded text, unless the model has a rule that rewrites text, such as
SentencePiece's default (``nmt_nfkc``: ellipsis to three dots, full-width punctuation to ASCII).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal, get_args

import numpy as np
import sentencepiece as spm

from gradvac.data.encoded import BOS, EOS, PAD, UNK
from gradvac.data.sampling import sampling_probabilities
from gradvac.errors import RecipeError, RunError
from gradvac.reading import read_bytes
from gradvac.text.blocks import normalise
from gradvac.translation.piece_model import rule_name, with_rule_name
from gradvac.writing import write_bytes

Normalization = Literal["nfc", "identity", "nmt_nfkc"]
"""How text is rewritten before it is split: into the normal form of clean text, with the same
characters and words (`normalise`); not at all; or by SentencePiece's own rule, which changes
characters."""
_EXACT = ("nfc", "identity")
# SentencePiece writes a space as U+2581, and cannot distinguish the two. U+FDD0 is a noncharacter:
# Unicode reserves it for use inside programs (23.7), so no text has it.
_BLOCK, _STAND_IN = "\u2581", "\ufdd0"


def tag(language: str) -> str:
    """The symbol that requests translation into ``language``."""
    return f"<2{language}>"


@dataclass(frozen=True)
class Vocabulary:
    """A trained SentencePiece model with gradvac's special symbols.

    ``model`` is the serialised SentencePiece protocol buffer: the file ``vocabulary.model``.
    """

    model: bytes

    def __post_init__(self) -> None:
        try:
            pieces = spm.SentencePieceProcessor(model_proto=self.model)
            controls = {
                i: pieces.id_to_piece(i) for i in range(len(pieces)) if pieces.is_control(i)
            }
        except (RuntimeError, ValueError) as e:  # ValueError: a piece, or the message, is not UTF-8
            raise RunError("not a SentencePiece model") from e
        ids = (pieces.pad_id(), pieces.unk_id(), pieces.bos_id(), pieces.eos_id())
        if ids != (PAD, UNK, BOS, EOS):
            raise RunError(f"vocabulary has pad, unk, bos, eos = {ids}; gradvac needs 0, 1, 2, 3")
        tags = {piece[2:-1]: i for i, piece in controls.items() if piece.startswith("<2")}
        object.__setattr__(self, "_pieces", pieces)
        object.__setattr__(self, "_rule", rule_name(self.model))
        object.__setattr__(self, "_tags", tags)

    pad, unk, bos, eos = PAD, UNK, BOS, EOS

    @property
    def pieces(self) -> spm.SentencePieceProcessor:
        """The SentencePiece processor itself."""
        return self._pieces  # type: ignore[attr-defined]

    @property
    def normalization(self) -> str:
        """How text is rewritten: one of `Normalization`, or the name of a rule from elsewhere."""
        return self._rule  # type: ignore[attr-defined]

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that have a ``<2xx>`` tag, in id order."""
        return tuple(self._tags)  # type: ignore[attr-defined]

    @property
    def forbidden(self) -> list[int]:
        """Ids that a translation never contains: pad, unk, bos and the tags."""
        return [PAD, UNK, BOS, *self._tags.values()]  # type: ignore[attr-defined]

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any change of the model."""
        return hashlib.sha256(self.model).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.pieces)

    def tag_id(self, language: str) -> int:
        """Id of ``<2language>``; RunError when the vocabulary has none."""
        tags: dict[str, int] = self._tags  # type: ignore[attr-defined]
        if language not in tags:
            known = ", ".join(sorted(tags))
            raise RunError(f"the vocabulary has no tag for language {language!r}; it has: {known}")
        return tags[language]

    def encode_source(self, text: str, target_language: str) -> list[int]:
        """``<2target> pieces eos``."""
        return self.encode_sources([text], target_language)[0]

    def encode_sources(self, texts: Sequence[str], target_language: str) -> list[list[int]]:
        """`encode_source` for many texts at once."""
        first = self.tag_id(target_language)
        return [[first, *ids, EOS] for ids in self._encode(texts)]

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """``pieces eos`` for each text."""
        return [[*ids, EOS] for ids in self._encode(texts)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.pieces.encode([_written(text, self.normalization) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special symbols are removed."""
        text = self.pieces.decode([int(i) for i in ids if i > EOS])
        return text.replace(_STAND_IN, _BLOCK) if self.normalization in _EXACT else text

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read ``vocabulary.model``."""
        model = read_bytes(path)
        try:
            return cls(model)
        except RunError as e:
            raise RunError(f"{path}: {e}") from e

    def save(self, path: Path) -> None:
        """Write ``vocabulary.model``; a hard-linked copy in another folder does not change."""
        write_bytes(path, self.model)


def _written(text: str, normalization: str) -> str:
    """A text as it is given to SentencePiece."""
    if normalization == "nfc":
        text = normalise(text)
    return text.replace(_BLOCK, _STAND_IN) if normalization in _EXACT else text


class TextSample:
    """The distinct texts of a stream, or a random ``most`` of them, and their number.

    Texts with the smallest hashes are kept: this depends only on the texts, not on their order or
    repetitions. The number of all follows from the largest hash kept (Bar-Yossef et al. 2002,
    first algorithm): exactly up to twice ``most``, above that with an error of about most ** -0.5.
    """

    def __init__(self, most: int) -> None:
        self.most, self._texts = most, dict[str, None]()
        self._bound = 2**64

    def add(self, text: str) -> None:
        """Add a text."""
        if self._bound == 2**64 or _hash(text) < self._bound:
            self._texts[text] = None
            if len(self._texts) > 2 * self.most:
                self._bound = sorted(map(_hash, self._texts))[self.most]
                self._texts = {t: None for t in self._texts if _hash(t) < self._bound}

    @property
    def texts(self) -> list[str]:
        """The texts kept, in order of arrival."""
        return list(self._texts)

    @property
    def size(self) -> int:
        """The number of distinct texts."""
        return round(len(self._texts) * (2**64 / self._bound))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest())


def temperature_sample(
    texts: Mapping[str, Sequence[str]],
    temperature: float,
    total: int,
    seed: int,
    sizes: Mapping[str, int] | None = None,
) -> Iterator[str]:
    """Yield about ``total`` sentences, languages drawn with P_l = n_l^(1/T) / sum_m n_m^(1/T).

    A language with fewer sentences than its share repeats them: this is up-sampling by
    temperature (Arivazhagan et al. 2019, section 5). ``sizes`` are n_l if ``texts`` is a sample of
    the text.
    """
    languages = [l for l in texts if len(texts[l])]
    counts = np.array([(sizes or {}).get(l, len(texts[l])) for l in languages], dtype=np.float64)
    shares = sampling_probabilities(counts, temperature)
    rng = np.random.default_rng(seed)
    for language, share in zip(languages, shares, strict=True):
        sentences = texts[language]
        wanted = max(1, round(total * share))
        whole, rest = divmod(wanted, len(sentences))
        for _ in range(whole):
            yield from iter(sentences)
        for i in rng.choice(len(sentences), rest, replace=False):
            yield sentences[int(i)]


def _interruptible(train: Callable[..., None], sentences: Iterable[str], **options: Any) -> None:
    """Call SentencePiece in a thread, so that Ctrl-C ends the wait at once: it never looks for it.

    Python must not end while the thread is in ``sentences``: they end with the wait.
    """
    given_up, read, errors = Event(), Event(), list[BaseException]()

    def given() -> Iterator[str]:
        yield from takewhile(lambda text: not given_up.is_set(), sentences)
        read.set()

    def work() -> None:
        try:
            train(sentence_iterator=given(), **options)
        except BaseException as e:
            errors.append(e)

    thread = Thread(target=work, daemon=True)
    try:
        thread.start()  # within the block: Ctrl-C may come before it has returned
        while thread.is_alive():
            thread.join(0.1)
    except BaseException:
        given_up.set()
        if not read.is_set():
            with suppress(RuntimeError):  # it has not begun
                thread.join(2)  # it fails for want of text
        raise
    if errors:
        raise errors[0]


def train_vocabulary(
    texts: Mapping[str, Sequence[str]],
    *,
    size: int,
    temperature: float = 5.0,
    sample: int = 1_000_000,
    byte_fallback: bool = True,
    character_coverage: float = 0.9995,
    symbols: Iterable[str] = (),
    normalization: Normalization = "nfc",
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> Vocabulary:
    """Train the shared vocabulary on ``texts``: language code -> sentences.

    ``sizes`` gives the numbers of sentences if ``texts`` is a sample of them; the temperature is
    applied to these.

    ``size`` counts every piece, tags and bytes included. ``symbols`` are never split in text.
    ``normalization`` is how text is rewritten, here and in every encoding. Raises RecipeError
    if SentencePiece cannot reach ``size`` on this text.
    """
    if normalization not in get_args(Normalization):
        known = ", ".join(get_args(Normalization))
        raise RecipeError(f"normalization: found {normalization!r}, must be {known}")
    model = io.BytesIO()
    total = min(sample, sum(len(t) for t in texts.values()))
    drawn = temperature_sample(texts, temperature, total, seed, sizes)
    try:
        _interruptible(
            spm.SentencePieceTrainer.train,
            (_written(text, normalization) for text in drawn),
            normalization_rule_name="identity" if normalization in _EXACT else normalization,
            remove_extra_whitespaces=normalization != "identity",
            model_writer=model,
            vocab_size=size,
            model_type="unigram",
            byte_fallback=byte_fallback,
            character_coverage=character_coverage,
            control_symbols=[tag(language) for language in sorted(texts)],
            user_defined_symbols=list(symbols),
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            split_digits=True,
            num_threads=2,  # fixed: the last bits depend on the number of threads
            minloglevel=2,
        )
    except RuntimeError as e:
        reason = str(e).strip().rpartition("] ")[2] or "no reason given"  # "file(line) [check] why"
        raise RecipeError(
            f"vocabulary.size: {size} cannot be trained on this text: {reason}"
        ) from e
    return Vocabulary(with_rule_name(model.getvalue(), normalization))
