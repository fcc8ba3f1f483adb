"""Every parser that reads another party's bytes: whatever comes, it answers with a fact or one of our errors.

Each is given good input with bytes flipped, cut, doubled or exchanged for what breaks parsers, and plain noise. Short
in CI and the same every time; `make soak` goes on for as long as it is given.
"""

import contextlib
import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from sprachbund.v1 import site_pb2

from consortium.bundles import Head, open_bundle, sign_head
from consortium.canonical import decode, encode
from consortium.codecs.reading import open_delta
from consortium.courier import ENROLMENT_ASKED, SAID, EnrolmentAsked, claimed, signed_by_its_key
from consortium.errors import SprachbundError
from consortium.flower.letters import read_letter
from consortium.forecasts import Assumptions
from consortium.identity import Authority, check_signing_request, identity_of, signing_request
from consortium.ids import Digest, Language, SiteName
from consortium.invitation import Invitation
from consortium.jobs import Assignment
from consortium.loading import parse
from consortium.manifests import Contribution, FileRef, LanguageScore, Scores, VersionManifest
from consortium.merging.checksums import read_checksums
from consortium.merging.operands import ROW_COUNTS, read_row_counts
from consortium.merging.recipes.files import load as load_merge
from consortium.signing import (
    ASSIGNMENT,
    CONTRIBUTION,
    Checkpoint,
    key_of_certificate,
    new_key,
    new_ledger_key,
    open_envelope,
    seal,
    sign,
    sign_checkpoint,
)
from consortium.tensors import Checkpoint as Model
from consortium.tensors import read_header
from consortium.versions import lay_out
from consortium.witnesses import kept_in
from coordinator.config import load_coordinator_config
from coordinator.core.events import AnyEvent
from policies.campaign import Campaign
from policies.membership import load_membership
from policies.reading import load_campaign
from site_agent.config import Text, load_site_config
from site_agent.data import records
from site_agent.data.documents import document_of
from site_agent.data.streams import Stream
from site_agent.wire import offer

ROOT = Path(__file__).parents[2]
SOAK_EXAMPLES = int(os.environ.get("SPRACHBUND_FUZZ_EXAMPLES", "20000"))
KEY, LEDGER_KEY, AUTHORITY = new_key(), new_ledger_key(), Authority.create("balkan", 1e9)
PUBLIC = LEDGER_KEY.public_key().public_bytes_raw()
SITE, D = SiteName("sofia"), Digest("a" * 64)
REF = FileRef(digest=D, size=3)
CERTIFICATE = AUTHORITY.site(signing_request(SITE, KEY), SITE, 1e9)


class Parser(NamedTuple):
    """How bytes are read, and bytes that it likes."""

    read: Callable[[Path], object]  #: of a file with the bytes
    seeds: tuple[bytes, ...]
    suffix: str = ".bin"


def of_bytes(read: Callable[[bytes], object]) -> Callable[[Path], object]:
    return lambda path: read(path.read_bytes())


def fact(kind: Any, *seeds: Any) -> Parser:
    return Parser(of_bytes(lambda data: decode(data, kind, "it")), tuple(encode(seed) for seed in seeds))


def header(path: Path) -> None:
    read_header(path)
    with open_delta(path) as delta:
        for name in delta:
            if delta[name].num_elements < 1 << 20:
                delta.array(name)


def model(path: Path) -> None:
    """The file as one shard, and as the index of several."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors.index.json").write_bytes(path.read_bytes())
    with Model(folder) as found:
        list(found)


def checksums(path: Path) -> None:
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    (folder / "checksums.json").write_bytes(path.read_bytes())
    read_checksums(folder)


def bundle(path: Path) -> None:
    with open_bundle(path) as opened:
        statement = claimed(opened.head)
        if not isinstance(statement, EnrolmentAsked):
            opened.verify(statement)


def head(path: Path) -> None:
    found = decode(path.read_bytes(), Head, "head")
    claimed(found)
    signed_by_its_key(found)


def version(path: Path) -> None:
    """Nothing is written outside the folder, wherever the manifest's names would lead."""
    manifest = decode(path.read_bytes(), VersionManifest, "manifest")
    lay_out(manifest, lambda digest: path, path.parent / "room" / "model")


def text(path: Path) -> None:
    source = Text(language=Language("bg"), path=str(path), access="private", licence="CC0-1.0")
    with Stream(path) as stream:
        for record in records.lines(stream):
            document_of(record, "jsonl", source)
    with Stream(path) as stream:
        for record in records.warc(stream):
            document_of(record, "wet", source)


