"""How parameters are written in YAML: short, as mergekit's users know them, and as facts.

density: 0.5                                     for every tensor
density: [0.2, 0.8]                              a gradient from the first layer to the last
density: [{filter: mlp, value: 0.5}, {value: 1}] by parts of tensor names; the first that fits counts
"""

from collections.abc import Iterator
from typing import Any

from consortium.checking import Place, Problem, nearest, shown
from consortium.errors import BadInput
from consortium.merging.recipe import MethodName, Setting, Settings
from consortium.merging.recipes.signatures import SIGNATURES, Parameter, Value

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def written_out(parameters: Any) -> Any:
    """``{density: 0.5}`` as the plain values that a Recipe's ``parameters`` decode from; else unchanged."""
    if not isinstance(parameters, dict):
        return parameters
    return {name: _listed(value) for name, value in parameters.items()}


def shorthand(settings: Settings) -> dict[str, Any]:
    """The plain values of ``settings`` in their shortest spelling; ``written_out`` is the way back."""
    return {name: _short(entries) for name, entries in settings.items()}


def problems_of_values(settings: Settings, method: MethodName, place: Place) -> Iterator[Problem]:
    """What in a recipe's settings the method does not know, or would refuse in every tensor."""
    known = SIGNATURES[method].parameters
    for name, entries in settings.items():
        if name not in known:
            where = f"{method} has no parameter {shown(name)}"
            yield (*place, name), f"{where}; {nearest(name, known)}" if known else f"{where}; remove it"
            continue
        if not entries:
            yield (*place, name), "nothing is set; write a value, or remove it"
        for index, entry in enumerate(entries):
            try:
                checked(entry, known[name])
            except BadInput as error:
                yield (*place, name, index), str(error)


def checked(setting: Setting, parameter: Parameter) -> Setting:
    """The setting with values of the parameter's type. Raises BadInput with the rule."""
    if not isinstance(setting.value, tuple):
        return Setting(value=parameter.checked(setting.value), filter=setting.filter)
    if not setting.value or isinstance(parameter.default, bool):
        raise BadInput(f"is a list of {len(setting.value)} numbers; write {parameter.rule}")
    values = tuple(float(parameter.checked(value)) for value in setting.value)
    return Setting(value=values, filter=setting.filter)


def typed(plain: Any, parameter: Parameter) -> Any:
    """Text in a written-out setting as the number or switch that mergekit takes it for (``1e-5``, ``yes``)."""
    if not isinstance(plain, dict) or "value" not in plain:
        return plain
    value = plain["value"]
    found = [_typed(one, parameter) for one in value] if isinstance(value, list) else _typed(value, parameter)
    return {**plain, "value": found}


def _typed(value: Any, parameter: Parameter) -> Value | Any:
    if not isinstance(value, str):
        return value
    if isinstance(parameter.default, bool):
        return _WORDS.get(value.lower(), value)
    try:
        return float(value)
    except ValueError:
        return value


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return [_everywhere(value)]
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return [_everywhere(entry) if isinstance(entry, dict) else entry for entry in value]
    return [{"value": value}]


def _everywhere(entry: dict[str, Any]) -> dict[str, Any]:
    """mergekit's other word for no filter is ``*``."""
    return {**entry, "filter": None} if entry.get("filter") in ("*", "") else entry


def _short(entries: tuple[Setting, ...]) -> Any:
    if len(entries) == 1 and entries[0].filter is None:
        return _plain(entries[0].value)
    return [
        {**({} if entry.filter is None else {"filter": entry.filter}), "value": _plain(entry.value)}
        for entry in entries
    ]


def _plain(value: Value | tuple[float, ...]) -> Any:
    return list(value) if isinstance(value, tuple) else value
