"""Where an app's random numbers begin: the same place each time the same work is done again."""

import importlib.util
import random
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from consortium.ids import digest_of


def seed(name: str) -> None:
    """Seed Python's, NumPy's and torch's random numbers by a name; torch's when it is imported, if it ever is."""
    import numpy as np

    number = int(digest_of(name.encode())[:8], 16)
    random.seed(number)
    np.random.seed(number)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _WhenTorchComes)]
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number)
    else:  # to import it only to seed it would cost every app a second or two
        sys.meta_path.insert(0, _WhenTorchComes(number))


class _WhenTorchComes(MetaPathFinder):
    """Finds torch where it would be found anyway, and seeds it once it is loaded."""

    def __init__(self, number: int) -> None:
        self._number = number

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Seeding(spec.loader, self._number)
        return spec


class _Seeding(Loader):
    def __init__(self, loader: Loader, number: int) -> None:
        self._loader = loader
        self._number = number

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.manual_seed(self._number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # resources, sources: as of the loader itself
