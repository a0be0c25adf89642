"""Read MPL-2.0 Debian packages into `{key: text}` tables whose keys agree between languages.

Three kinds of package are read, straight from the `.deb`, without installing anything:

* `libreoffice-help-XX`: HTML help, a paragraph carries the same id in every language;
* `libreoffice-l10n-XX`: gettext `.mo` catalogues, keyed by the English text itself;
* `firefox-esr*`, `thunderbird*`: Fluent and `.properties` files in `.xpi` and `omni.ja` archives.
"""

import hashlib
import json
import re
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gradvac.text.program_files import read_fluent, read_help_page, read_jar, read_properties

# Archives are asked of the mirror in small lots: a mirror should not see 50 requests at once, and
# the disk holds one lot of .deb files at a time.
DOWNLOAD_LOT = 10


@dataclass(frozen=True)
class Language:
    """One language of the corpus: how Debian names it in each of the three projects."""

    code: str
    name: str
    family: str
    libreoffice: str = ""
    mozilla: str = ""

    def packages(self) -> list[str]:
        """Names of the packages to look for, best text first; not all of them need exist."""
        libreoffice, mozilla = self.libreoffice or self.code, self.mozilla or self.code
        return [
            f"libreoffice-help-{libreoffice}",
            f"libreoffice-l10n-{libreoffice}",
            f"firefox-esr-l10n-{mozilla}",
            f"thunderbird-l10n-{mozilla}",
        ]


LANGUAGES = (
    Language("fr", "French", "Romance"),
    Language("es", "Spanish", "Romance", mozilla="es-es"),
    Language("de", "German", "Germanic"),
    Language("cs", "Czech", "Slavic"),
    Language("ru", "Russian", "Slavic"),
    Language("fi", "Finnish", "Uralic"),
    Language("tr", "Turkish", "Turkic"),
    Language("kk", "Kazakh", "Turkic"),
    Language("id", "Indonesian", "Austronesian"),
    Language("hi", "Hindi", "Indo-Aryan", mozilla="hi-in"),
    Language("ne", "Nepali", "Indo-Aryan", mozilla="ne-np"),
    Language("xh", "Xhosa", "Benue-Congo"),
)

# Where the English side of each project's translations lives; LibreOffice's interface needs none.
ENGLISH_PACKAGE = {
    "libreoffice-help": "libreoffice-help-en-us",
    "firefox-esr": "firefox-esr",
    "thunderbird": "thunderbird",
}


def project_of(package: str) -> str:
    """`firefox-esr-l10n-de` and `firefox-esr` both belong to `firefox-esr`."""
    projects = ("libreoffice-help", "libreoffice-l10n", "firefox-esr", "thunderbird")
    return next(project for project in projects if package.startswith(project))


def read_mo(data: bytes) -> dict[str, str]:
    """English -> translation of a little-endian gettext catalogue; contexts are dropped.

    Of plural messages the first form on each side is kept.
    """
    magic, _, count, originals, translations = struct.unpack_from("<5I", data)
    if magic != 0x950412DE:
        raise ValueError(f"not a little-endian .mo file: magic {magic:#x}")

    def message(table: int, index: int) -> str:
        length, start = struct.unpack_from("<2I", data, table + 8 * index)
        return data[start : start + length].decode("utf-8")

    found: dict[str, str] = {}
    for index in range(count):
        english = message(originals, index).split("\x04")[-1].split("\0")[0]
        if english:
            found.setdefault(english, message(translations, index).split("\0")[0])
    return found


def read_package(deb: Path) -> dict[str, str]:
    """Key -> raw text of everything translatable in one package."""
    found: dict[str, str] = {}
    for path, data in _files(deb):
        if path.endswith(".mo"):
            for english, translation in read_mo(data).items():
                found.setdefault(english, translation)
        elif path.endswith(".html") and "/text/" in path:
            page = path.split("/text/", 1)[1]
            for paragraph, text in read_help_page(data.decode("utf-8", "replace")).items():
                found[f"{page}|{paragraph}"] = text
        elif path.endswith((".xpi", "omni.ja")):
            for name, body in read_jar(data):
                # `browser/chrome/de/locale/de/x/y.properties` and its en-US twin -> `x/y...`
                resource = re.sub(r"^.*/(?:locale|localization)/[A-Za-z-]+/", "", name)
                read = read_fluent if name.endswith(".ftl") else read_properties
                for key, text in read(body.decode("utf-8", "replace")).items():
                    found.setdefault(f"{resource}|{key}", text)
    return found


def _files(deb: Path) -> Iterator[tuple[str, bytes]]:
    wanted = (".mo", ".html", ".xpi", "omni.ja")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(wanted):
                    body = archive.extractfile(member)
                    assert body is not None
                    yield member.name, body.read()
        if process.stdout is not None:
            process.stdout.read()
    if process.returncode:
        raise ValueError(f"{deb}: dpkg-deb exited with {process.returncode}")


def _extract(deb: Path, cache: Path) -> None:
    package, version = deb.name.split("_")[:2]
    record = {
        "package": package,
        "version": version.replace("%3a", ":"),
        "sha256": hashlib.sha256(deb.read_bytes()).hexdigest(),
        "texts": read_package(deb),
    }
    unfinished = cache / f"{package}.partial"
    unfinished.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    unfinished.rename(cache / f"{package}.json")
    deb.unlink()


def fetch(languages: list[Language], cache: Path) -> dict[str, dict[str, object]]:
    """Package name -> its record, downloading and reading what the cache does not hold yet.

    Raises `subprocess.CalledProcessError` if apt cannot download a package it lists.
    """
    debs = cache / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    listed = subprocess.run(["apt-cache", "pkgnames"], capture_output=True, text=True, check=True)
    available = set(listed.stdout.split())
    wanted = [*ENGLISH_PACKAGE.values(), *(p for one in languages for p in one.packages())]
    wanted = [package for package in wanted if package in available]
    missing = [package for package in wanted if not (cache / f"{package}.json").exists()]
    here = {deb.name.split("_")[0] for deb in debs.glob("*.deb")}
    to_download = [package for package in missing if package not in here]
    with ProcessPoolExecutor(2) as pool:
        for start in range(0, max(1, len(to_download)), DOWNLOAD_LOT):
            lot = to_download[start : start + DOWNLOAD_LOT]
            if lot:
                subprocess.run(["apt-get", "download", "-qq", *lot], cwd=debs, check=True)
            ready = [deb for deb in debs.glob("*.deb") if deb.name.split("_")[0] in missing]
            list(pool.map(_extract, ready, [cache] * len(ready)))
    return {
        package: json.loads((cache / f"{package}.json").read_text(encoding="utf-8"))
        for package in wanted
    }