def assignment(path: Path) -> None:
    """What a coordinator signed: with its own signature on whatever the bytes are."""
    data = path.read_bytes()
    signed = site_pb2.SignedAssignment(
        attempt="demo_r1-train-sofia.a1", job=data, signature=sign(LEDGER_KEY, ASSIGNMENT, data)
    )
    offer(signed, SITE, PUBLIC)


def tensors(**arrays: np.ndarray) -> bytes:
    return bytes(save(arrays))


CONTRIBUTED = Contribution(
    job="demo_r1-train-sofia", attempt="demo_r1-train-sofia.a1", campaign="demo", site=SITE, assignment=D, base=D,
    artifacts={"delta": REF}, steps=3, planned_steps=3, tokens={"bg": 48},
)  # fmt: skip
SCORES = Scores(
    site=SITE, subjects={"x": {Language("bg"): LanguageScore(heldout=D, nats=(1.5,), bytes=(3,))}}
)
ASKED = EnrolmentAsked(
    consortium="balkan", site=SITE, token="t", signing_request=signing_request(SITE, KEY).decode()
)
LINES = b"".join(
    json.dumps({"id": str(n), "text": "аз съм тук " * n, "lang": ["bul_Cyrl"]}).encode() + b"\n"
    for n in range(4)
)
WARC = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 5\r\n\r\nhello\r\n\r\n"
EXAMPLES = ROOT / "examples"
CAMPAIGN = (EXAMPLES / "campaign-tiny.yaml").read_bytes()
SITE_FILE = b"site: sofia\nhome: home\ncoordinator: c.example:7443\nenrolment: c.example:7444\n" + (
    b"text:\n  - {language: bg, path: text, access: private, licence: CC0-1.0}\n"
)
RECIPE = b"""merge_method: ties
base_model: base
dtype: float32
models:
  - {model: &a one, parameters: {weight: 1.0, density: [0.1, 0.9]}}
  - {model: two, parameters: {weight: [{filter: mlp, value: 0.5}, {value: 1}]}}
"""
BUNDLE_HEAD = encode(sign_head(ASKED, ENROLMENT_ASKED, KEY))

PARSERS = {
    "contribution": fact(Contribution, CONTRIBUTED),
    "version": Parser(
        version, (encode(VersionManifest(base=None, files={"config.json": REF, "a/b.json": REF})),)
    ),
    "scores": fact(Scores, SCORES),
    "checkpoint": fact(Checkpoint, sign_checkpoint(LEDGER_KEY, 1, "0" * 64)),
    "checkpoints": Parser(
        lambda path: list(kept_in(path)), (encode(sign_checkpoint(LEDGER_KEY, 1, "0" * 64)) + b"\n",)
    ),
    "campaign on the wire": fact(Campaign),
    "assumptions": fact(Assumptions),
    "event": fact(
        AnyEvent, {"kind": "SiteStatusChanged", "site": "sofia", "status": "enrolled", "reason": "x"}
    ),
    "assignment": Parser(assignment, (b'{"schema":1}',)),
    "assignment's fact": fact(Assignment),
    "letter": Parser(of_bytes(read_letter), (b"{}",)),
    "envelope": Parser(
        of_bytes(lambda data: open_envelope(data, CONTRIBUTION, KEY.public_key())),
        (seal(encode(CONTRIBUTED), CONTRIBUTION, KEY),),
    ),
    "bundle head": Parser(head, (BUNDLE_HEAD, encode(sign_head(ASKED, SAID, KEY, CERTIFICATE)))),
    "bundle": Parser(
        bundle,
        (b"sprachbund bundle v1".ljust(24, b"\0") + struct.pack(">Q", len(BUNDLE_HEAD)) + BUNDLE_HEAD,),
    ),
    "tensors": Parser(
        header,
        (tensors(a=np.ones((2, 3), np.float32), b=np.zeros(0, np.float16)),),
        ".safetensors",
    ),
    "index": Parser(model, (b'{"weight_map":{"a":"model-1.safetensors"}}',)),
    "row counts": Parser(read_row_counts, (tensors(**{ROW_COUNTS: np.ones(5, np.float32)}),)),
    "checksums": Parser(checksums, (b"{}",)),
    "signing request": Parser(
        of_bytes(lambda data: check_signing_request(data, SITE)), (signing_request(SITE, KEY),)
    ),
    "certificate": Parser(of_bytes(lambda data: identity_of(data, "balkan")), (CERTIFICATE, AUTHORITY.pem)),
    "certificate's key": Parser(of_bytes(key_of_certificate), (CERTIFICATE,)),
    "YAML": Parser(of_bytes(lambda data: parse(data, "f.yaml")), (CAMPAIGN, b"a: [1, {b: 'c'}]")),
    "YAML with aliases": Parser(of_bytes(lambda data: parse(data, "f.yaml", aliases=True)), (RECIPE,)),
    "campaign": Parser(load_campaign, (CAMPAIGN,), ".yaml"),
    "site": Parser(load_site_config, (SITE_FILE,), ".yaml"),
    "coordinator": Parser(load_coordinator_config, (b"consortium: balkan\nhome: home\n",), ".yaml"),
    "recipe": Parser(load_merge, (RECIPE,), ".yaml"),
    "membership": Parser(load_membership, ((ROOT / "policies" / "membership.yaml").read_bytes(),), ".yaml"),
    "invitation": Parser(of_bytes(lambda data: parse(data, "i").convert(Invitation)), (b"site: sofia\n",)),
    "text": Parser(text, (LINES, WARC), ".jsonl"),
    "packed text": Parser(text, (zstandard.compress(LINES), zstandard.compress(WARC) * 2), ".jsonl.zst"),
    "zipped text": Parser(
        text, (gzip.compress(LINES, mtime=0), gzip.compress(WARC, mtime=0) * 2), ".jsonl.gz"
    ),
}

