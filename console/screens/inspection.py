"""What is to be merged, in three tables: how long each contribution is, who agrees, and where they conflict."""

from rich.console import Group as Screens
from rich.console import RenderableType
from rich.text import Text

from console.screens.parts import count, table, words
from consortium.merging.report import Group, Inspection


def inspection(report: Inspection, width: int) -> RenderableType:
    whole = report.groups[0]
    what = (
        "whole weights: the recipe has no base" if report.base is None else f"differences from {report.base}"
    )
    return Screens(
        words(
            f"{len(report.contributions)} contributions, {count(whole.elements)} parameters; {what}", "bold"
        ),
        Text(),
        _contributions(report, whole, width),
        Text(),
        _places(report, width),
    )


def _contributions(report: Inspection, whole: Group, width: int) -> RenderableType:
    """One row each: norm, and cosines with all others over the whole model."""
    numbers = [str(number) for number in range(1, len(report.contributions) + 1)]
    grid = table("> ", "contribution…", ">norm", ">of base", *(f">cos {n}" for n in numbers), width=width)
    for name, number, norm, row in zip(
        report.contributions, numbers, whole.norms, whole.cosines, strict=True
    ):
        grid.add_row(number, words(name), f"{norm:.4g}", _share(norm, whole.base_norm), *map(_signed, row))
    return grid


def _places(report: Inspection, width: int) -> RenderableType:
    """One row per group of layers."""
    grid = table(
        "layers…",
        ">parameters",
        ">base norm",
        ">longest, of base",
        ">mean cos",
        ">lowest cos",
        ">conflict",
        width=width,
    )
    for group in report.groups:
        longest = max(range(len(group.norms)), key=lambda k: group.norms[k])
        base = "" if group.base_norm is None else f"{group.base_norm:.4g}"
        grid.add_row(
            words(group.name),
            count(group.elements),
            base,
            f"{_share(group.norms[longest], group.base_norm) or f'{group.norms[longest]:.4g}'} ({longest + 1})",
            _signed(group.mean_cosine),
            _lowest(group),
            "" if group.conflict is None else f"{group.conflict:.2f}",
        )
    return grid


def _lowest(group: Group) -> str:
    pairs = [
        (cosine, i, j)
        for i, row in enumerate(group.cosines)
        for j, cosine in enumerate(row)
        if i < j and cosine is not None
    ]
    if not pairs:
        return ""
    cosine, i, j = min(pairs)
    return f"{_signed(cosine)} ({i + 1}, {j + 1})"


def _signed(cosine: float | None) -> str:
    return "" if cosine is None else f"{round(cosine, 2) + 0.0:+.2f}"  # no -0.00


def _share(norm: float, base_norm: float | None) -> str:
    return f"{norm / base_norm:.2%}" if base_norm else ""
