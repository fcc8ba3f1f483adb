"""Whoever looks at the consortium is told that a site's allocation is nearly spent, or that it is not listened to."""

from consortium_in_views import SITES
from rich.console import Console

from console.screens.live import reasons_table
from consortium.canonical import replace
from consortium.views import AllocationView, ConsortiumView, SiteView


def why(*sites: SiteView) -> str:
    view = ConsortiumView(
        consortium="balkan", sequence=1, head="", now=0.0, sites=sites, campaigns=(), jobs=(), attempts=()
    )
    console = Console(width=120, record=True, file=None, quiet=True)
    if (found := reasons_table(view, 120, 10)) is None:
        return ""
    console.quiet = False
    with console.capture() as shown:
        console.print(found)
    return shown.get()


def granted(used: float) -> SiteView:
    one = AllocationView(name="eurohpc-7", granted=100.0, used=used, held_back=0.0, until=None)
    return replace(SITES[0], allocations=(one,))


def test_a_site_with_enough_left_is_no_trouble() -> None:
    assert why(*SITES, granted(79.0)) == ""


def test_an_allocation_that_is_nearly_spent_is_told() -> None:
    said = why(granted(96.0))
    assert "north" in said and "spent" in said
    assert "allocation eurohpc-7 is 96 % used: 4 of 100 GPU-hours are left" in said
    assert "is 103 % used: 0 of 100 GPU-hours" in why(granted(103.0))


def test_a_site_that_is_not_listened_to_is_told() -> None:
    said = why(replace(SITES[0], held_back=("it gave jobs back more than 400 times",)))
    assert "held back" in said and "it gave jobs back more than 400 times" in said
