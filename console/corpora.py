"""Where the demo's real text comes from: the translation catalogues that two PyPI packages ship.

They are read where pip put them, and cleaned text is written into a working directory; none of it is part of
this project. Each language gets a public file, the same for everybody, and a private one, for the one site
that "owns" the language::

    public/fi.jsonl    django's messages and a share of gramps's
    private/fi.jsonl   the rest of gramps's
    LICENCES.txt       what the texts are and under which terms

A line is a document: ``{"id": ..., "source": "gramps", "text": ...}``. The catalogues are translations of
each other and full of templates ("Matches people with ...", "Matches families with ..."). So the id comes
from the English message, the same in every language that is written at once; messages that differ in a word
or two share one document; and a document is public or private in all languages. Whoever splits by id keeps
copies of one sentence on one side.
"""

import gettext
import hashlib
import html
import importlib.metadata
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from consortium.canonical import Fact
from consortium.errors import BadInput, Unavailable
from consortium.files import write_bytes_atomically
from consortium.ids import Language

DEMO_LANGUAGES = tuple(Language(code) for code in ("bg", "cs", "da", "el", "fi", "ga", "hu", "nl"))
PUBLIC_SHARE = 0.25  # of gramps's documents; with django, the public text is about half of the private

# Of the packages' metadata and licence files, checked by hand for django 5.2 and gramps 6.0.
LICENCES = {"django": "BSD-3-Clause", "gramps": "GPL-2.0-or-later"}
_CATALOGUES = {"django": "django.mo", "gramps": "gramps.mo"}
_FOLDERS = {Language("no"): "nb"}  # gettext's names for our tags, where they differ

_TAG = re.compile(r"</?(?:a|b|big|br|code|em|i|li|p|small|span|strong|tt|u|ul)\b[^<>]*>", re.IGNORECASE)
# What makes a message a template or a technicality: placeholders, escapes, addresses, several mnemonics.
_UNFIT = re.compile(r"%[-+#0 ]*[\d.]*[(a-zA-Z%]|[{}\\@]|://|_.*_")
_CHARACTERS_MIN, _WORDS_MIN = 30, 5
_ALIKE = 0.5  # shared three-word runs (Jaccard) from which two English messages are one document


class LanguageCorpus(Fact):
    """What was written for one language; bytes are UTF-8 bytes of text."""

    language: Language
    public_documents: int
    public_bytes: int
    private_documents: int
    private_bytes: int


class TextSource(Fact):
    """A package that was read."""

    package: str
    version: str
    licence: str


class CorporaReport(Fact):
    """What ``write_corpora`` wrote; languages are sorted."""

    directory: str
    languages: tuple[LanguageCorpus, ...]
    sources: tuple[TextSource, ...]


def write_corpora(
    directory: Path, languages: Iterable[Language] = DEMO_LANGUAGES, public_share: float = PUBLIC_SHARE
) -> CorporaReport:
    """Write the public and the private text of ``languages`` under ``directory``; the same bytes every time.

    public_share  share of gramps's documents that is public, 0 to 1
    Raises Unavailable when a package is not installed, BadInput for a language that one of them lacks.
    """
    wanted = sorted(set(languages))
    catalogues = {package: {code: _messages(package, code) for code in wanted} for package in _CATALOGUES}
    keys = {
        package: {key for messages in by_language.values() for key in messages}
        for package, by_language in catalogues.items()
    }
    leader = _families(keys["django"] | keys["gramps"])
    public = {leader[key] for key in keys["django"]}
    public |= {key for key in leader.values() if _fraction(f"public/{key}") < public_share}

    rows = []
    for code in wanted:
        documents = _documents([(package, catalogues[package][code]) for package in _CATALOGUES], leader)
        sides = {
            "public": [line for key, line in documents if key in public],
            "private": [line for key, line in documents if key not in public],
        }
        for side, lines in sides.items():
            data = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
            write_bytes_atomically(directory / side / f"{code}.jsonl", data.encode())
        sizes = {side: sum(len(line["text"].encode()) for line in lines) for side, lines in sides.items()}
        rows.append(
            LanguageCorpus(
                language=code,
                public_documents=len(sides["public"]),
                public_bytes=sizes["public"],
                private_documents=len(sides["private"]),
                private_bytes=sizes["private"],
            )
        )
    sources = tuple(
        TextSource(package=package, version=_distribution(package).version, licence=LICENCES[package])
        for package in _CATALOGUES
    )
    write_bytes_atomically(directory / "LICENCES.txt", _licences(sources).encode())
    return CorporaReport(directory=str(directory), languages=tuple(rows), sources=sources)


