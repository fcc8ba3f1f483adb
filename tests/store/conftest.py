from collections.abc import Callable
from pathlib import Path

import pytest
from artifact_bench import Coordinator, CountingStore, bytes_of


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(CountingStore(tmp_path / "coordinator"))


@pytest.fixture
def file(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a file of so many bytes that do not repeat."""

    def make(size: int) -> Path:
        path = tmp_path / f"file-{size}"
        path.write_bytes(bytes_of(size))
        return path

    return make
