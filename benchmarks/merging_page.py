"""Which merges are measured, and how the results are told: the tables of docs/merging-results.md."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import Run

Runs = Mapping[str, Sequence[Run]]  #: by the job's name

DISTURBED_CORES = 0.2  #: that others may use before a measurement is called disturbed
MEMORY_METHODS = ("linear", "ties")
MEMORY_COUNTS = (4, 16)
MEMORY_SIZES = ("quarter", "full")


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)  #: of every model
    merge_method: str | None = None  #: its name in the recipe, if another
    base: bool = True  #: whether there is one; slerp's is one of the two
    models: int = 4
    reads: int = 1  #: how often the floor beside it reads the inputs
    mergekit: bool = True  #: whether mergekit has it
    outer: dict[str, Any] | None = None  #: then a momentum is read and written, too

    @property
    def floor(self) -> str:
        """The name of the floor beside it."""
        state = " and the momentum" if self.outer else ""
        return f"floor: {self.models + self.base} models{state}, {'once' if self.reads == 1 else 'twice'}"

    def recipe(self, base: Path, models: Sequence[Path]) -> dict[str, Any]:
        """What both programs are given."""
        given = [base, *models] if self.name == "slerp" else models
        entries = [{"model": str(path), **({"parameters": self.own} if self.own else {})} for path in given]
        recipe: dict[str, Any] = {"merge_method": self.merge_method or self.name, "models": entries}
        if self.base:
            recipe["base_model"] = str(base)
        if self.parameters:
            recipe["parameters"] = self.parameters
        if self.outer:
            recipe["sprachbund"] = {"outer": self.outer}
        return {**recipe, "dtype": "bfloat16"}


_EVEN = {"weight": 0.25}
_FIFTH = {"weight": 1.0, "density": 0.2}
_VOTE = {"normalize": True, "lambda": 1.0}
METHODS = (
    Method("linear", own=_EVEN, base=False),
    Method("task_arithmetic", own=_EVEN),
    Method(
        "DiLoCo step",
        own=_EVEN,
        merge_method="task_arithmetic",
        mergekit=False,
        outer={"optimizer": "sgd", "learning_rate": 0.7, "momentum": 0.9, "nesterov": True},
    ),
    Method("coordinate_median", mergekit=False),
    Method("slerp", {"t": 0.5}, models=1, reads=2),
    Method("ties", _VOTE, _FIFTH, reads=2),
    Method("dare_ties", _VOTE, _FIFTH),
    Method("breadcrumbs", {"lambda": 1.0}, {"weight": 0.25, "density": 0.9, "gamma": 0.01}, reads=2),
    Method("della", _VOTE, {"weight": 1.0, "density": 0.4, "epsilon": 0.1}),
    Method("sce", {"select_topk": 0.2}, reads=2),
)


@dataclass(frozen=True, slots=True)
class Target:
    """What the project demands of a method: at most so many times one thing, at least so many times another."""

    floor: float | None = None  #: times the floor's wall time, at most
    linear: float | None = None  #: times the linear merge's wall time, at most
    wall: float | None = None  #: times faster than mergekit in wall time, at least
    cpu: float | None = None  #: and in processor seconds


TARGETS = {
    "linear": Target(floor=1.4, wall=6, cpu=8),
    "task_arithmetic": Target(floor=1.4),
    "DiLoCo step": Target(floor=1.4),
    "coordinate_median": Target(floor=1.4),
    "ties": Target(linear=5, wall=30),
    "dare_ties": Target(linear=3, wall=20),
    **{name: Target(wall=4) for name in ("slerp", "sce", "breadcrumbs", "della")},
}


def median(runs: Sequence[Run]) -> Run:
    """Every figure's own median."""
    return Run(
        *(statistics.median(values) for values in zip(*((
            run.wall_seconds, run.cpu_seconds, run.anonymous_bytes, run.resident_bytes, run.other_cores
        ) for run in runs), strict=True))
    )  # fmt: skip


def page(size: str, runs: Runs, machine: Mapping[str, str], imports: Mapping[str, int], command: str) -> str:
    """The whole page, of what has been measured so far."""
    found = {name: median(measured) for name, measured in runs.items() if measured}
    parts = [
        *_introduction(size, machine, command),
        *_speed_table(size, runs, found),
        *_targets(size, found),
        *_floors(size, found),
        *_memory_table(found),
        *_startup(found, imports),
        *_disturbances(runs),
    ]
    return "\n".join(parts) + "\n"


def _introduction(size: str, machine: Mapping[str, str], command: str) -> list[str]:
    return [
        "# Merging, measured",
        "",
        f"Written by `{command}`. {'; '.join(f'{key}: {value}' for key, value in machine.items())}.",
        "",
        f"Base and 4 models of a Llama-style architecture, bf16, random weights ({size} size: "
        + ("hidden 2048, 8 layers, vocabulary 32000, 1.084 GB" if size == "full" else "see sample_models.py")
        + " each). Whole processes from start to exit, in turn, medians; inputs in the page cache, outputs to "
        "new names, ours and the floor's with fsync, mergekit's without. *CPU* is user and system seconds, "
        "*anonymous* the most memory that is not files, seen every 20 ms.",
        "",
        "The *floor* is a program of ours that reads the same inputs and writes as many bytes, with the same "
        "threads, chunks, digests and fsyncs, and computes nothing; where a method must see whole tensors "
        "first (ties, breadcrumbs, slerp, sce), the floor reads twice as well.",
        "",
    ]


