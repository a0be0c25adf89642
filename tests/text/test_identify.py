"""Off-target rates on sentences whose language is known."""

import lzma
import sys
from importlib.resources import files

import pytest

from gradvac.errors import RunError
from gradvac.text.identify import Identifier, OffTarget

PAPER = "fr es de pl cs mk bg uk be ru lv lt et fi hi mr gu ne kk ky sw zu xh id ms en".split()
FRENCH = ["Ouvrez le fichier que vous avez enregistré.", "Le document ne peut être imprimé."]
GERMAN = ["Öffnen Sie die Datei, die Sie gespeichert haben.", "Das Dokument ist nicht druckbar."]


def test_it_knows_the_languages_of_the_paper_and_says_which_it_does_not():
    assert Identifier(PAPER).unknown == ()
    assert Identifier([*PAPER, "hsb", "pt_BR", "nb"]).unknown == ("hsb",)


def test_rates_by_hand():
    found = Identifier(["fr", "de", "en"])
    assert found.off_target(FRENCH, FRENCH, "fr") == OffTarget(0, 0)
    assert found.off_target([FRENCH[0], GERMAN[1]], FRENCH, "fr") == OffTarget(50, 0)
    # A reference in another language is the identifier's error as far as it can know.
    assert found.off_target(FRENCH, [FRENCH[0], GERMAN[1]], "fr") == OffTarget(0, 50)
    # No letters: a translation of nothing is off target, a reference of nothing does not count.
    assert found.off_target(["...", "42"], [FRENCH[0], "42"], "fr") == OffTarget(100, 0)
    assert found.off_target(["42"], ["42"], "fr") is None


def test_no_rate_for_a_language_it_does_not_know():
    assert Identifier(["hsb", "de"]).off_target(["Dobry dźeń"], ["Dobry dźeń"], "hsb") is None


def test_regions_and_norwegian():
    found = Identifier(["pt_BR", "nb", "en"])
    portuguese = ["Abra o arquivo que você salvou na pasta.", "Não foi possível abrir a página."]
    norwegian = ["Åpne filen som du har lagret i mappen.", "Det er ikke mulig å åpne siden."]
    assert found.off_target(portuguese, portuguese, "pt_BR") == OffTarget(0, 0)
    assert found.off_target(norwegian, portuguese, "nb") == OffTarget(0, 100)


def test_it_errs_little_on_the_shipped_test_set():
    """Every string of the corpus is labelled; most are short."""
    path = files("gradvac") / "assets" / "corpus" / "test.tsv.xz"
    header, *rows = lzma.decompress(path.read_bytes()).decode().splitlines()
    codes = header.split("\t")
    found = Identifier(codes)
    for n, code in enumerate(codes):
        texts = [cells[n] for row in rows if len(cells := row.split("\t")) > n and cells[n]]
        rates = found.off_target(texts, texts, code)
        assert rates is not None and rates.of_references == rates.rate < 10, code


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(RunError, match=r"needs py3langid: pip install 'gradvac\[langid\]'"):
        Identifier(["fr"])
