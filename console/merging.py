"""The command that merges models by a recipe, as ``mergekit-yaml`` takes it, with or without a consortium."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import click
import typer

from console.app import AUDIT, Json, command
from console.output import answer, note, screen

if TYPE_CHECKING:
    from consortium.merging.run import Ready

_HERE = "Merging"
_INSTEAD = "Instead of merging"
_KIN = "Of mergekit-yaml, accepted without effect"
_DANGER = "Of mergekit-yaml, not granted"

# Options that change nothing here: parameter -> why. Those refused would change the result.
_IGNORED = {
    "cuda": "the merge runs on the CPU, where the disk is what it waits for",
    "device": "the merge runs on the CPU, where the disk is what it waits for",
    "low_cpu_memory": "memory is a few chunks, whatever the model's size",
    "read_to_gpu": "the merge runs on the CPU, where the disk is what it waits for",
    "multi_gpu": "the merge runs on the CPU, where the disk is what it waits for",
    "gpu_rich": "the merge runs on the CPU, where the disk is what it waits for",
    "lazy_unpickle": "pickles are not read, safetensors only",
    "clone_tensors": "every tensor of the output is written on its own",
    "async_write": "shards are always written while others are read",
    "write_threads": "see --num-threads",
    "verbosity": "there is nothing more to say",
    "lora_merge_cache": "adapters are not merged; merge them into a model first",
    "lora_merge_dtype": "adapters are not merged; merge them into a model first",
    "transformers_cache": "nothing is downloaded; see --models-dir",
    "trust_remote_code": "no code of a model is ever run, so there is nothing to trust",
    "allow_crimes": "tensors must match in name and shape; those of another architecture do not",
}
_REFUSED = {
    "unsafe_truncate_embeddings": "--unsafe-truncate-embeddings would cut vocabularies that differ to the "
    "shortest; give the models one tokenizer and one vocabulary first",
    "safe_serialization": "--no-safe-serialization would write pickles, which can run code when they are "
    "loaded; leave it out, safetensors load everywhere",
}


def _flag(spelt: str, panel: str) -> Any:
    return typer.Option(spelt, rich_help_panel=panel, show_default=False)


def _elements(spelt: str) -> int:
    """``5B`` -> 5 000 000 000, as mergekit reads it."""
    sizes = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}
    number, size = (spelt[:-1], sizes[spelt[-1].lower()]) if spelt[-1:].lower() in sizes else (spelt, 1)
    if not number.isdecimal() or int(number) == 0:
        raise click.BadParameter(f"{spelt!r} is no number of parameters; write 5B, 500M, 200K or 1000000")
    return int(number) * size


@command("merge", "sprachbund merge recipe.yaml merged", AUDIT)
def merge(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="mergekit's YAML, or ours.")],
    out_dir: Annotated[
        Path | None, typer.Argument(metavar="[OUT_DIR]", help="A folder that does not exist yet.")
    ] = None,
    models_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--models-dir",
            metavar="DIR",
            help="Where models that the recipe names lie; may be given several times.",
            rich_help_panel=_HERE,
        ),
    ] = None,
    num_threads: Annotated[
        int | None,
        typer.Option(
            "--num-threads",
            "-j",
            min=1,
            help="Default: one per core. The bits are the same.",
            rich_help_panel=_HERE,
        ),
    ] = None,
    random_seed: Annotated[
        int | None,
        typer.Option(
            "--random-seed", help="Of methods that draw; rather than the recipe's.", rich_help_panel=_HERE
        ),
    ] = None,
    out_shard_size: Annotated[
        int | None,
        typer.Option(
            "--out-shard-size",
            parser=_elements,
            metavar="5B",
            help="Parameters in one file of the output.",
            rich_help_panel=_HERE,
        ),
    ] = None,
    copy_tokenizer: Annotated[
        bool,
        typer.Option(
            "--copy-tokenizer/--no-copy-tokenizer",
            help="Put the tokenizer beside the model.",
            rich_help_panel=_HERE,
        ),
    ] = True,
    write_model_card: Annotated[
        bool,
        typer.Option(
            "--write-model-card/--no-write-model-card",
            help="Write README.md: what was merged, how, and how it compares with mergekit.",
            rich_help_panel=_HERE,
        ),
    ] = True,
    outer_state: Annotated[
        Path | None,
        typer.Option(
            "--outer-state",
            metavar="FILE",
            help="outer.safetensors of the merge that made the base, for recipes with an outer step.",
            rich_help_panel=_HERE,
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet/--no-quiet", "-q", help="No progress, no notes.", rich_help_panel=_HERE)
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Say what would be done, and write nothing.", rich_help_panel=_INSTEAD),
    ] = False,
    inspect: Annotated[
        bool,
        typer.Option(
            "--inspect", help="Norms, cosines and conflict of what is to be merged.", rich_help_panel=_INSTEAD
        ),
    ] = False,
    by_layer: Annotated[
        bool,
        typer.Option("--by-layer", help="With --inspect: every block by itself.", rich_help_panel=_INSTEAD),
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE",
            help="With --inspect: the heat map. Default: OUT_DIR-inspect.svg or inspect.svg.",
            rich_help_panel=_INSTEAD,
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FILE", help="Write the recipe for mergekit itself.", rich_help_panel=_INSTEAD
        ),
    ] = None,
    as_json: Json = False,
    cuda: Annotated[bool, _flag("--cuda/--no-cuda", _KIN)] = False,
    device: Annotated[str | None, _flag("--device", _KIN)] = None,
    low_cpu_memory: Annotated[bool, _flag("--low-cpu-memory/--no-low-cpu-memory", _KIN)] = False,
    read_to_gpu: Annotated[bool, _flag("--read-to-gpu/--no-read-to-gpu", _KIN)] = False,
    multi_gpu: Annotated[bool, _flag("--multi-gpu/--no-multi-gpu", _KIN)] = False,
    gpu_rich: Annotated[bool, _flag("--gpu-rich", _KIN)] = False,
    lazy_unpickle: Annotated[bool, _flag("--lazy-unpickle/--no-lazy-unpickle", _KIN)] = False,
    clone_tensors: Annotated[bool, _flag("--clone-tensors/--no-clone-tensors", _KIN)] = False,
    async_write: Annotated[bool, _flag("--async-write/--no-async-write", _KIN)] = False,
    write_threads: Annotated[int | None, _flag("--write-threads", _KIN)] = None,
    verbosity: Annotated[int, typer.Option("-v", count=True, rich_help_panel=_KIN, show_default=False)] = 0,
    transformers_cache: Annotated[str | None, _flag("--transformers-cache", _KIN)] = None,
    lora_merge_cache: Annotated[str | None, _flag("--lora-merge-cache", _KIN)] = None,
    lora_merge_dtype: Annotated[str | None, _flag("--lora-merge-dtype", _KIN)] = None,
    trust_remote_code: Annotated[bool, _flag("--trust-remote-code/--no-trust-remote-code", _DANGER)] = False,
    allow_crimes: Annotated[bool, _flag("--allow-crimes/--no-allow-crimes", _DANGER)] = False,
    unsafe_truncate_embeddings: Annotated[
        bool, _flag("--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings", _DANGER)
    ] = False,
    safe_serialization: Annotated[
        bool, _flag("--safe-serialization/--no-safe-serialization", _DANGER)
    ] = True,
) -> None:
    """Merge models, or the contributions of sites, by a recipe.

    Takes the recipes and the arguments of mergekit-yaml. Nothing is downloaded: models are folders here. The
    output appears whole or not at all, with the same bytes on every machine.
    """
    _judge_options(context, quiet or as_json)
    if sum((check, inspect, export is not None)) > 1:
        raise click.UsageError("--check, --inspect and --export are three things; give one of them")
    if (by_layer or picture) and not inspect:
        raise click.UsageError("--by-layer and --picture go with --inspect")
    if out_dir is None and not (check or inspect or export):
        raise click.UsageError("Missing argument 'OUT_DIR': where to write the merged model")
    if export is not None:
        _export(recipe, export, as_json)
        return
    from consortium.merging.run import ready

    work = ready(recipe, tuple(models_dir or ()), seed=random_seed, shard_elements=out_shard_size)
    how = _How(num_threads or _threads(), as_json, quiet)
    if check:
        _check(work, how)
    elif inspect:
        _inspect(work, how, recipe.name, by_layer, picture or _picture_of(out_dir))
    elif out_dir is not None:
        _merge(work, how, out_dir, copy_tokenizer, write_model_card, outer_state)


class _How(NamedTuple):
    threads: int
    as_json: bool
    quiet: bool

    @property
    def silent(self) -> bool:
        return self.quiet or self.as_json


def _merge(
    work: "Ready", how: _How, out_dir: Path, copy_tokenizer: bool, card: bool, outer_state: Path | None
) -> None:
    from consortium.merging.run import carry_out, compared

    began = time.monotonic()
    with _progress("merging", work, how.silent) as progress:
        result = carry_out(
            work,
            out_dir,
            threads=how.threads,
            copy_tokenizer=copy_tokenizer,
            card=card,
            outer_state=outer_state,
            progress=progress,
        )
    seconds = time.monotonic() - began
    files = sorted(path.name for path in out_dir.iterdir())
    fact = {
        "out_dir": str(out_dir),
        "digest": result.checksums.digest,
        "files": files,
        "seconds": round(seconds, 3),
        "done": result.notes,
        "compared_with_mergekit": compared(work.file),
        "notes": work.notes,
    }
    answer(
        how.as_json,
        fact,
        f"{out_dir}: weights {result.checksums.digest}, {len(files)} files, {seconds:.1f} s",
    )
    if not how.silent:
        for sentence in (*result.notes, *(work.notes or compared(work.file))):
            note(sentence)


def _check(work: "Ready", how: _How) -> None:
    from consortium.merging.run import check_recipe

    found = check_recipe(work)
    lines = [
        f"{found.method}: {', '.join(found.inputs)}" + (f" onto {found.base}" if found.base else ""),
        f"{found.parameters} parameters in {found.tensors} tensors, as {found.dtype}: {found.bytes} bytes in "
        f"{found.files} file(s)",
        *found.notes,
    ]
    answer(how.as_json, found, "\n".join(lines))


def _inspect(work: "Ready", how: _How, title: str, by_layer: bool, picture: Path) -> None:
    from console.screens.heatmap import heat_map
    from console.screens.inspection import inspection
    from consortium.files import write_bytes_atomically
    from consortium.merging.inspecting import inspect_recipe

    with _progress("inspecting", work, how.silent) as progress:
        report = inspect_recipe(work, how.threads, by_layer, progress)
    write_bytes_atomically(picture, heat_map(report, title).encode())
    answer(how.as_json, report, inspection(report, screen().width))
    if not how.silent:
        note(f"picture: {picture}")


def _export(recipe: Path, place: Path, as_json: bool) -> None:
    from consortium.errors import BadInput
    from consortium.files import write_bytes_atomically
    from consortium.merging.recipes.export import export
    from consortium.merging.recipes.files import load_noted

    if place.exists():
        raise BadInput(f"{place}: exists already; choose another name or remove it")
    file, notes = load_noted(recipe)
    text, lost = export(file)
    write_bytes_atomically(place, text.encode())
    fact = {"file": str(place), "lost": lost, "notes": notes}
    answer(as_json, fact, "\n".join([f"{place}: for mergekit", *lost, *notes]))


def _picture_of(out_dir: Path | None) -> Path:
    return out_dir.with_name(f"{out_dir.name}-inspect.svg") if out_dir else Path("inspect.svg")


def _judge_options(context: typer.Context, quiet: bool) -> None:
    """Refuse what would change the result, say in one line what has no effect."""
    from consortium.errors import Refused

    defaults = {parameter.name: parameter.get_default(context) for parameter in context.command.params}
    given = {name for name, value in context.params.items() if value != defaults.get(name)}
    for name, reason in _REFUSED.items():
        if name in given:
            raise Refused(reason)
    reasons: dict[str, list[str]] = {}
    for parameter in context.command.params:
        if parameter.name in given and parameter.name in _IGNORED:
            reasons.setdefault(_IGNORED[parameter.name], []).append(parameter.opts[0])
    if reasons and not quiet:
        said = "; ".join(f"{', '.join(options)} ({reason})" for reason, options in reasons.items())
        note(f"without effect here: {said}")


def _threads() -> int:
    import os

    return min(8, len(os.sched_getaffinity(0)))  # more than eight wait for the disk


@contextlib.contextmanager
def _progress(verb: str, work: "Ready", quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr: bytes of the inputs, how fast, how long, how long still."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = screen(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(verb, total=work.input_bytes)
        yield lambda done, total: bar.update(task, completed=work.input_bytes * done // max(total, 1))
