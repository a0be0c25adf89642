"""Small files in the layouts in which corpora are published, of sentences no two of which agree."""

import importlib.resources
import lzma
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

WORDS = {
    "en": "the house is red and very large today when people walk along old streets with their "
    "children who would like some bread from that market before night comes over our small "
    "village near this quiet river where ships have stood".split(),
    "fr": "la maison est rouge et très grande aujourd'hui quand gens marchent dans vieilles rues "
    "avec leurs enfants qui voudraient du pain de ce marché avant nuit vient sur notre petit "
    "village près cette calme rivière où bateaux ont été".split(),
    "ru": "этот дом красный и очень большой сегодня когда люди идут вдоль старых улиц вместе "
    "своими детьми которые хотели бы хлеба нашего рынка до ночь придёт через маленькую деревню "
    "возле тихой реки где корабли стояли давно здесь тоже".split(),
}


def sentence(code: str, number: int) -> str:
    """Sentence ``number`` in a language: the same places of its word list in each."""
    return " ".join(random.Random(number).sample(WORDS[code][:38], 9))


def lines(code: str, numbers: Sequence[int]) -> str:
    return "".join(sentence(code, n) + "\n" for n in numbers)


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def moses(folder: Path, numbers: Sequence[int], codes: Sequence[str] = ("en", "fr")) -> Path:
    """OPUS: News.en-fr.en and News.en-fr.fr."""
    for code in codes:
        write(folder / f"News.{'-'.join(codes)}.{code}", lines(code, numbers))
    return folder


def tmx(file: Path, numbers: Sequence[int], head: str = "") -> Path:
    units = "".join(
        f'<tu><tuv xml:lang="EN"><seg>{sentence("en", n)}<ph>x</ph></seg></tuv>\n'
        f'<tuv xml:lang="FR-fr"><seg>{sentence("fr", n)}</seg></tuv></tu>\n'
        for n in numbers
    )
    return write(file, f'<?xml version="1.0"?>\n{head}<tmx><header/><body>\n{units}</body></tmx>\n')


def sgml(folder: Path, numbers: Sequence[int], side: str, code: str) -> Path:
    segments = "".join(f'<seg id="{n}">{sentence(code, n)} &amp; co</seg>\n' for n in numbers)
    text = f'<{side}set setid="t" srclang="any">\n<doc docid="d1">\n<p>\n{segments}</p></doc></x>\n'
    return write(folder / f"newstest2014-enfr-{side}.{code}.sgm", text)


def wmt_xml(file: Path, numbers: Sequence[int]) -> Path:
    part = lambda code: "".join(f'<seg id="{n}">{sentence(code, n)}</seg>' for n in numbers)
    return write(
        file,
        f'<dataset id="x"><doc id="d"><src lang="en"><p>{part("en")}</p></src>\n'
        f'<ref lang="fr" translator="A"><p>{part("fr")}</p></ref>\n'
        f'<hyp system="s"><p>{part("ru")}</p></hyp></doc></dataset>\n',
    )


def ted(file: Path, numbers: Sequence[int]) -> Path:
    rows = [
        f"talk_{n}\t{sentence('en', n)}\t{sentence('fr', n)}\t"
        + ("__NULL__" if n % 2 else sentence("ru", n))
        for n in numbers
    ]
    return write(file, "\n".join(["talk_name\ten\tfr\tru", *rows]) + "\n")


def flores(folder: Path, numbers: Sequence[int], part: str) -> Path:
    for tag, code in (("eng_Latn", "en"), ("fra_Latn", "fr"), ("rus_Cyrl", "ru")):
        write(folder / part / f"{tag}.{part}", lines(code, numbers))
    return folder


Pairs = list[tuple[str, str]]


@cache
def shipped() -> tuple[list[str], list[list[str]]]:
    """Codes and rows of the shipped corpus, which is real text."""
    file = importlib.resources.files("gradvac") / "assets" / "corpus" / "train.tsv.xz"
    header, *rows = lzma.decompress(file.read_bytes()).decode().splitlines()
    return header.split("\t"), [row.split("\t") for row in rows]


def pairs(code: str, first: int = 0, count: int | None = None) -> Pairs:
    header, rows = shipped()
    columns = header.index("en"), header.index(code)
    found = [(row[columns[0]], row[columns[1]]) for row in rows]
    return [(a, b) for a, b in found if a and b][first:][:count]
