"""What the page on simulation says of a plan's keys, held to the code."""

import msgspec
from test_documents import EMPTY, PICTURES, in_words, rows

from console.screens.timeline import timeline
from consortium.canonical import Fact, decode
from simulation.outcome import Outcome
from simulation.plan import PlanInFile, SiteFamily, SitePlan, Spread


def test_every_key_of_a_simulation_is_explained() -> None:
    check_flat(rows("simulation.md", "The plan file", 3), PlanInFile, ("description schema",))
    check_flat(rows("simulation.md", "A site of a plan", 3), SitePlan)
    ranges = rows("simulation.md", "Sites that are drawn", 2)
    for field in msgspec.structs.fields(SiteFamily):
        if field.name == "like":
            continue
        one, said = field.default, ranges.pop(field.name)[0]
        if isinstance(one, Spread):
            least = f", least {in_words(one.least)}" if one.least else ""
            assert said == f"median {in_words(one.median)}, sigma {in_words(one.sigma)}{least}", field.name
        else:
            assert said == in_words(one), field.name
    assert not ranges


def check_flat(table: dict[str, list[str]], kind: type[Fact], together: tuple[str, ...] = ()) -> None:
    """Keys of a fact itself; what its facts hold is told beside them."""
    named = {key: cells for key, cells in table.items() if key not in together}
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    assert {*named, *(word for line in together for word in line.split())} == set(fields)
    for key, cells in named.items():
        default = "required" if fields[key].required else fields[key].default
        empty = default in (None, (), "", {}, msgspec.NODEFAULT)
        assert cells[0] in EMPTY if empty else cells[0] == in_words(default), (key, cells[0], default)


def test_the_picture_is_what_the_program_draws_today() -> None:
    found = decode((PICTURES / "simulation.json").read_bytes(), Outcome)
    assert (PICTURES / "simulation.svg").read_text(encoding="utf-8") == timeline(found)
