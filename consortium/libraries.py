"""How our kernels in C are found: plain libraries beside their source, loaded through ctypes."""

import ctypes
import hashlib
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def load_library(folder: Path, name: str, source: str) -> ctypes.CDLL:
    """The library ``name`` in ``folder``, built from the file ``source`` there.

    Raises ImportError, with the reason, where it was not built, or not from the source that lies there.
    """
    if sys.byteorder != "little":
        raise ImportError(f"{name} is for little-endian machines")
    built = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"{name}{suffix}").exists()]
    if not built:
        raise ImportError(
            f"the kernels in C ({name}) were not built; install again where there is a C compiler"
        )
    try:
        library = ctypes.CDLL(str(built[0]))
    except OSError as error:
        raise ImportError(f"{name} cannot be loaded ({error}); install again") from error
    library.kernels_source.restype = ctypes.c_char_p
    path = folder / source
    if path.exists() and library.kernels_source().decode() != hashlib.sha256(path.read_bytes()).hexdigest():
        raise ImportError(f"{built[0].name} was built from another {source}; install again")
    return library
