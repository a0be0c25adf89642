"""Tags of several languages made one set of labels."""

import pytest

from gradvac.errors import CorpusError, RecipeError
from gradvac.tagging.labels import UPOS, check_labels, common_labels, iob2, renamed
from gradvac.tagging.readers import Tagged


def sentence(*tags):
    return Tagged(tuple(f"w{n}" for n in range(len(tags))), tags, "a.txt:7")


def test_upos_has_the_17_tags_of_universal_dependencies():
    assert len(set(UPOS)) == 17


def test_iob2():
    assert iob2(["PER", "LOC"]) == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def test_tags_are_renamed_and_the_rest_becomes_nothing():
    names = {"PERSON": "PER", "*": "O"}
    found = renamed([sentence("B-PERSON", "I-PERSON", "O", "B-ART", "I-ART")], names)
    assert found[0].tags == ("B-PER", "I-PER", "O", "O", "O")
    assert renamed([sentence("NOUN", "X")], {"X": "SYM"})[0].tags == ("NOUN", "SYM")
    assert renamed([sentence("B-PER")], {"X": "Y"})[0].tags == ("B-PER",)


def test_an_unknown_tag_is_located_with_the_nearest_label():
    with pytest.raises(CorpusError, match=r"^a.txt:7: word 2 .*'w1', has tag 'NOUNN'.*'NOUN'\?$"):
        check_labels([sentence("VERB", "NOUNN")], ["NOUN", "VERB"])


def test_languages_with_different_tags_are_refused_with_what_each_lacks():
    with pytest.raises(RecipeError) as error:
        common_labels({"de": [sentence("O", "B-PER")], "fr": [sentence("O", "B-LOC")]})
    lines = str(error.value).splitlines()
    assert lines[-2:] == ["  de has no B-LOC", "  fr has no B-PER"]
    assert common_labels({"de": [sentence("VERB", "O")], "fr": [sentence("O", "VERB")]}) == [
        "O",
        "VERB",
    ]
