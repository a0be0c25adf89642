"""BLEU's tokenizers: sacreBLEU's own offline, any SentencePiece model by its path."""

import hashlib
import random
import shutil
import urllib.error
import urllib.request
from importlib.resources import files

import pytest
import sacrebleu
import sentencepiece
from sacrebleu.tokenizers import tokenizer_spm

from gradvac.errors import RecipeError
from gradvac.translation.scoring import score
from gradvac.translation.significance import paired_test
from gradvac.translation.tokenizers import bleu_metric, check_tokenizer

MODEL = files("gradvac") / "assets" / "start" / "vocabulary.model"
WORDS = "Öffnen Sie die Datei und speichern Tabelle in einem neuen Fenster".split()
REFERENCES = [" ".join(random.Random(n).choices(WORDS, k=7)) for n in range(30)]


def spoilt(rate):
    rng = random.Random(rate)
    return [
        " ".join(rng.choice(WORDS) if rng.random() < rate else w for w in r.split())
        for r in REFERENCES
    ]


def test_pieces_of_a_model_are_the_words_of_bleu():
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    cut = lambda lines: [" ".join(pieces.encode(line, out_type=str)) for line in lines]
    expected = sacrebleu.corpus_bleu(cut(spoilt(0.3)), [cut(REFERENCES)], tokenize="none")
    found = score(spoilt(0.3), REFERENCES, f"spm:{MODEL}")
    assert found.bleu == pytest.approx(expected.score)
    assert found.bleu != score(spoilt(0.3), REFERENCES).bleu
    sha = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert f"|tok:spm-{sha[:8]}|" in found.bleu_signature


def test_paired_tests_use_the_same_pieces():
    by = {
        kind: paired_test(spoilt(0.34), spoilt(0.3), REFERENCES, samples=400, tokenize=kind)
        for kind in ("13a", "char", f"spm:{MODEL}")
    }
    assert len({p["bleu"] for p in by.values()}) == 3
    assert len({p["chrf"] for p in by.values()}) == 1


def test_flores_is_taken_from_where_sacrebleu_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))

    def offline(url):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    place = tmp_path / "models" / "flores200sacrebleuspm"
    with pytest.raises(RecipeError, match=rf"no network.*Put the file at {place}, .*spm:PATH"):
        bleu_metric("flores200")
    shutil.copy(MODEL, place)
    assert "tok:flores200" in str(score(REFERENCES, REFERENCES, "flores200").bleu_signature)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"spm:.*/none: cannot be read: No such file"):
        bleu_metric(f"spm:{tmp_path / 'none'}")
    (tmp_path / "text").write_text("words")
    with pytest.raises(RecipeError, match="text: not a SentencePiece model"):
        bleu_metric(f"spm:{tmp_path / 'text'}")
    with pytest.raises(ValueError, match="did you mean 'flores200'"):
        check_tokenizer("flores-200")
    assert check_tokenizer("spm:vocabulary") == "spm:vocabulary"
