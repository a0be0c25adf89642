"""How close languages are: our distances against the typological package's own."""

import logging
import sys

import numpy as np
import pytest

from gradvac.experiment.view import proximity
from gradvac.experiment.view.proximity import (
    DISTANCES,
    SHARED,
    angular_distances,
    families,
    typological_distances,
)


def test_languages_outside_the_table_share_no_family() -> None:
    assert families(["fr", "de", "cs", "qqa", "qqb"]) == [
        "Western European",
        "Western European",
        "West Slavic",
        "qqa",
        "qqb",
    ]


def test_the_angle_counts_only_features_known_of_both() -> None:
    random = np.random.default_rng(0)
    x = random.integers(-1, 2, size=(3, 90)).astype(float)
    x[2, SHARED - 1 :] = -1  # too little is known of it
    found = angular_distances(x)
    both = (x[0] >= 0) & (x[1] >= 0)
    a, b = x[0, both], x[1, both]
    angle = np.arccos(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    assert found[0, 1] == found[1, 0] == pytest.approx(2 * angle / np.pi, abs=1e-12)
    assert np.isnan(found[2]).all()


@pytest.fixture
def uriel():
    pytest.importorskip("urielplus", reason="the extra typology is not installed")
    handlers = logging.getLogger().handlers[:]
    found = typological_distances(("fr", "es", "hi", "pt_BR", "qq"))
    assert logging.getLogger().handlers == handlers
    assert not isinstance(found, str)
    return found


def test_distances_are_those_of_the_package(uriel) -> None:
    from urielplus.urielplus import URIELPlus

    peer = URIELPlus()
    assert set(uriel) == set(DISTANCES)
    for kind in ("syntactic", "geographic"):
        # It computes in float32 and rounds.
        own = peer.new_distance(kind, ["fra", "spa", "hin", "por"])
        assert uriel[kind][:4, :4] == pytest.approx(np.asarray(own), abs=4e-4)
    assert uriel["genetic"][0, 1] == pytest.approx(
        peer.new_distance("genetic", "fra", "spa"), abs=4e-4
    )
    assert np.isnan(uriel["syntactic"][4]).all()


def test_without_the_extra_it_is_said(monkeypatch) -> None:
    monkeypatch.setattr(proximity, "_uriel", proximity._uriel.__wrapped__)
    monkeypatch.setitem(sys.modules, "urielplus.urielplus", None)
    found = typological_distances.__wrapped__(("fr", "sw"))  # past its cache
    assert isinstance(found, str)
    assert "gradvac[typology]" in found
