"""A vocabulary of WordPiece: the same every time, and that of a literal trainer."""

import random
from collections import Counter
from itertools import pairwise

import pytest

pytest.importorskip("transformers")
from gradvac.tagging.pretraining import SPECIAL, train_tokenizer

LETTERS = "abcdefghij" * 9 + "".join(map(chr, range(0x4E00, 0x4E60)))


def texts(count=60):
    """Words of few letters, and of many rare ones: most counts are equal to others."""
    draw = random.Random(0)
    word = lambda: "".join(draw.choice(LETTERS) for _ in range(draw.randint(1, 6)))
    return {code: [" ".join(word() for _ in range(6)) for _ in range(count)] for code in ("a", "b")}


def trained(found, size):
    return train_tokenizer(found, size=size, temperature=5.0, sample=10**6, seed=1)


def literal_pieces(found, size):
    """Merge the most frequent pair of symbols, of equal ones that of the lowest numbers.

    Sennrich et al. 2016, algorithm 1, on the words of all texts.
    """
    words = Counter(
        w
        for own in found.values()
        for text in own
        for w in "".join(f" {c} " if ord(c) >= 0x4E00 else c for c in text).split()
    )
    letters = Counter()
    for word, n in words.items():
        letters.update({c: n * word.count(c) for c in set(word)})
    kept = sorted(sorted(letters), key=lambda c: -letters[c])[: size // 6]
    inside = {c for word in words for c in word[1:]}
    pieces = [*SPECIAL, *sorted(f"##{c}" for c in inside & set(kept)), *sorted(kept)]
    split = {}
    for word in words:
        found_pieces = [c if not i else f"##{c}" for i, c in enumerate(word) if c in kept]
        split[word] = found_pieces
    while len(pieces) < size:
        pairs = Counter()
        for word, own in split.items():
            for pair in pairwise(own):
                pairs[pair] += words[word]
        if not pairs:
            break
        number = {piece: n for n, piece in enumerate(pieces)}
        left, right = max(pairs, key=lambda p: (pairs[p], -number[p[0]], -number[p[1]]))
        whole = left + right.removeprefix("##")
        if whole not in number:
            pieces.append(whole)
        for own in split.values():
            i = 0
            while i + 1 < len(own):
                if (own[i], own[i + 1]) == (left, right):
                    own[i : i + 2] = [whole]
                i += 1
    return {piece: n for n, piece in enumerate(pieces)}


@pytest.mark.parametrize("size", [300, 520])
def test_the_pieces_are_those_of_a_literal_trainer_every_time(size):
    found = texts()
    wanted = literal_pieces(found, size)
    for _ in range(3):
        tokenizer = trained(found, size)
        assert tokenizer.get_vocab() == wanted
    assert tokenizer.all_special_tokens and set(tokenizer.all_special_tokens) == set(SPECIAL)


def test_texts_are_cut_into_pieces_and_rare_characters_are_unknown():
    tokenizer = trained(texts(), 300)
    assert tokenizer.tokenize("a") == ["a"]
    assert tokenizer.tokenize("[MASK] ☃") == ["[MASK]", "[UNK]"]
    whole = tokenizer.decode(tokenizer("abc dee", add_special_tokens=False)["input_ids"])
    assert whole == "abc dee"
