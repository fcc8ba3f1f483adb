"""Pieces are, byte for byte, the messages that protobuf would have made; what is no piece is left to protobuf."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from sprachbund.v1 import artifact_pb2

from consortium.channels import CHUNK_BYTES
from consortium.pieces import Piece, read_download, read_upload, written

DATA = st.binary(max_size=300) | st.sampled_from([b"x" * 127, b"x" * 128, b"y" * 16_384, b"z" * CHUNK_BYTES])
SIZES = st.integers(0, 1 << 62)


@given(data=DATA, size=SIZES)
def test_a_piece_is_written_as_protobuf_would(data: bytes, size: int) -> None:
    assert written(Piece(data, size)) == artifact_pb2.DownloadResponse(
        data=data, size=size
    ).SerializeToString(deterministic=True)
    if data:
        upload = artifact_pb2.UploadRequest(data=data)
        assert written(Piece(data)) == written(upload) == upload.SerializeToString()


@given(data=DATA, size=SIZES)
def test_a_message_is_read_as_a_piece(data: bytes, size: int) -> None:
    found = read_download(artifact_pb2.DownloadResponse(data=data, size=size).SerializeToString())
    assert (bytes(found.data), found.size) == (data, size)
    sent = read_upload(artifact_pb2.UploadRequest(data=data).SerializeToString())
    assert sent.WhichOneof("part") == "data" and bytes(sent.data) == data


@given(data=st.binary(max_size=40))
@example(data=b"\x12\x05abc")  # shorter than it says
@example(data=b"\x12\x01abc")  # something follows
@example(data=b"\x12" + b"\xff" * 12)  # a length without an end
@example(data=b"\x08" + b"\xff" * 9 + b"\x01\x12\x01a")
@example(data=b"\x12\x01a\x12\x01b")  # twice; the last counts
def test_any_bytes_mean_what_they_mean_to_protobuf(data: bytes) -> None:
    for read, message in (
        (read_upload, artifact_pb2.UploadRequest),
        (read_download, artifact_pb2.DownloadResponse),
    ):
        try:
            want = message.FromString(data)
        except DecodeError:
            with pytest.raises(DecodeError):
                read(data)
            continue
        found = read(data)
        assert bytes(found.data) == want.data
        if message is artifact_pb2.UploadRequest:
            assert found.WhichOneof("part") == want.WhichOneof("part")
        else:
            assert found.size == want.size


def test_a_header_stays_a_message() -> None:
    header = artifact_pb2.UploadRequest(header=artifact_pb2.UploadHeader(digest="a" * 64, size=9))
    assert read_upload(header.SerializeToString()) == header
    assert written(header) == header.SerializeToString()
