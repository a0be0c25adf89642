"""The system's own apt: indexes, candidates and downloads, in our own folder.

Nothing is installed and no host is named here: apt uses its own configuration. Its lists and
caches are in our folder, so no privileges are needed and the system's lists do not change.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradvac.errors import CorpusError
from gradvac.reading import sha256_of
from gradvac.text.languages import ENGLISH

# Packages per call of apt-cache: a command line could hold far more, an error message could not.
_LOT = 500

_CONFIGURATION = """\
Dir::State::lists "{folder}/lists/";
Dir::State::status "/dev/null";
Dir::Cache "{folder}/cache/";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Debug::NoLocking "true";
Acquire::GzipIndexes "false";
#clear Acquire::Languages;
Acquire::Languages {{ {languages} }};
Acquire::IndexTargets::deb::Contents-deb {{
  MetaKey "$(COMPONENT)/Contents-$(ARCHITECTURE)";
  ShortDescription "Contents-$(ARCHITECTURE)";
  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Contents (deb)";
  flatMetaKey "Contents-$(ARCHITECTURE)";
  flatDescription "$(RELEASE) Contents (deb)";
  KeepCompressed "true";
  KeepCompressedAs "gz";
}};
"""


@dataclass(frozen=True, slots=True)
class Package:
    """A package apt would download: its candidate version, bytes and SHA-256."""

    name: str
    version: str
    size: int
    sha256: str
    source: str

    @property
    def key(self) -> str:
        """A file name for the results from exactly this package."""
        return f"{self.name}_{self.sha256[:16]}"


class Apt:
    """apt with its state in `folder`, description languages `languages` (`fr`, `pt_BR`).

    Raises:
        CorpusError: there is no apt-get, or it fails; the error has its message.
    """

    def __init__(self, folder: Path, languages: Sequence[str]) -> None:
        self.folder = folder.resolve()
        for part in ("lists/partial", "cache/archives/partial"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self._configuration = self.folder / "apt.conf"
        named = " ".join(f'"{code}";' for code in [ENGLISH, *languages])
        self._configuration.write_text(
            _CONFIGURATION.format(folder=self.folder, languages=named), encoding="utf-8"
        )

    def update(self) -> None:
        """Fetch the indexes: packages, their contents, their translated descriptions."""
        self._run(["apt-get", "update", "-qq"])

    def indexes(self, kind: str) -> list[tuple[Path, str]]:
        """Files of one kind (`Contents-deb`, `Translations`), and the language of each, if any."""
        told = self._run(
            ["apt-get", "indextargets", "--format", "$(CREATED_BY)|$(LANGUAGE)|$(FILENAME)"]
        )
        rows = (line.split("|", 2) for line in told.splitlines() if line.count("|") >= 2)
        return [(Path(file), language) for found, language, file in rows if found == kind]

    def candidates(self, names: Iterable[str]) -> dict[str, Package]:
        """The version apt would download of each package; unknown names are left out."""
        found: dict[str, Package] = {}
        wanted = sorted(set(names))
        for start in range(0, len(wanted), _LOT):
            lot = wanted[start : start + _LOT]
            told = self._run(["apt-cache", "show", "--no-all-versions", *lot], unknown_names=True)
            for stanza in told.split("\n\n"):
                fields = dict(_fields(stanza))
                if fields.keys() >= {"Package", "Version", "Size", "SHA256"}:
                    package = Package(
                        fields["Package"],
                        fields["Version"],
                        int(fields["Size"]),
                        fields["SHA256"].lower(),
                        fields.get("Source", fields["Package"]).split(" ")[0],
                    )
                    found.setdefault(package.name, package)
        return {name: found[name] for name in wanted if name in found}

    def download(self, packages: Sequence[Package], folder: Path) -> dict[str, Path]:
        """Download a group of packages into `folder`; name -> file, with the SHA-256 apt knows.

        Complete files in the folder are used; incomplete ones are downloaded again.
        """
        folder.mkdir(parents=True, exist_ok=True)
        have = _matching(packages, folder)
        missing = [p for p in packages if p.name not in have]
        if missing:
            names = [f"{p.name}={p.version}" for p in missing]
            self._run(["apt-get", "download", "-qq", *names], cwd=folder)
            have |= _matching(missing, folder)
        for package in packages:
            if package.name not in have:
                raise CorpusError(
                    f"{package.name}: what apt downloaded has not the SHA-256 of its index, "
                    f"{package.sha256}; run again, after `apt-get update` if it goes on"
                )
        return have

    def _run(self, command: list[str], cwd: Path | None = None, unknown_names: bool = False) -> str:
        # -c is read after the system's own configuration, APT_CONFIG before it.
        full = [command[0], "-c", str(self._configuration), *command[1:]]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        try:
            done = subprocess.run(
                full, cwd=cwd, env=environment, capture_output=True, text=True, errors="replace"
            )
        except OSError as error:
            raise CorpusError(
                f"{command[0]}: cannot be run ({error.strerror}): a system with apt is needed"
            ) from error
        # apt-cache returns 100 if some names are not packages, and still shows the others.
        if done.returncode and not (unknown_names and done.returncode == 100):
            told = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            raise CorpusError(
                f"{' '.join(command[:2])} exited with {done.returncode}: "
                f"{'; '.join(told) or done.stderr.strip()[-500:]}"
            )
        return done.stdout


def _matching(packages: Sequence[Package], folder: Path) -> dict[str, Path]:
    """Those of the packages whose complete file is in `folder`; damaged files are removed."""
    found: dict[str, Path] = {}
    by_name = {package.name: package for package in packages}
    for file in sorted(folder.glob("*.deb")):
        package = by_name.get(file.name.split("_")[0])
        if package is None:
            continue
        if file.stat().st_size == package.size and sha256_of(file) == package.sha256:
            found[package.name] = file
        else:
            file.unlink()
    return found


def _fields(stanza: str) -> Iterator[tuple[str, str]]:
    """The one-line fields of a stanza of a control file."""
    for line in stanza.splitlines():
        name, colon, value = line.partition(":")
        if colon and not name.startswith((" ", "\t")):
            yield name, value.strip()
