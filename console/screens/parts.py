"""How single things look in every screen: a bar, a number, a state, a table.

States are told by sign and word first, by colour second: the screens read the same without colour.
"""

from rich.table import Table
from rich.text import Text

from consortium.harmless import harmless
from consortium.views import SiteView

_LOOKS = {
    "good": ("●", "green"),
    "busy": ("▶", "cyan"),
    "wait": ("○", "yellow"),
    "bad": ("✗", "bold red"),
    "done": ("✓", "green"),
    "off": ("·", "dim"),
}
_LOOK_OF = {
    # sites
    "enrolled": "good",
    "draining": "wait",
    "suspended": "bad",
    # jobs and attempts
    "planned": "wait",
    "leased": "busy",
    "staging": "wait",
    "queued": "wait",
    "running": "busy",
    "uploading": "busy",
    "delivered": "busy",
    "ended": "done",
    "done": "done",
    "failed": "bad",
    "cancelled": "off",
    # rounds
    "training": "busy",
    "merging": "busy",
    "evaluating": "busy",
    "closed": "done",
    # campaigns and versions
    "open": "busy",
    "completed": "done",
    "stopped": "off",
    "candidate": "wait",
    "promoted": "done",
    "rejected": "bad",
    # what a site says or spends
    "held back": "bad",
    "spent": "bad",
}


def plain(text: str) -> str:
    """``text`` without anything that could steer a terminal: names and reasons may come from another site."""
    return harmless(text)


def words(text: str, style: str = "") -> Text:
    return Text(plain(text), style=style)


def state(word: str) -> Text:
    """A state with its sign; a word this version does not know is shown as it is."""
    sign, style = _LOOKS[_LOOK_OF.get(word, "off")]
    return Text(f"{sign} {plain(word)}", style=style)


def bar(done: float, total: float, width: int, style: str = "cyan") -> Text:
    """A bar of ``width`` columns; empty when ``total`` is 0."""
    full = int(width * min(1.0, done / total)) if total > 0 else 0
    return Text.assemble(("━" * full, style), ("─" * (width - full), "bright_black"))


def count(number: float) -> str:
    """Three digits are enough for a glance: 950, 12.3k, 4.56M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            share = number / size
            return f"{share:.{2 if share < 10 else 1 if share < 100 else 0}f}{suffix}"
    return f"{number:.0f}"


def ago(seconds: float | None) -> Text:
    """When a site was last heard of."""
    if seconds is None:
        return Text("not yet", style="yellow")
    if seconds < 2:
        return Text("now")
    if seconds < 120:
        return Text(f"{seconds:.0f} s ago", style="" if seconds < 60 else "yellow")
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return Text(f"{seconds / size:.0f} {unit} ago", style="yellow")
    raise AssertionError("two minutes or more are at least two minutes")


def used(site: SiteView) -> Text:
    """What a site has spent of its allocation, loud from 80 percent on."""
    if not site.allocations:
        return Text(f"{site.gpu_hours:.4g}")
    worst = max(site.allocations, key=lambda one: (one.percent, one.name))
    style = "bold red" if worst.percent >= 95 else "yellow" if worst.percent >= 80 else ""
    return Text(f"{worst.used:.4g} of {worst.granted:.4g} ({worst.percent:.0f} %)", style=style)


def spent(site: SiteView) -> list[str]:
    """What its people should know of the site's allocations, from 80 percent on."""
    return [
        f"allocation {one.name} is {one.percent:.0f} % used: {max(0.0, one.granted - one.used):.4g} of "
        f"{one.granted:.4g} GPU-hours are left"
        for one in sorted(site.allocations, key=lambda one: one.name)
        if one.percent >= 80
    ]


def window(site: SiteView, now: float) -> Text:
    """Whether a site may be given work now, and when that changes."""
    if not site.has_windows:
        return Text("always open")
    left = "" if site.changes_at is None else f" {ahead(site.changes_at - now)}"
    if site.is_open:
        return Text(f"open{left and ' for' + left}", style="green")
    return Text(f"opens{left and ' in' + left}" if left else "closed", style="yellow")


def ahead(seconds: float) -> str:
    """How long until then: ``40 min``, ``7.5 h``, ``3 days``."""
    if seconds < 90 * 60:
        return f"{max(0.0, seconds) / 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def length(hours: float) -> str:
    """Hours for a glance: ``0``, ``20 min``, ``7.5 h``, ``12 d``."""
    if hours == 0:
        return "0"
    if hours < 1.5:
        return f"{hours * 60:.2g} min" if hours * 60 < 10 else f"{hours * 60:.0f} min"
    return f"{hours:.3g} h" if hours < 96 else f"{hours / 24:.3g} d"


def table(*columns: str, width: int) -> Table:
    """A table without lines. A column named ``>x`` is right-aligned; ``x…`` takes what room is left."""
    grid = Table(
        box=None,
        width=width,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold bright_blue",
        show_edge=False,
    )
    for column in columns:
        grid.add_column(
            column.strip(">…"),
            justify="right" if column.startswith(">") else "left",
            ratio=1 if column.endswith("…") else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    grid.expand = True
    return grid
