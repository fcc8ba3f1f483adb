"""Which text each sequence comes from."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_samples import train_work

from consortium.ids import Language
from site_agent.trainer.batches import Batches, Stream
from site_agent.trainer.mixture import apportion, interleave, permutation, random_bits, tempered, unimax

SIZES = st.lists(st.integers(0, 500), min_size=1, max_size=8)


@given(SIZES, st.integers(1, 5000), st.floats(0.5, 10))
def test_unimax_is_even_up_to_the_cap(sizes: list[int], budget: int, cap: float) -> None:
    shares = unimax(sizes, budget, cap)
    if not any(sizes):
        assert not any(shares)
        return
    assert sum(shares) == pytest.approx(1)
    if cap * sum(sizes) < budget:
        assert shares == pytest.approx([size / sum(sizes) for size in sizes])
        return
    drawn = [share * budget for share in shares]
    assert all(count <= cap * size * (1 + 1e-9) for count, size in zip(drawn, sizes, strict=True))
    most = max(drawn)
    for count, size in zip(drawn, sizes, strict=True):
        assert count == pytest.approx(min(most, cap * size))  # each has its cap, or as much as any


def test_unimax_by_hand() -> None:
    assert unimax([10, 100, 1000], 300, 4) == pytest.approx([40 / 300, 130 / 300, 130 / 300])


@given(SIZES, st.integers(1, 5000), st.floats(0.5, 10), st.floats(1, 100))
def test_temperature_goes_by_the_power_up_to_the_cap(
    sizes: list[int], budget: int, cap: float, temperature: float
) -> None:
    shares = tempered(sizes, budget, cap, temperature)
    if not any(sizes):
        assert not any(shares)
        return
    assert sum(shares) == pytest.approx(1)
    if cap * sum(sizes) < budget:
        assert shares == pytest.approx([size / sum(sizes) for size in sizes])
        return
    drawn = [share * budget for share in shares]
    free = [
        count / size ** (1 / temperature)
        for count, size in zip(drawn, sizes, strict=True)
        if size and count < cap * size * (1 - 1e-9)
    ]
    for count, size in zip(drawn, sizes, strict=True):
        assert count <= cap * size * (1 + 1e-9)
    assert free == pytest.approx([free[0]] * len(free) if free else [], rel=1e-6)


def test_temperature_by_hand() -> None:
    assert tempered([100, 400, 900], 60, 4, 1) == pytest.approx([1 / 14, 4 / 14, 9 / 14])
    assert tempered([100, 400, 900], 60, 4, 2) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert tempered([1, 400, 900], 204, 4, 2) == pytest.approx([4 / 204, 80 / 204, 120 / 204])
    assert tempered([1, 400, 0], 100, 4, 1e9) == pytest.approx([0.04, 0.96, 0.0])


def test_a_job_can_ask_for_a_temperature() -> None:
    work = train_work(steps=100, batch_sequences=6, sequence_tokens=10, replay_share=0.0)
    streams = _streams(bg=1000, et=4000)
    assert Batches(work, streams).tokens(100)[0] == {"bg": 3000, "et": 3000}
    for temperature, bg in ((1.0, 1200), (2.0, 2000)):
        asked = msgspec.structs.replace(work, sampling="temperature", temperature=temperature)
        assert Batches(asked, streams).tokens(100)[0] == {"bg": bg, "et": 6000 - bg}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 1000))
def test_apportioned_numbers_sum_up_and_miss_by_less_than_one(shares: list[float], total: int) -> None:
    counts = apportion(shares, total)
    if not sum(shares):
        assert not any(counts)
        return
    assert sum(counts) == total
    exact = [share / sum(shares) * total for share in shares]
    assert all(abs(count - want) < 1 for count, want in zip(counts, exact, strict=True))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(0, 3))
def test_streams_are_spread_evenly(counts: list[int], seed: int) -> None:
    stream, place = interleave(counts, seed)
    total = sum(counts)
    for index, count in enumerate(counts):
        positions = np.flatnonzero(stream == index)
        assert place[positions].tolist() == list(range(count))
        for number, position in enumerate(positions):
            assert abs(position - (number + 0.5) * total / count) <= total / count + len(counts)


def test_random_bits_are_pinned() -> None:
    """Philox's output is part of NumPy's promise; if this changes, every job's data order does."""
    assert random_bits(2, 7, "interleave").tolist() == [1889637347589714039, 17959780937180797512]
    assert sorted(permutation(50, 1, "x").tolist()) == list(range(50))
    assert permutation(50, 1, "x").tolist() != permutation(50, 1, "y").tolist()


def _streams(**sizes: int) -> list[Stream]:
    """Tokens that say where they come from: stream number times 10000 plus place."""
    return [
        Stream(
            language=Language(name[:2]),
            access="public" if name.endswith("_public") else "private",
            tokens=np.arange(size, dtype=np.int32) + 10000 * number,
        )
        for number, (name, size) in enumerate(sizes.items())
    ]


def test_the_job_has_its_shares_and_its_epochs() -> None:
    work = train_work(steps=100, batch_sequences=8, sequence_tokens=10, replay_share=0.25, epochs_max=4.0)
    streams = _streams(bg=300, et=5000, bg_public=2000, el_public=2000)
    batches = Batches(work, streams)
    tokens, public = batches.tokens(100)
    assert public == {"bg": 1000, "el": 1000}  # a quarter of 8000, evenly
    assert tokens == {"bg": 1000 + 1200, "el": 1000, "et": 4800}  # bg: 4 epochs of 30 sequences, et the rest
    targets = np.concatenate([batches.rows(step) for step in range(100)])[:, 1:]
    seen = np.bincount(targets[targets < 10000].ravel(), minlength=300)
    assert seen.tolist() == [4] * 300
    half, _ = batches.tokens(50)
    assert half["bg"] == pytest.approx(tokens["bg"] / 2, abs=30)


def test_each_epoch_has_an_order_of_its_own() -> None:
    work = train_work(steps=6, batch_sequences=4, sequence_tokens=10, replay_share=0.0)
    batches = Batches(work, _streams(et=80))  # 8 sequences: three epochs, two steps each
    rows = np.concatenate([batches.rows(step) for step in range(6)])[:, 0].reshape(3, 8)
    assert all(sorted(epoch) == list(range(0, 80, 10)) for epoch in rows.tolist())
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 3


@given(st.integers(1, 6), st.integers(0, 11))
def test_ranks_share_the_batch(world: int, step: int) -> None:
    work = train_work(batch_sequences=5)
    batches = Batches(work, _streams(et=200, bg=90, el_public=120))
    parts = [batches.rows(step, rank, world) for rank in range(world)]
    whole = batches.rows(step)
    assert sorted(np.concatenate(parts).tolist()) == sorted(whole.tolist())
    again = Batches(work, _streams(et=200, bg=90, el_public=120))
    assert again.rows(step).tolist() == whole.tolist()  # no step before it was asked for


def test_one_kind_of_text_takes_all() -> None:
    work = train_work(steps=10, batch_sequences=1, sequence_tokens=10, replay_share=0.5)
    assert Batches(work, _streams(et=50)).tokens(10) == ({"et": 100}, {})
    assert Batches(work, _streams(et_public=50)).tokens(10) == ({"et": 100}, {"et": 100})