TRICKS = st.sampled_from(
    [
        *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\r\n", b'"', b"'", b"\\u0000"),
        *(b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"[" * 3000, b'{"a":' * 3000, b"- - - - "),
        *(b"../../../etc/passwd", b"/etc/passwd", b"*a", b"&a", b"<<: *a", b"!!python/object:os.system"),
    ]
)


@st.composite
def spoilt(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    if not seeds or draw(st.integers(0, 7)) == 0:
        return draw(st.binary(max_size=200) | TRICKS)
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 8))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            data[at:] = b""
        elif kind == 1:
            data[at:at] = data[at : at + 64]
        elif kind == 2:
            data[at : at + length] = draw(TRICKS)
        elif kind == 3:
            del data[at : at + length]
        else:
            data[at : at + 1] = draw(st.binary(max_size=2))
    return bytes(data)


def feed(name: str, data: bytes, folder: Path) -> None:
    parser = PARSERS[name]
    for stray in (folder.parent / "outside").glob("*"):
        raise AssertionError(f"{name} wrote {stray}")
    path = folder / f"it{parser.suffix}"
    path.write_bytes(data)
    with contextlib.suppress(SprachbundError):
        parser.read(path)


#: whose seeds are bent on purpose, or speak of files that are not there
SHALLOW = {
    "version",
    "assignment",
    "letter",
    "index",
    "checksums",
    "campaign",
    "site",
    "invitation",
    "bundle head",
}
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.parametrize("name", PARSERS)
def test_what_it_likes_is_no_noise(name: str, tmp_path: Path) -> None:
    for seed in PARSERS[name].seeds:
        feed(name, seed, tmp_path)


def test_most_seeds_are_read_to_their_end(tmp_path: Path) -> None:
    """Else the parsers would be fed with nothing but what their first look refuses."""
    refused = set()
    for name, parser in PARSERS.items():
        path = tmp_path / f"it{parser.suffix}"
        for seed in parser.seeds[:1]:
            path.write_bytes(seed)
            try:
                parser.read(path)
            except SprachbundError:
                refused.add(name)
    assert refused <= SHALLOW


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=SUPPRESSED)
@given(data=st.data())
def test_whatever_comes_is_answered(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    feed(name, data.draw(spoilt(PARSERS[name].seeds)), tmp_path_factory.mktemp("it"))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=SOAK_EXAMPLES, deadline=None, suppress_health_check=SUPPRESSED)
@given(data=st.data())
def test_whatever_comes_for_long(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    feed(name, data.draw(spoilt(PARSERS[name].seeds)), tmp_path_factory.mktemp("it"))


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    "trick",
    [
        b"",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"- " * 100_000,
        b"\xef\xbb\xbf",
        b"\x00" * 5000,
        b"9" * 10_000,
    ],
)
def test_the_classics(name: str, trick: bytes, tmp_path: Path) -> None:
    feed(name, trick, tmp_path)
