"""Both ways to run the codecs, and a native library built for the tests where the package has none."""

import shutil
import subprocess
from pathlib import Path

import pytest

from consortium.codecs import kernels, portable
from consortium.codecs.native import NativeCodecs


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeCodecs:
    built = kernels.choose("auto")
    if isinstance(built, NativeCodecs):
        return built
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("native") / "codecs.so"
    source = Path(kernels.__file__).with_name("codecs.c")
    subprocess.run(
        [compiler, "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-o", library, source], check=True
    )
    return NativeCodecs(library)


@pytest.fixture(params=["portable", "native"])
def codecs(request: pytest.FixtureRequest) -> kernels.Codecs:
    return portable if request.param == "portable" else request.getfixturevalue("native")
