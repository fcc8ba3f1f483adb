"""Whether a site's manifest still says the truth about its files."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from consortium.canonical import Fact
from consortium.errors import BadInput, Corrupt, SprachbundError, Unavailable
from consortium.files import disk_errors
from consortium.ids import Language
from site_agent.config import SiteConfig, prepared_text
from site_agent.data.contents import Survey, plan_of, remembered_surveys
from site_agent.data.manifest import file_entries, manifest_of, read_manifest
from site_agent.data.pool import Tell
from site_agent.data.segments import Split
from site_agent.holdings import by_language, surveys_of

_PREPARE = "run `sprachbund data prepare` again"


class Verified(Fact):
    """One thing that was looked at."""

    name: str
    is_good: bool
    detail: str
    way_out: str = ""  #: what to do, if it is not good
    exit_code: int = 0  #: of the kind of error it is; see consortium/errors.py


def verify(
    config: SiteConfig,
    digests: bool = True,
    text: bool = False,
    processes: int = 1,
    tell: Tell | None = None,
) -> list[Verified]:
    """The manifest against the text and the packed files: sizes and times of change always.

    digests  read the packed files and compare their sha256
    text     read all text again and compare its digests, by ``processes`` at once; it takes as long as the
             first time, less the tokenizer
    A site without text has nothing to verify; one without a manifest has one failure.
    """
    if not config.text:
        return []
    try:
        document = read_manifest(config)
        split = Split(heldout_share=document["sb:heldoutShare"], seed=document["sb:splitSeed"])
    except (SprachbundError, KeyError) as error:
        code = error.exit_code if isinstance(error, SprachbundError) else Corrupt.exit_code
        return [Verified(name="manifest", is_good=False, detail=str(error), way_out=_PREPARE, exit_code=code)]
    found = [_config(config, document, split), *_texts(config, document, split)]
    found += _files(config, document, digests)
    if text:
        found += _read_again(config, document, split, processes, tell)
    return found


def _config(config: SiteConfig, document: dict[str, Any], split: Split) -> Verified:
    if config.heldout_share != split.heldout_share:
        said = (
            f"`heldout_share` is {config.heldout_share:g}, the manifest was made with {split.heldout_share:g}"
        )
        return _bad("manifest", said, BadInput)
    try:
        if manifest_of(config, split) == document:
            return Verified(name="manifest", is_good=True, detail="is what text and config give today")
    except SprachbundError as error:
        return _bad("manifest", str(error), type(error))
    return _bad("manifest", "text, config or prepared files give another one today", Unavailable)


def _texts(config: SiteConfig, document: dict[str, Any], split: Split) -> Iterator[Verified]:
    for language, sources in by_language(config.text).items():
        name = f"text {language}"
        try:
            known = remembered_surveys(plan_of(sources, None, split, prepared_text(config)))
        except SprachbundError as error:
            yield _bad(name, str(error), type(error))
            continue
        if known is None:
            yield _bad(name, "files were added, changed or taken away since", Unavailable)
        else:
            yield _compared(name, document, language, known, "no file changed since")


def _compared(
    name: str, document: dict[str, Any], language: Language, surveys: Sequence[Survey], good: str
) -> Verified:
    said = {
        entry.get("name"): entry.get("sb:digest")
        for entry in document["sb:holding"]
        if entry.get("inLanguage") == language
    }
    found = {f"{language}.{one.holding.access}": one.holding.digest for one in surveys}
    if said != found:
        return _bad(name, "the documents are not those of the manifest", Corrupt)
    documents = sum(one.holding.documents for one in surveys)
    return Verified(name=name, is_good=True, detail=f"{good}; {documents:,} documents")


def _files(config: SiteConfig, document: dict[str, Any], digests: bool) -> Iterator[Verified]:
    folders: dict[str, list[dict[str, Any]]] = {}
    for entry in file_entries(document):
        folders.setdefault(str(Path(str(entry.get("contentUrl"))).parent), []).append(entry)
    for folder, entries in sorted(folders.items()):
        name = f"tokens {Path(folder).name.partition('-')[0]}"
        try:
            size = sum(_file(config, entry, digests) for entry in entries)
        except SprachbundError as error:
            way_out = f"remove {prepared_text(config).parent / folder}, then {_PREPARE}"
            yield Verified(
                name=name, is_good=False, detail=str(error), way_out=way_out, exit_code=error.exit_code
            )
        else:
            looked = "digests" if digests else "sizes"
            yield Verified(name=name, is_good=True, detail=f"{looked} of {size / 1e6:,.1f} MB are right")


def _file(config: SiteConfig, entry: dict[str, Any], digests: bool) -> int:
    """The size of a file that is what the manifest says. Raises Corrupt if it is not, Unavailable if not there."""
    path = (prepared_text(config).parent / str(entry.get("contentUrl"))).resolve()
    if not path.is_relative_to(prepared_text(config).resolve()):
        raise Corrupt(f"{path}: the manifest names a file that is not below {prepared_text(config)}")
    with disk_errors(path):
        size = path.stat().st_size
        if f"{size} B" != entry.get("contentSize"):
            raise Corrupt(f"{path}: has {size} bytes, the manifest says {entry.get('contentSize')}")
        if digests:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry.get("sha256"):
                raise Corrupt(f"{path}: is not the file that the manifest names; its sha256 is {digest}")
    return size


def _read_again(
    config: SiteConfig, document: dict[str, Any], split: Split, processes: int, tell: Tell | None
) -> Iterator[Verified]:
    again = prepared_text(config) / "again"
    try:
        for language, sources in by_language(config.text).items():
            name = f"text {language} read again"
            try:
                surveys = surveys_of(sources, split, again, processes, tell)
            except SprachbundError as error:
                yield _bad(name, str(error), type(error))
            else:
                yield _compared(name, document, language, surveys, "the same documents")
    finally:
        shutil.rmtree(again, ignore_errors=True)


def _bad(name: str, detail: str, kind: type[SprachbundError]) -> Verified:
    return Verified(name=name, is_good=False, detail=detail, way_out=_PREPARE, exit_code=kind.exit_code)
