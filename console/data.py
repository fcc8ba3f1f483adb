"""Commands for a site's text: prepare it ahead of the jobs, verify it, show what the manifest tells others."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.app import SITE, Json, command, group
from console.output import answer, note, put, screen

if TYPE_CHECKING:
    from site_agent.config import SiteConfig
    from site_agent.data.pool import Progress

data = group("data", SITE, "Prepare a site's text ahead of its jobs; verify and show what is told of it.")

Config = Annotated[Path, typer.Argument(metavar="SITE.yaml", help="The site's config.")]
Processes = Annotated[
    int | None,
    typer.Option("--processes", min=1, help="Processes at once. Default: one a CPU this one may use."),
]
Seed = Annotated[
    int,
    typer.Option("--seed", help="The campaign's `seed`: it decides which documents are held out."),
]


@command("prepare", "sprachbund data prepare site.yaml --tokenizer tokenizer.json --processes 32", under=data)
def prepare(
    config: Config,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="tokenizer.json",
            help="The campaign's tokenizer. Without it the text is read and described, not tokenised.",
        ),
    ] = None,
    processes: Processes = None,
    languages: Annotated[
        list[str] | None,
        typer.Option("--languages", metavar="LANGUAGE", help="Only these; may be given more than once."),
    ] = None,
    seed: Seed = 0,
    eos: Annotated[
        int | None,
        typer.Option("--eos", help="The model's eos_token_id, where the tokenizer's names do not tell it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn the site's text into the packed tokens that its jobs read, and describe it in a manifest.

    May be killed at any moment and called again, also inside a Slurm job: what is done is kept. The bytes do
    not depend on the number of processes. With --json, a line for every step of progress, then the manifest.
    """
    from site_agent.config import load_site_config, prepared_text
    from site_agent.data.manifest import manifest_path, write_manifest
    from site_agent.data.segments import Split

    loaded = load_site_config(config)
    chosen = _chosen(loaded, languages)
    split = Split(heldout_share=loaded.heldout_share, seed=seed)
    count = processes or _processes()
    with _progress(as_json) as tell:
        if tokenizer is None:
            from site_agent.holdings import surveys_of

            surveys_of(chosen.text, split, prepared_text(loaded), count, tell)
        else:
            from functools import partial

            from site_agent.data.contents import plan_of
            from site_agent.data.words import encoder, words_alone
            from site_agent.holdings import by_language
            from site_agent.prepared import prepare_all

            words = words_alone(tokenizer, eos)
            plans = [
                plan_of(sources, words, split, prepared_text(loaded))
                for sources in by_language(chosen.text).values()
            ]
            prepare_all(plans, count, partial(encoder, tokenizer, words), tokenizer, tell)
    document = write_manifest(loaded, split)
    if as_json:
        put({"manifest": document})
        return
    _show(loaded, document)
    note(f"The manifest is {manifest_path(loaded)}.")


@command("verify", "sprachbund data verify site.yaml", under=data)
def verify(
    config: Config,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes only, no digests of packed files.")] = False,
    text: Annotated[
        bool, typer.Option("--text", help="Read all text again, and compare what it holds.")
    ] = False,
    processes: Processes = None,
    as_json: Json = False,
) -> None:
    """Hold the manifest against the text and the packed files.

    Exits with 0 if all is well, else with the code of the first failure: 2 input, 3 corrupt, 5 unavailable.
    """
    from console.screens.site import doctors_page
    from consortium.errors import Unavailable
    from site_agent.config import load_site_config
    from site_agent.data.verifying import verify as look
    from site_agent.doctor import Check

    loaded = load_site_config(config)
    with _progress(quiet=as_json) as tell:
        found = look(loaded, not quick, text, processes or _processes(), tell)
    checks = [
        Check(
            name=one.name,
            is_good=one.is_good,
            detail=one.detail,
            way_out=one.way_out,
            exit_code=one.exit_code,
        )
        for one in found
    ]
    answer(as_json, found, doctors_page(checks, screen().width))
    bad = [check for check in checks if not check.is_good]
    if bad:
        raise typer.Exit(bad[0].exit_code or Unavailable.exit_code)


@command("show", "sprachbund data show site.yaml", under=data)
def show(config: Config, as_json: Json = False) -> None:
    """What the manifest says of each language, and what only you should see: where faults are."""
    from site_agent.config import load_site_config
    from site_agent.data.manifest import read_manifest

    loaded = load_site_config(config)
    document = read_manifest(loaded)
    if as_json:
        put(document)
    else:
        _show(loaded, document)


def _show(config: "SiteConfig", document: dict[str, object]) -> None:
    from console.screens.holdings import holdings_page
    from site_agent.config import prepared_text
    from site_agent.data.contents import plan_of, remembered_surveys
    from site_agent.data.manifest import prepared_folders
    from site_agent.data.segments import Split
    from site_agent.holdings import by_language

    split = Split(
        heldout_share=float(str(document["sb:heldoutShare"])), seed=int(str(document["sb:splitSeed"]))
    )
    places: list[str] = []
    for sources in by_language(config.text).values():
        for survey in remembered_surveys(plan_of(sources, None, split, prepared_text(config))) or ():
            places += survey.findings.first_faults
    stale = [str(place) for place in prepared_folders(config)[1]]
    answer(False, None, holdings_page(document, places, stale, screen().width))


def _chosen(config: "SiteConfig", languages: Sequence[str] | None) -> "SiteConfig":
    from consortium.canonical import replace
    from consortium.errors import BadInput
    from policies.languages import load_languages

    if not config.text:
        raise BadInput("the site has no text; write some under `text:` in its config")
    if not languages:
        return config
    known = load_languages()
    wanted = {known.normalise(tag) for word in languages for tag in word.split(",") if tag}
    missing = sorted(wanted - {text.language for text in config.text})
    if missing:
        raise BadInput(f"the site has no text in {', '.join(missing)}; correct --languages or `text:`")
    return replace(config, text=tuple(text for text in config.text if text.language in wanted))


def _processes() -> int:
    import os

    return len(os.sched_getaffinity(0))  # what Slurm bound this process to


@contextlib.contextmanager
def _progress(as_json: bool = False, quiet: bool = False) -> Iterator[Callable[["Progress"], None] | None]:
    """A bar for each language on stderr, or with --json a line on stdout for every step."""
    if as_json:
        yield lambda now: put({"progress": now})
        return
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TextColumn("{task.fields[tokens]:,} tokens"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
    )
    tasks: dict[str, rich.TaskID] = {}
    with rich.Progress(*columns, console=screen(stderr=True)) as bar:

        def tell(now: "Progress") -> None:
            if now.language not in tasks:
                tasks[now.language] = bar.add_task(now.language, total=now.all_bytes, tokens=0)
            bar.update(tasks[now.language], completed=now.read_bytes, tokens=now.tokens)

        yield tell
