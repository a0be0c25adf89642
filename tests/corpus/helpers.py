"""Packages, catalogues and a fake apt, written byte by byte."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import polib


def mo(messages: Mapping[str, str], charset: str = "UTF-8") -> bytes:
    """A compiled catalogue, as polib writes it."""
    catalogue = polib.MOFile()
    catalogue.metadata = {"Content-Type": f"text/plain; charset={charset}"}
    for english, translation in messages.items():
        catalogue.append(polib.MOEntry(msgid=english, msgstr=translation))
    return catalogue.to_binary()


def xpi(files: Mapping[str, str]) -> bytes:
    """A zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return out.getvalue()


def ar(members: Mapping[str, bytes]) -> bytes:
    """An ar archive of these members."""
    out = b"!<arch>\n"
    for name, data in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        out += header.encode("ascii") + data + b"\n" * (len(data) % 2)
    return out


def deb(
    files: Mapping[str, bytes], compression: str = "xz", links: Mapping[str, str] | None = None
) -> bytes:
    """A Debian package of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    suffix = f".{compression}" if compression else ""
    return ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.gz": b"not looked at",
            f"data.tar{suffix}": out.getvalue(),
        }
    )


_APT = """\
#!{python} -IS
import json, shutil, sys
from pathlib import Path

archive = Path({archive!r})
packages = json.loads((archive / "packages.json").read_text())
command = Path(sys.argv[0]).name
arguments = sys.argv[3:]  # after -c FILE
with (archive / "log").open("a") as log:
    print(command, *arguments, file=log)
if command == "apt-get" and arguments[0] == "indextargets":
    if (archive / "updated").exists():
        print(f"Contents-deb|$(LANGUAGE)|{{archive / 'Contents'}}")
        for file in sorted(archive.glob("Translation-*")):
            print(f"Translations|{{file.name[12:]}}|{{file}}")
elif command == "apt-get" and arguments[0] == "update":
    (archive / "updated").touch()
elif command == "apt-cache":
    for name in arguments[2:]:
        if name in packages:
            told = packages[name]
            print(f"Package: {{name}}\\nVersion: {{told['version']}}\\nSize: {{told['size']}}")
            print(f"SHA256: {{told['sha256']}}\\nDescription: none\\n")
elif command == "apt-get" and arguments[0] == "download":
    for name in arguments[2:]:
        name = name.split("=")[0]
        shutil.copy(archive / f"{{name}}.deb", f"{{name}}_1.0_all.deb")
"""


def fake_apt(folder: Path, packages: Mapping[str, Mapping[str, bytes]]) -> Path:
    """A folder for PATH with an apt-get and apt-cache that know these packages."""
    archive, programs = folder / "archive", folder / "bin"
    archive.mkdir()
    programs.mkdir()
    index, contents = {}, []
    for name, files in packages.items():
        data = deb(files)
        (archive / f"{name}.deb").write_bytes(data)
        index[name] = {
            "version": "1.0",
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        contents += [f"{path}  misc/{name}" for path in files]
    (archive / "packages.json").write_text(json.dumps(index))
    (archive / "Contents").write_text("\n".join(contents) + "\n")
    for name in ("apt-get", "apt-cache"):
        program = programs / name
        program.write_text(_APT.format(python=sys.executable, archive=str(archive)))
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    return programs
