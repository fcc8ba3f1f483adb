"""What of a site's text others may know: a Croissant 1.1 document of digests, counts and rights.

It is a function of the text and the config alone: no time of the run, no path outside the site's home, no
text, no name of a file that text came in. Source of the format: Croissant 1.1 (MLCommons), and its
responsible-AI vocabulary 1.0; what they have no word for is under ``sb:``.
"""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consortium.errors import BadInput, Corrupt, SprachbundError
from consortium.files import disk_errors, write_bytes_atomically
from policies.licences import load_licences
from site_agent.config import SiteConfig, Text, prepared_text
from site_agent.data.contents import Prepared, Survey, opened, plan_of, remembered, remembered_surveys
from site_agent.data.segments import Split
from site_agent.holdings import by_language

NOT_SAID = "not said by the site"
CONFORMS_TO = "http://mlcommons.org/croissant/1.1"

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sb": "urn:sprachbund:data:",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def manifest_path(config: SiteConfig) -> Path:
    return Path(config.home) / "croissant.json"


def write_manifest(config: SiteConfig, split: Split) -> dict[str, Any]:
    """Describe all text that has been surveyed, and everything that was prepared of it; the same bytes each time."""
    document = manifest_of(config, split)
    data = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_atomically(manifest_path(config), data.encode())
    return document


def read_manifest(config: SiteConfig) -> dict[str, Any]:
    """Raises BadInput if there is none, Corrupt if it is none of ours."""
    path = manifest_path(config)
    if not path.exists():
        raise BadInput(f"{path}: there is no manifest yet; run `sprachbund data prepare`")
    try:
        with disk_errors(path):
            document = json.loads(path.read_bytes())
        if document["conformsTo"] == CONFORMS_TO and isinstance(document["sb:holding"], list):
            return dict(document)
    except (ValueError, KeyError, TypeError):
        pass
    raise Corrupt(f"{path}: is no Croissant manifest of ours; run `sprachbund data prepare` to make it anew")


def manifest_of(config: SiteConfig, split: Split) -> dict[str, Any]:
    """The document itself; languages that were not surveyed with this split are named as missing."""
    surveys: list[Survey] = []
    missing: list[str] = []
    for language, sources in by_language(config.text).items():
        known = remembered_surveys(plan_of(sources, None, split, prepared_text(config)))
        surveys += known or ()
        missing += [] if known else [language]
    folders = prepared_folders(config)[0]
    newest = max((survey.newest for survey in surveys), default=0)
    licences = sorted({text.licence for text in config.text})
    languages = sorted({survey.holding.language for survey in surveys})
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": f"text-of-{config.site}",
        "description": (
            f"Text held by {config.site} for training in a Sprachbund consortium. The text stays at the site; "
            "this document describes it by counts, rights and digests."
        ),
        "citeAs": f"Text held by {config.site}; named by the digests in sb:holding",
        "creator": {"@type": "sc:Organization", "name": str(config.site)},
        "url": f"urn:sprachbund:site:{config.site}",
        "version": "1.0.0",
        "dateModified": _date(newest),
        "datePublished": _date(newest),
        "inLanguage": languages,
        "license": [_licence_url(licence) for licence in licences],
        "isAccessibleForFree": False,
        "isLiveDataset": False,
        "rai:dataCollection": _said({text.source for text in config.text}),
        "rai:dataReleaseMaintenancePlan": _said({text.retention for text in config.text}),
        "rai:personalSensitiveInformation": "Not examined by this program; see the sources.",
        "distribution": [file for folder in folders for file in _files(config, folder)],
        "sb:heldoutShare": split.heldout_share,
        "sb:splitSeed": split.seed,
        "sb:notSurveyed": missing,
        "sb:holding": [_holding(config, survey) for survey in surveys],
        "sb:prepared": [_prepared(folder) for folder in folders],
    }


def prepared_folders(config: SiteConfig) -> tuple[list[Prepared], list[Path]]:
    """Prepared text that fits the text of today, sorted by folder; and folders that fit it no more."""
    sources = by_language(config.text)
    current: list[Prepared] = []
    stale: list[Path] = []
    for place in sorted((prepared_text(config) / "tokens").glob("[!.]*")):
        try:
            found = opened(place)
            contents = found.contents
            plan = plan_of(sources[contents.language], contents.words, contents.split, prepared_text(config))
            known = remembered(plan)
        except (SprachbundError, FileNotFoundError, KeyError):
            known = None
        if known is not None and known.folder == place:
            current.append(known)
        else:
            stale.append(place)
    return current, stale


