"""Streams of random numbers: the published generator, and keys that are the same in every process."""

import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from consortium.merging import kernels
from consortium.merging.kernels import portable
from consortium.merging.randomness import key_of


@pytest.fixture(params=[kernels, portable], ids=["kernels", "portable"])
def chosen(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # philox2x32 with ten rounds, of Random123's kat_vectors
        ((0x00000000, 0x00000000), 0x00000000, (0xFF1DAE59, 0x6CD10DF2)),
        ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, (0x2C3F628B, 0xAB4FD7AD)),
        ((0x243F6A88, 0x85A308D3), 0x13198A2E, (0xDD7CE038, 0xF62A4C12)),
    ],
)
def test_philox_gives_the_published_words(
    chosen: ModuleType, counter: tuple[int, int], key: int, words: tuple[int, int]
) -> None:
    """The counter's high word can be reached through the key's high half."""
    places_N = np.array([2 * counter[0], 2 * counter[0] + 1], np.int64)
    assert chosen.draw32(counter[1] << 32 | key, places_N).tolist() == list(words)
    if counter[1] < 1 << 30:
        places_N += counter[1] << 33
        assert chosen.draw32(key, places_N).tolist() == list(words)


def test_the_counter_has_a_high_word(chosen: ModuleType) -> None:
    far = np.array([5 + (3 << 33)], np.int64)
    assert chosen.draw32(7, far) == chosen.draw32(7 ^ (3 << 32), np.array([5], np.int64))


def test_draws_are_uniform_and_streams_differ(chosen: ModuleType) -> None:
    first_N = chosen.draw32(key_of(0, "a", "x"), np.arange(100_000)) / 2.0**32
    second_N = chosen.draw32(key_of(1, "a", "x"), np.arange(100_000)) / 2.0**32
    assert abs(first_N.mean() - 0.5) < 0.005 and abs(first_N.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(first_N, second_N)[0, 1]) < 0.02
    assert abs(np.corrcoef(first_N[::2], first_N[1::2])[0, 1]) < 0.02


def test_keys_tell_seeds_tensors_and_contributions_apart() -> None:
    places = [(0, "a", "b"), (1, "a", "b"), (0, "b", "a"), (0, "ab", ""), (0, "", "ab"), (0, 'a","b', "")]
    assert len({key_of(*place) for place in places}) == len(places)


def test_a_key_is_the_same_in_every_process() -> None:
    """It is written down here too: a change of it changes every merge that draws."""
    program = "from consortium.merging.randomness import key_of; print(key_of(42, 'lm_head.weight', 'ab12'))"
    for hash_seed in ("0", "1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == 0xB7938A064D2CB366
