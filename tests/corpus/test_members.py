"""Which file is text, of what kind and in which language."""

import pytest

from gradvac.corpus.members import Member, classify, language_of


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("de", "de"),
        ("de_DE.UTF-8", "de"),
        ("hi-IN", "hi"),
        ("pt_BR", "pt_BR"),
        ("pt-BR", "pt_BR"),
        ("C", "en"),
        ("nb_NO", "nb"),
        ("fr_CA", None),
        ("es_MX", None),
        ("en_GB", None),
        ("sr@latin", None),
        ("LC_MESSAGES", None),
        ("xyz", None),
    ],
)
def test_locale_names(tag: str, code: str | None) -> None:
    assert language_of(tag) == code


@pytest.mark.parametrize(
    ("path", "member"),
    [
        ("./usr/share/locale/de/LC_MESSAGES/gcc-11.mo", Member("catalogue", "gcc-11", "de")),
        (
            "usr/lib/libreoffice/program/resource/zu/LC_MESSAGES/sw.mo",
            Member("libreoffice", "sw", "zu"),
        ),
        (
            "usr/share/libreoffice/help/hi/text/swriter/main.html",
            Member("libreoffice-help", "text/swriter/main.html", "hi"),
        ),
        (
            "usr/lib/firefox-esr/browser/extensions/langpack-ne-NP@firefox-esr.mozilla.org.xpi",
            Member("mozilla", "firefox", "ne"),
        ),
        ("usr/lib/firefox-esr/browser/omni.ja", Member("mozilla-english", "firefox", "en")),
        ("usr/share/help/C/eog/index.page", Member("help", "eog/index.page", "en")),
        (
            "usr/share/mediawiki/languages/i18n/pt-br.json",
            Member("messages", "usr/share/mediawiki/languages/i18n", "pt_BR"),
        ),
        ("usr/share/locale/de@hebrew/LC_MESSAGES/x.mo", None),
        ("usr/share/doc/x/README", None),
    ],
)
def test_paths(path: str, member: Member | None) -> None:
    assert classify(path) == member
