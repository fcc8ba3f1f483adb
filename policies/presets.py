"""What a preset's name stands for, and a preset with some of its keys changed.

Where a file takes a preset, ``key: name`` and ``key: {preset: name, other: value}`` both do; the presets of one
kind are the YAML files of one folder here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from consortium.checking import Place, nearest, shown
from consortium.errors import BadInput
from consortium.loading import Document, Problems, read

HERE = Path(__file__).parent
_Plain = dict[str, Any]


def names_in(folder: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (HERE / folder).glob("*.yaml")))


def read_preset(folder: str, what: str, name: str) -> Document:
    """Raises BadInput if ``folder`` has no such preset; ``what`` is the kind's name for people."""
    if name not in names_in(folder):
        raise BadInput(f"no {what} preset is called {shown(name)}; {nearest(name, names_in(folder))}")
    return read(HERE / folder / f"{name}.yaml")


def filled_in(
    folder: str,
    section: str,
    value: Any,
    problems: Problems,
    spelt_out: Callable[[_Plain], _Plain] = lambda plain: plain,
) -> Any:
    """The plain mapping that ``diloco``, or ``{preset: diloco, outer: {momentum: 0.8}}``, stands for.

    section    the key in the file; what is wrong with it is noted in ``problems``
    spelt_out  writes out what both the preset and the file may say shorter, before one is laid over the other
    """
    name, own = value, {}
    place: Place = (section,)
    if isinstance(value, dict):
        value = spelt_out(value)
        if "preset" not in value:
            return value
        name = value["preset"]
        own = {key: value[key] for key in value if key != "preset"}
        place = (section, "preset")
    if not isinstance(name, str):
        problems.add(place, f"{shown(name)} is no preset; {nearest('', names_in(folder))}")
        return own
    try:
        preset = spelt_out(read_preset(folder, section, name).value)
    except BadInput as error:
        problems.add(place, str(error))
        return own
    return _overlaid(preset, own)


def _overlaid(below: _Plain, above: _Plain) -> _Plain:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlaid(merged[key], value) if both else value
    return merged
