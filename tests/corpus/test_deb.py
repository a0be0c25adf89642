"""Packages are read in this process, and damaged ones are named."""

from pathlib import Path

import pytest

from gradvac.corpus.deb import read_deb
from gradvac.errors import CorpusError
from tests.corpus.helpers import ar, deb

FILES = {"./usr/share/a.mo": b"one", "./usr/share/b.txt": b"two" * 5000}


def everything(path: str) -> bool:
    return True


@pytest.mark.parametrize("compression", ["xz", "gz", "bz2", ""])
def test_wanted_files_of_each_compression(tmp_path: Path, compression: str) -> None:
    file = tmp_path / "x.deb"
    file.write_bytes(deb(FILES, compression))
    assert dict(read_deb(file, everything)) == {p[2:]: data for p, data in FILES.items()}
    assert dict(read_deb(file, lambda path: path.endswith(".mo"))) == {"usr/share/a.mo": b"one"}


def test_links_and_paths_that_climb_never_reach_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "x.deb"
    file.write_bytes(deb({"../../evil.mo": b"x"}, links={"./usr/link.mo": "/etc/passwd"}))
    before = set(tmp_path.rglob("*"))
    assert dict(read_deb(file, everything)) == {"../../evil.mo": b"x"}
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_package_is_named(tmp_path: Path, share: float) -> None:
    file = tmp_path / "x.deb"
    data = deb(FILES)
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CorpusError, match=r"x\.deb: .*(truncated or damaged|damaged)"):
        list(read_deb(file, everything))


def test_what_is_no_package_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.deb"
    file.write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(CorpusError, match="byte 0: not a Debian package"):
        list(read_deb(file, everything))
    file.write_bytes(ar({"debian-binary": b"2.0\n", "data.tar.zst": b"(zstd)"}))
    with pytest.raises(CorpusError, match="compressed with zstd"):
        list(read_deb(file, everything))