def _speed_table(size: str, runs: Runs, found: Mapping[str, Run]) -> list[str]:
    lines = [
        "## Time",
        "",
        "| method | ours: wall s | CPU s | anonymous MB | / floor wall | / linear wall | mergekit: wall s | CPU s "
        "| resident MB | **mergekit / ours: wall** | **CPU** | runs |",
        "|---" * 12 + "|",
    ]
    linear = found.get(f"{size} linear")
    for method in METHODS:
        ours = found.get(f"{size} {method.name}")
        if ours is None:
            continue
        floor, theirs = found.get(f"{size} {method.floor}"), found.get(f"{size} mergekit {method.name}")
        cells = [
            method.name,
            f"{ours.wall_seconds:.2f}",
            f"{ours.cpu_seconds:.2f}",
            f"{ours.anonymous_bytes / 1e6:.0f}",
            f"{ours.wall_seconds / floor.wall_seconds:.2f}" if floor else "",
            f"{ours.wall_seconds / linear.wall_seconds:.2f}" if linear else "",
        ]
        if theirs:
            cells += [
                f"{theirs.wall_seconds:.1f}",
                f"{theirs.cpu_seconds:.1f}",
                f"{theirs.resident_bytes / 1e6:.0f}",
                f"**{theirs.wall_seconds / ours.wall_seconds:.1f}**",
                f"**{theirs.cpu_seconds / ours.cpu_seconds:.1f}**",
            ]
        else:
            cells += ["" if method.mergekit else "has none", "", "", "", ""]
        times = len(runs[f"{size} {method.name}"]), len(runs.get(f"{size} mergekit {method.name}", ()))
        lines.append("| " + " | ".join([*cells, " + ".join(str(count) for count in times if count)]) + " |")
    return [*lines, ""]


def _targets(size: str, found: Mapping[str, Run]) -> list[str]:
    lines = ["## What was demanded", ""]
    for name, target in TARGETS.items():
        ours = found.get(f"{size} {name}")
        if ours is None:
            continue
        [method] = [one for one in METHODS if one.name == name]
        theirs = found.get(f"{size} mergekit {name}")
        floor, linear = found.get(f"{size} {method.floor}"), found.get(f"{size} linear")
        said = [
            *_at_most("the floor's wall time", ours, floor, target.floor),
            *_at_most("the linear merge's", ours, linear, target.linear),
        ]
        for what, least, seconds in (
            ("wall time", target.wall, "wall_seconds"),
            ("CPU seconds", target.cpu, "cpu_seconds"),
        ):
            if least is not None and theirs is not None:
                times = getattr(theirs, seconds) / getattr(ours, seconds)
                said.append(
                    f"{_verdict(times >= least)} {times:.1f}x faster than mergekit in {what} (at least {least:g}x)"
                )
        lines += [f"- {name}: {'; '.join(said)}"] if said else []
    return [*lines, ""]


def _at_most(what: str, ours: Run, other: Run | None, most: float | None) -> list[str]:
    if most is None or other is None:
        return []
    times = ours.wall_seconds / other.wall_seconds
    return [f"{_verdict(times <= most)} {times:.2f}x {what} (at most {most:g}x)"]


def _verdict(good: bool) -> str:
    return "✓" if good else "**missed:**"


def _floors(size: str, found: Mapping[str, Run]) -> list[str]:
    lines = ["## Floors", "", "| what is read | wall s | CPU s |", "|---|---|---|"]
    for name in dict.fromkeys(method.floor for method in METHODS):
        run = found.get(f"{size} {name}")
        if run:
            lines.append(
                f"| {name.removeprefix('floor: ')} | {run.wall_seconds:.2f} | {run.cpu_seconds:.2f} |"
            )
    return [*lines, ""]


def _memory_table(found: Mapping[str, Run]) -> list[str]:
    bare = found.get("bare interpreter")
    if bare is None:
        return []
    lines = [
        "## Memory",
        "",
        "The most anonymous memory of a whole process, in MB, and how much of it is above a bare interpreter that "
        f"imports what the command imports and does nothing ({bare.anonymous_bytes / 1e6:.0f} MB). At most 100 MB "
        "above is demanded.",
        "",
        "| method | model, GB | contributions | anonymous | above bare |",
        "|---|---|---|---|---|",
    ]
    for method in MEMORY_METHODS:
        for size in MEMORY_SIZES:
            for count in MEMORY_COUNTS:
                run = found.get(f"memory {size} {count} {method}")
                if run:
                    gigabytes = {"full": "1.084", "quarter": "0.271"}[size]
                    above = (run.anonymous_bytes - bare.anonymous_bytes) / 1e6
                    lines.append(
                        f"| {method} | {gigabytes} | {count} | {run.anonymous_bytes / 1e6:.0f} | {above:.0f} |"
                    )
    return [*lines, ""]


def _startup(found: Mapping[str, Run], imports: Mapping[str, int]) -> list[str]:
    run = found.get("help")
    if run is None:
        return []
    return [
        "## Start",
        "",
        f"`sprachbund merge --help` takes {run.wall_seconds:.2f} s (demanded: under 0.5). "
        f"It imports {imports['help']} modules, a merge {imports['merge']}; torch is "
        + ("among them." if imports["torch"] else "not among them."),
        "",
    ]


def _disturbances(runs: Runs) -> list[str]:
    disturbed = sorted(
        name
        for name, measured in runs.items()
        if measured and statistics.median(run.other_cores for run in measured) > DISTURBED_CORES
    )
    if not disturbed:
        return ["No row was disturbed: other processes used less than a fifth of a core."]
    return [f"Disturbed by other processes (more than a fifth of a core): {', '.join(disturbed)}."]
