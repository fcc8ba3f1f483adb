"""Which ServerApp is to run and which ClientApp belongs to it: a Flower app's folder, or a module's attribute."""

import importlib
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from consortium.errors import BadInput
from consortium.files import disk_errors
from consortium.flower.runs import Config, ConfigValue, app_reference

_PROJECT = "pyproject.toml"


class AppFiles(NamedTuple):
    """What a Flower app says of itself."""

    server: str  #: ``module:attribute``
    client: str
    config: Config  #: defaults of its run config, nested tables joined by dots as Flower does
    folder: Path | None  #: where its modules lie; None: they are installed


def find_app(place: str, client: str | None) -> AppFiles:
    """The app that ``place`` names: a folder with Flower's pyproject.toml, or ``module:attribute`` of its ServerApp.

    client  the ClientApp; the folder knows its own
    Raises BadInput with what is missing.
    """
    folder = Path(place)
    if not folder.is_dir():
        if client is None:
            raise BadInput(
                f"{place}: no folder of a Flower app; for a module:attribute give --client-app, too"
            )
        return AppFiles(app_reference(place), app_reference(client), {}, None)
    path = folder / _PROJECT
    with disk_errors(path):
        text = path.read_text(encoding="utf-8")
    try:
        app = tomllib.loads(text).get("tool", {}).get("flwr", {}).get("app", {})
        parts, config = app["components"], app.get("config", {})
        server, own = str(parts["serverapp"]), str(parts["clientapp"])
    except (tomllib.TOMLDecodeError, KeyError, AttributeError, TypeError) as error:
        raise BadInput(
            f"{path}: no Flower app ({type(error).__name__}: {error}); it needs serverapp and clientapp below "
            "[tool.flwr.app.components]"
        ) from error
    return AppFiles(
        app_reference(server), app_reference(client or own), dict(_flat(config, str(path))), folder.resolve()
    )


def _flat(table: dict[str, Any], where: str, prefix: str = "") -> list[tuple[str, ConfigValue]]:
    found: list[tuple[str, ConfigValue]] = []
    for key, value in sorted(table.items()):
        if isinstance(value, dict):
            found += _flat(value, where, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            found.append((f"{prefix}{key}", value))
        else:
            raise BadInput(
                f"{where}: config {prefix}{key} is a {type(value).__name__}; use a number, text or truth"
            )
    return found


def overridden(config: Config, settings: list[str]) -> Config:
    """The config with each ``key=value`` of ``settings`` in it; a value is TOML, or else plain text."""
    changed = dict(config)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"setting {setting!r}: expected key=value")
        try:
            read = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            read = value
        if not isinstance(read, bool | int | float | str):
            raise BadInput(f"setting {setting!r}: use a number, text or truth")
        changed[key.strip()] = read
    return dict(sorted(changed.items()))


def load_server_app(app: AppFiles) -> Any:
    """The ServerApp. Raises BadInput if there is none of that name."""
    from consortium.flower.compat import ServerApp

    if app.folder is not None:
        sys.path.insert(0, str(app.folder))
    module, _, names = app.server.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"the ServerApp {app.server} cannot be loaded: {error}") from error
    if not isinstance(found, ServerApp):
        raise BadInput(f"{app.server} is a {type(found).__name__}, no Flower ServerApp")
    return found