def _holding(config: SiteConfig, survey: Survey) -> dict[str, Any]:
    holding, found = survey.holding, survey.findings
    texts = [
        text for text in config.text if (text.language, text.access) == (holding.language, holding.access)
    ]
    return {
        "@type": "sc:Dataset",
        "name": f"{holding.language}.{holding.access}",
        "inLanguage": holding.language,
        "isAccessibleForFree": holding.access == "public",
        "license": holding.licence,
        "isBasedOn": [_source(text) for text in texts],
        "sb:digest": holding.digest,
        "sb:documents": holding.documents,
        "sb:bytes": holding.bytes,
        "sb:heldoutDocuments": holding.heldout_documents,
        "sb:files": survey.files,
        "sb:repeatedDocuments": survey.duplicates,
        "sb:unreadableRecords": _counts(found.faults),
        "sb:documentsWithControlCharacters": found.control_characters,
        "sb:documentsThatSayTheirLanguage": found.said,
        "sb:saidToBeAnotherLanguage": _counts(found.other_languages),
        "sb:leftOut": _counts(found.passed_over),
    }


def _counts(counts: dict[str, int]) -> list[dict[str, Any]]:
    """Counts by kind as schema.org has them; kinds as keys would be properties in JSON-LD."""
    return [
        {"@type": "sc:PropertyValue", "name": kind, "value": count} for kind, count in sorted(counts.items())
    ]


def _source(text: Text) -> dict[str, Any]:
    kind = load_licences().redistribution(text.licence, text.redistribution)
    return {
        "@type": "sc:Dataset",
        "name": text.source or NOT_SAID,
        "license": text.licence,
        "sb:redistribution": kind.name,
        "sb:textMayLeave": kind.text_may_leave,
        "sb:robots": text.robots or NOT_SAID,
        "sb:optedOutDocuments": "left out" if text.opted_out == "drop" else "kept",
        "sb:otherLanguages": "left out" if text.other_languages == "drop" else "kept",
        "sb:retention": text.retention or NOT_SAID,
    }


def _prepared(folder: Prepared) -> dict[str, Any]:
    contents = folder.contents
    parts = {"training.private": contents.private, "training.public": contents.public}
    parts["heldout"] = contents.heldout
    return {
        "@type": "sc:Dataset",
        "name": folder.folder.name,
        "inLanguage": contents.language,
        "sb:tokenizer": contents.tokenizer,
        "sb:endOfDocument": contents.eos,
        "sb:heldoutShare": contents.split.heldout_share,
        "sb:splitSeed": contents.split.seed,
        "sb:tokens": sum(part.tokens for part in parts.values()),
        "sb:part": [
            {
                "@type": "sc:Dataset",
                "name": name,
                "sb:documents": part.documents,
                "sb:bytes": part.bytes,
                "sb:tokens": part.tokens,
                "sb:digest": part.digest,
            }
            for name, part in parts.items()
        ],
    }


def _files(config: SiteConfig, folder: Prepared) -> list[dict[str, Any]]:
    place = folder.folder.relative_to(prepared_text(config).parent)
    return [
        {
            "@type": "cr:FileObject",
            "@id": f"{folder.folder.name}/{name}",
            "name": f"{folder.folder.name}/{name}",
            "contentUrl": str(place / name),
            "contentSize": f"{ref.size} B",
            "encodingFormat": "application/octet-stream",
            "sha256": ref.digest,
        }
        for name, ref in sorted(folder.contents.files.items())
    ]


def _said(words: set[str | None]) -> str:
    known = sorted(word for word in words if word)
    return (
        "; ".join([*known, *([f"for some text: {NOT_SAID}"] if None in words and known else [])]) or NOT_SAID
    )


def _licence_url(licence: str) -> str:
    is_own = licence.startswith("LicenseRef-")
    return licence if is_own else f"https://spdx.org/licenses/{licence}"


def _date(nanoseconds: int) -> str:
    return datetime.datetime.fromtimestamp(nanoseconds // 10**9, datetime.UTC).date().isoformat()


def file_entries(document: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """The files that a manifest names, with ``contentUrl``, ``contentSize`` and ``sha256``."""
    return [entry for entry in document.get("distribution", ()) if isinstance(entry, dict)]
