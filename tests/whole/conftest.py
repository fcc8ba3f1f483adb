"""Consortia that are made once and copied: founded, with three sites enrolled and a tiny model in the store."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import Server, server
from real_coordinator import SITES, Consortium, campaign
from s3_server import s3_server
from scripted_sites import ScriptedSite, at_work, enrolled_at
from tokenizers import Tokenizer, models, pre_tokenizers

from consortium.byte_level import END_OF_TEXT
from consortium.models import initialise

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 256,  # the tokenizer has none, and a Llama without one is left to transformers: seconds of CPU
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 30 thousand weights over single bytes, in Hugging Face layout."""
    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([*alphabet, END_OF_TEXT])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    initialise(CONFIG, 7, folder / "tokenizer.json", folder / "base")
    assert json.loads((folder / "base" / "config.json").read_bytes())["vocab_size"] == 257
    return folder / "base"


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Consortium:
    """At rest; copy it, then run the copy."""
    return asyncio.run(enrolled_at(tmp_path_factory.mktemp("enrolled") / "consortium", base))


async def complete(consortium: Consortium, base: Path) -> Consortium:
    async with consortium.running(), consortium.admin() as admin:
        async with at_work(*(ScriptedSite(consortium, name) for name in SITES)):
            await admin.submit(campaign(base))
            await admin.until_ended("demo")
    return Consortium(consortium.folder)


@pytest.fixture(scope="session")
def completed(enrolled: Consortium, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    """At rest, after a campaign of two rounds that promoted both candidates."""
    copy = enrolled.copy_to(tmp_path_factory.mktemp("completed") / "consortium")
    return asyncio.run(complete(copy, base))


@pytest.fixture
def consortium(enrolled: Consortium, tmp_path: Path) -> Consortium:
    return enrolled.copy_to(tmp_path / "consortium")


@pytest.fixture
def rested(completed: Consortium, tmp_path: Path) -> Consortium:
    """A copy of the completed one."""
    return completed.copy_to(tmp_path / "rested")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    """The endpoint of a server that speaks S3, with a bucket ``blobs``."""
    with s3_server() as endpoint:
        yield endpoint
