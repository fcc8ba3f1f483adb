"""Whether the campaign was worth it: bits per byte per language, beside what it must be compared with."""

from typing import NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from console.screens.parts import plain, words
from consortium.views import CampaignView, ModelView


class Comparison(NamedTuple):
    """The models worth a column; None: there is none, or it was not scored on every language."""

    base: ModelView | None  #: what the first round's specialists started from
    specialists: tuple[ModelView, ...]  #: each site alone with its share of the compute, best mean first
    rival: ModelView | None  #: public text alone with all the compute
    promoted: ModelView | None  #: the head, if a round made it


def compare(campaign: CampaignView) -> Comparison:
    """Find the models in a campaign's view, of those scored on all its languages, so that means compare."""
    scored = [model for model in campaign.models if model.mean is not None]
    versions = {model.version: model for model in scored if model.role == "version"}
    proper = sorted((one for one in campaign.rounds if one.round >= 1), key=lambda one: one.round)
    start = proper[0].base if proper else campaign.head
    specialists = sorted((m for m in scored if m.role == "specialist"), key=lambda m: (m.mean or 0.0, m.name))
    rivals = sorted((m for m in scored if m.role == "rival"), key=lambda m: (m.mean or 0.0, m.name))
    return Comparison(
        base=versions.get(start or ""),
        specialists=tuple(specialists),
        rival=rivals[0] if rivals else None,
        promoted=versions.get(campaign.head or "") if campaign.head != start else None,
    )


def results_table(campaign: CampaignView) -> RenderableType:
    """Bits per byte per language, the best of each row in bold, and below it who won, whichever way."""
    found = compare(campaign)
    named = (
        ("base", found.base),
        ("best specialist", found.specialists[0] if found.specialists else None),
        ("rival", found.rival),
        ("promoted", found.promoted),
    )
    columns = [(title, model) for title, model in named if model is not None]
    if not columns:
        return words(f"{campaign.campaign}: no model has been scored on every language yet", "yellow")

    grid = Table(
        title=words(f"{campaign.campaign}: bits per byte on held-out text, lower is better", "bold"),
        title_justify="left",
        box=box.HORIZONTALS,
        show_edge=False,
        border_style="bright_black",
        padding=(0, 2, 0, 0),
        header_style="bright_blue",
    )
    grid.add_column("language\n")
    for title, model in columns:
        grid.add_column(Text(f"{title}\n{plain(model.name)}"), justify="right")
    if found.base and found.promoted:
        grid.add_column("promoted\nvs base", justify="right")
    scores = [{one.language: one.bits_per_byte for one in model.results} for _, model in columns]
    for language in sorted(campaign.languages):
        grid.add_row(words(language, "magenta"), *_row([score[language] for score in scores], found))
    grid.add_section()
    means = [model.mean for _, model in columns if model.mean is not None]
    grid.add_row(Text("mean", style="bold"), *_row(means, found))
    return Group(grid, Text(), _verdict(found))


def _row(values: list[float], found: Comparison) -> list[Text]:
    """One line of numbers; where base and promoted both stand, the change between them closes it."""
    best = min(values)
    cells = [
        Text(f"{value:.3f}", style="bold green" if value == best and len(values) > 1 else "")
        for value in values
    ]
    if found.base and found.promoted:
        cells.append(_change(values[0], values[-1]))
    return cells


def _change(before: float, after: float) -> Text:
    growth = after / before - 1.0
    return Text(f"{growth:+.1%}", style="green" if growth < 0 else "red" if growth > 0 else "")


def _verdict(found: Comparison) -> Text:
    """Who won, in sentences."""
    if found.promoted is None or found.promoted.mean is None:
        return words("No round's model has been promoted and scored yet.", "yellow")
    name, mean = found.promoted.name, found.promoted.mean
    sentences = []
    if found.base:
        before = {one.language: one.bits_per_byte for one in found.base.results}
        after = {one.language: one.bits_per_byte for one in found.promoted.results}
        won = [language for language in after if after[language] < before.get(language, 0.0)]
        lost = sorted(after.keys() - set(won))
        sentences.append(
            f"{name} beats its base {found.base.name} in {len(won)} of {len(after)} languages"
            + (f", but not in {', '.join(lost)}." if lost else ".")
        )
    if found.specialists:
        ahead = [one.name for one in found.specialists if one.mean is not None and one.mean <= mean]
        sentences.append(
            f"Its mean does not beat a site alone: {', '.join(ahead)}."
            if ahead
            else f"Its mean beats every site alone ({len(found.specialists)} specialists)."
        )
    if found.rival and found.rival.mean is not None:
        sentences.append(
            f"The rival, {found.rival.name} with the same total compute, is "
            f"{'worse' if found.rival.mean > mean else 'as good or better'} on the mean: "
            f"{found.rival.mean:.3f} against {mean:.3f}."
        )
    return words(" ".join(sentences))
