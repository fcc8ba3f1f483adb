"""Both ways to run the codecs."""

import pytest

from consortium.codecs import kernels, portable
from consortium.codecs.native import NativeCodecs


@pytest.fixture(scope="session")
def native() -> NativeCodecs:
    try:
        return NativeCodecs()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["portable", "native"])
def codecs(request: pytest.FixtureRequest) -> kernels.Codecs:
    return portable if request.param == "portable" else request.getfixturevalue("native")
