"""What an operator sees of the site's text: what the manifest tells others, and what it does not."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from console.screens.parts import table, words


def holdings_page(
    manifest: dict[str, Any], places: Sequence[str], stale: Sequence[str], width: int = 100
) -> RenderableType:
    """A line for every (language, access), one for every prepared language, then what is odd.

    places  ``file:number: kind`` of the first records that could not be read; they stay here
    stale   folders of prepared text that fit the text no more
    """
    held = table(
        "Language", "Access", ">documents", ">MB", ">held out", "Redistribution", "Odd…", width=width
    )
    held.columns[-1].no_wrap = False
    for entry in manifest["sb:holding"]:
        sources = sorted({str(source["sb:redistribution"]) for source in entry["isBasedOn"]})
        held.add_row(
            words(str(entry["inLanguage"])),
            words(str(entry["name"]).rpartition(".")[2]),
            f"{entry['sb:documents']:,}",
            f"{entry['sb:bytes'] / 1e6:,.1f}",
            f"{entry['sb:heldoutDocuments']:,}",
            words(", ".join(sources)),
            words(_odd(entry)),
        )
    made = table("Prepared", "Tokenizer", ">seed", ">private", ">public", ">held out", width=width)
    for entry in manifest["sb:prepared"]:
        made.add_row(
            words(str(entry["inLanguage"])),
            words(str(entry["sb:tokenizer"])[:12]),
            str(entry["sb:splitSeed"]),
            *(f"{part['sb:tokens']:,} tokens" for part in entry["sb:part"]),
        )
    parts: list[RenderableType] = [held]
    if manifest["sb:prepared"]:
        parts += [Text(), made]
    lines = [f"not surveyed with this seed: {', '.join(manifest['sb:notSurveyed'])}"] * bool(
        manifest["sb:notSurveyed"]
    )
    lines += [f"unreadable: {place}" for place in places]
    lines += [f"of other text, may be removed: {place}" for place in stale]
    return Group(*parts, *([Text()] if lines else []), *(words(line, "yellow") for line in lines))


def _odd(entry: dict[str, Any]) -> str:
    """In a few words, what a reader of the manifest will ask about."""
    said = [f"{one['value']:,} {one['name']}" for one in entry["sb:unreadableRecords"]]
    said += [f"{one['value']:,} left out: {one['name']}" for one in entry["sb:leftOut"]]
    others = {one["name"]: one["value"] for one in entry["sb:saidToBeAnotherLanguage"]}
    if others:
        most = sorted(others, key=lambda tag: (-others[tag], tag))[:3]
        said.append(f"{sum(others.values()):,} say another language ({', '.join(most)})")
    for key, kind in (
        ("sb:repeatedDocuments", "repeated"),
        ("sb:documentsWithControlCharacters", "with control characters"),
    ):
        if entry[key]:
            said.append(f"{entry[key]:,} {kind}")
    return "; ".join(said)
