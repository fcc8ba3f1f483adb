"""Small files that want to be large in memory: read in pieces, or refused before they are."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consortium.errors import BadInput
from consortium.ids import Language, digest_of
from consortium.jobs import Tokenizer
from consortium.manifests import Contribution, FileRef
from consortium.store import BlobStore
from coordinator.inspection import _tokenizer, load_scores
from site_agent.data import records
from site_agent.data.streams import Stream, state_of

MIB = 1 << 20


def rows_of(path: Path, *columns: str) -> tuple[list[str], int]:
    """What the rows were, and the most that was in memory for them."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    try:
        found = [
            record.fault or f"{len(record.payload[columns[0]])} bytes"
            for record in records.rows(state_of(path), columns, 0)
        ]
        return found, pool.max_memory()
    finally:
        pa.set_memory_pool(before)


def test_a_text_that_all_rows_of_a_parquet_file_name_is_in_memory_once(tmp_path: Path) -> None:
    path, text = tmp_path / "bomb.parquet", "x" * (4 * MIB)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 4096  # for 1.2 GiB
    found, most = rows_of(path, "text")
    assert found == [f"{4 * MIB} bytes"] * 300
    assert most < 100 * MIB


def test_a_row_over_the_limit_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LINE_BYTES_MAX", 1000)
    path = tmp_path / "long.parquet"
    many = [["bg"]] * 2 + [["bg"] * 10_001]
    pq.write_table(pa.table({"text": ["a" * 1000, "a" * 1001, "b"], "lang": many}), path)
    assert rows_of(path, "text", "lang")[0] == ["1000 bytes", "line too long", "line too long"]


def test_a_paragraph_of_countless_short_lines_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LINE_BYTES_MAX", 10_000)
    path = tmp_path / "short.txt"
    path.write_bytes(b"\n" + b"a\n" * 5000)  # as much as one line may have
    with Stream(path) as stream:
        blocks = list(records.paragraphs(path, stream))
    assert len(blocks) > 20
    assert b"\n".join(block.payload for block in blocks) == b"\n".join([b"a"] * 5000)


def test_json_of_a_site_is_read_as_far_as_memory_goes(tmp_path: Path) -> None:
    """What is delivered is read again after each crash, so one file that ends the coordinator would end it for good."""
    store = BlobStore(tmp_path)
    scores = store.put_bytes(b"[" * (48 * MIB + 1))
    with pytest.raises(BadInput, match=rf"{scores.size} bytes; at most {48 * MIB} are allowed here"):
        load_scores(scores, store)
    work = Tokenizer(languages=(Language("bg"),), vocabulary_size=1000, bytes_per_language=1)
    tokenizer = store.put_bytes(b"[" * (5 * MIB))
    delivered = Contribution(
        job="demo-tokenizer",  # type: ignore[arg-type]
        attempt="demo-tokenizer.a1",  # type: ignore[arg-type]
        campaign="demo",  # type: ignore[arg-type]
        site="sofia",  # type: ignore[arg-type]
        assignment=digest_of(b""),
        artifacts={"tokenizer": FileRef(digest=tokenizer.digest, size=tokenizer.size)},
    )
    with pytest.raises(BadInput, match=f"at most {4 * MIB + 256_000} are allowed here"):
        _tokenizer(work, delivered, store)