def _distribution(package: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(
            f"the demo reads its text from the package {package!r}, which is not installed; "
            "run: pip install 'sprachbund[demo]'"
        ) from None


def _messages(package: str, code: Language) -> dict[str, str]:
    """Clean English -> clean translation, of every message of one package that is running text."""
    distribution = _distribution(package)
    available: dict[str, list[str]] = defaultdict(list)
    for file in distribution.files or ():
        if file.name == _CATALOGUES[package] and len(file.parts) > 3 and file.parts[-2] == "LC_MESSAGES":
            available[file.parts[-3]].append(str(file))
    folder = _FOLDERS.get(code, code)
    if folder not in available:
        raise BadInput(
            f"language {code!r}: {package} {distribution.version} has no text in it; "
            f"it has {', '.join(sorted(available)) or 'no catalogues at all'}"
        )
    messages: dict[str, str] = {}
    for name in sorted(available[folder]):
        for english, translation in _entries(Path(str(distribution.locate_file(name)))):
            key, text = _clean(english), _clean(translation)
            if (
                _is_text(text)
                and len(key.split()) >= 2
                and text != key
                and not _UNFIT.search(key + " " + text)
            ):
                messages.setdefault(key.replace("_", ""), text.replace("_", ""))
    return messages


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    """Singular messages with their translations, sorted; without the header, which names translators."""
    try:
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"{path}: {error}; run: pip install --force-reinstall 'sprachbund[demo]'"
        ) from error
    entries: dict[str | tuple[str, int], str] = vars(catalogue)["_catalog"]  # it has no public iterator
    yield from sorted((key, text) for key, text in entries.items() if isinstance(key, str) and key)


def _clean(message: str) -> str:
    """One line of text, without gettext's context, tags, entities and the brackets of ``<a variable>``."""
    text = html.unescape(_TAG.sub(" ", message.rpartition("\x04")[2]))
    return " ".join(text.replace("<", " ").replace(">", " ").split())


def _is_text(text: str) -> bool:
    return len(text) >= _CHARACTERS_MIN and len(text.split()) >= _WORDS_MIN


def _families(keys: set[str]) -> dict[str, str]:
    """Each message's leader: the first message, in sorted order, that it nearly copies; often itself."""
    runs_of: dict[str, set[tuple[str, ...]]] = {}
    leaders_with: dict[tuple[str, ...], list[str]] = defaultdict(list)
    leader: dict[str, str] = {}
    for key in sorted(keys):
        words = re.findall(r"\w+", key.lower())
        runs = {tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))}
        shared = Counter(other for run in sorted(runs) for other in leaders_with[run])
        alike = [
            other
            for other, count in shared.items()
            if count >= _ALIKE * (len(runs) + len(runs_of[other]) - count)
        ]
        leader[key] = min(alike, default=key)
        if leader[key] == key:
            runs_of[key] = runs
            for run in runs:
                leaders_with[run].append(key)
    return leader


def _documents(
    sources: Sequence[tuple[str, dict[str, str]]], leader: dict[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """One language's documents with their leaders, sorted by id; no text occurs twice in a language."""
    seen: set[str] = set()
    texts: dict[str, list[str]] = defaultdict(list)
    packages: dict[str, list[str]] = defaultdict(list)
    for package, messages in sources:
        for key, text in sorted(messages.items()):
            if text not in seen:
                seen.add(text)
                texts[leader[key]].append(text)
                packages[leader[key]].append(package)
    documents = []
    for key, lines in texts.items():
        identity = hashlib.sha256(key.encode()).hexdigest()[:16]
        source = "+".join(sorted(set(packages[key])))
        documents.append((key, {"id": identity, "source": source, "text": "\n".join(lines)}))
    return sorted(documents, key=lambda document: document[1]["id"])


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on nothing but ``text``."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def _licences(sources: Sequence[TextSource]) -> str:
    lines = ["The texts in public/ and private/ are translations of messages, taken from these packages:", ""]
    lines += [f"  {source.package} {source.version}  {source.licence}" for source in sources]
    lines += [
        "",
        "Each line names its source. Cleaned by Sprachbund: tags removed, short messages left out.",
        "",
    ]
    return "\n".join(lines)
