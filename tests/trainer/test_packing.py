"""Documents packed into sequences: nothing lost, nothing seen across a border, the numbers of documents alone."""

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from trainer_samples import contribution, make_job, sha256, train_work

from consortium.ids import Language
from site_agent.trainer import attention
from site_agent.trainer.attention import can_do_in_one_call, documents_of
from site_agent.trainer.batches import Batches, Stream
from site_agent.trainer.feeding import Feed
from site_agent.trainer.folder import JobFailed, JobFolder, Site, Stopped
from site_agent.trainer.head import IGNORED
from site_agent.trainer.llama import Llama
from site_agent.trainer.packing import best_fit, bounds_of
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.shape import Shape, shape_of
from site_agent.trainer.training import train

CPU = torch.device("cpu")
CONFIG = {
    "model_type": "mistral", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "sliding_window": None,
}  # fmt: skip
WORK = train_work(packing="documents", sequence_tokens=24, steps=10)


@given(
    tokens=st.lists(st.integers(1, 60), max_size=80),
    capacity=st.integers(1, 40),
    block=st.sampled_from([3, 17, 1 << 16]),
)
def test_every_place_of_every_document_is_in_one_bin(tokens: list[int], capacity: int, block: int) -> None:
    bins = best_fit(np.asarray(tokens, np.int32), capacity, block)
    found = []
    for number in range(len(bins)):
        begins, lengths = bins.pieces(number)
        assert 0 < lengths.sum() == bins.places()[number] <= capacity
        assert 0 < len(lengths) <= bins.most
        found += list(zip(begins.tolist(), lengths.tolist(), strict=True))
    wanted = []
    begin = 0
    for each in tokens:
        for start in range(0, each - 1, capacity):
            wanted.append((begin + start, min(capacity, each - 1 - start)))
        begin += each
    assert sorted(found) == wanted
    # no two bins of a block could have been one, but for the order: best fit never leaves two half empty ones
    if block > len(tokens):
        assert sum(bins.places() * 2 <= capacity) <= 1


def test_the_longest_are_put_first_where_they_leave_the_least_room() -> None:
    """8 + 2, 6 + 4, 5: first fit in order of arrival would have needed four bins."""
    bins = best_fit(np.asarray([5, 3, 9, 6, 7]), 10)  # 4, 2, 8, 5, 6 places
    assert [bins.pieces(number)[1].tolist() for number in range(len(bins))] == [[8, 2], [6, 4], [5]]
    assert bins.places().tolist() == [10, 10, 5]


def streams(seed: int = 0) -> list[Stream]:
    draw = np.random.default_rng(seed)
    made = []
    for language, count in (("bg", 30), ("et", 80)):
        lengths = draw.integers(1, 60, count).astype(np.int32)
        tokens = draw.integers(1, 40, lengths.sum()).astype(np.uint16)
        made.append(
            Stream(language=Language(language), access="private", tokens=tokens, document_tokens=lengths)
        )
    return made


def test_a_batch_is_a_function_of_the_step_and_counts_what_it_predicts() -> None:
    work = train_work(
        packing="documents",
        sequence_tokens=24,
        steps=7,
        replay_share=0.0,
        public_languages=(),
        epochs_max=50.0,
    )
    batches, again = Batches(work, streams()), Batches(work, streams())
    in_all = 0
    counts_V = np.zeros(40, np.int64)
    for step in (3, 0, 6, 1, 2, 5, 4):  # in any order
        batch, other = batches.batch(step), again.batch(step)
        assert np.array_equal(batch.ids_BS, other.ids_BS) and batch.documents == other.documents
        parts = [batches.batch(step, rank, 3) for rank in range(3)]
        assert sorted(row.tobytes() for part in parts for row in part.targets_BS) == sorted(
            row.tobytes() for row in batch.targets_BS
        )
        assert batches.num_targets(step) == (batch.targets_BS != IGNORED).sum()
        in_all += batches.num_targets(step)
        assert batch.documents is not None and batches.documents_max is not None
        assert max(map(len, batch.documents)) < batches.documents_max
        for ids_S, targets_S, lengths in zip(batch.ids_BS, batch.targets_BS, batch.documents, strict=True):
            begin = 0
            for length in lengths:
                end = begin + length
                assert ids_S[begin + 1 : end].tolist() == targets_S[begin : end - 1].tolist()
                counts_V += np.bincount([*ids_S[begin:end], targets_S[end - 1]], minlength=40)
                begin = end
            assert (targets_S[begin:] == IGNORED).all()
    assert sum(batches.tokens(7)[0].values()) == in_all
    assert batches.token_counts(7, 40).tolist() == counts_V.tolist()
    assert in_all > 0.9 * 7 * work.batch_sequences * work.sequence_tokens  # hardly a place is empty


def network(dtype: torch.dtype, window: int | None) -> Llama:
    shape = shape_of(CONFIG | {"sliding_window": window})
    assert isinstance(shape, Shape)
    made = Llama(shape).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=dtype) * 0.3)
    return made


def packed() -> tuple[Tensor, Tensor, list[tuple[int, ...]], list[Tensor]]:
    """Two rows of 12 places, 5 documents; and these documents."""
    generator = torch.Generator().manual_seed(5)
    rows = [(4, 1, 5), (7, 5)]
    ids_BS = torch.zeros(2, 12, dtype=torch.int64)
    targets_BS = torch.full_like(ids_BS, IGNORED)
    alone = []
    for row, lengths in enumerate(rows):
        at = 0
        for length in lengths:
            document = torch.randint(0, 40, (length + 1,), generator=generator)
            ids_BS[row, at : at + length], targets_BS[row, at : at + length] = document[:-1], document[1:]
            alone.append(document)
            at += length
    return ids_BS, targets_BS, rows, alone


def loss_of(model: Llama, ids: Tensor, targets: Tensor, documents: object, rows: int) -> Tensor:
    if rows:
        return model(ids, targets, documents, rows).nats
    return functional.cross_entropy(
        model(ids, None, documents).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED
    )


@pytest.mark.parametrize("rows_at_once", [0, 5])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_packed_is_what_documents_alone_are(
    dtype: torch.dtype, error: float, window: int | None, rows_at_once: int
) -> None:
    ids_BS, targets_BS, rows, alone = packed()
    together, apart = network(dtype, window), network(dtype, window)
    documents = documents_of(bounds_of(rows, 12), 2, 12, 9, CPU, is_in_one_call=False)
    assert documents.bounds == (0, 4, 5, 10, 12, 19, 24)
    assert documents.places_BS.tolist()[0] == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 0, 1]
    loss = loss_of(together, ids_BS, targets_BS, documents, rows_at_once)
    loss.backward()
    expected = torch.zeros((), dtype=dtype)
    for document in alone:
        nats = loss_of(apart, document[None, :-1], document[None, 1:], None, 0)
        nats.backward()
        expected += nats.detach()
    torch.testing.assert_close(loss.detach(), expected, rtol=error, atol=error)
    for (name, weight), other in zip(together.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=error, atol=error * 10, msg=name)


@pytest.mark.parametrize("shares_keys", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_the_one_call_of_a_gpu_is_asked_for_the_same(
    monkeypatch: pytest.MonkeyPatch, shares_keys: bool, window: int | None
) -> None:
    """No GPU here: ``varlen_attn`` is replaced by its documentation, which is all that this can hold to."""
    from torch.nn.attention import varlen

    asked = []

    def documented(
        query: Tensor, key: Tensor, value: Tensor, ends: Tensor, ends_k: Tensor, longest: int, longest_k: int, *,
        window_size: tuple[int, int], **more: bool,
    ) -> Tensor:  # fmt: skip
        asked.append((ends.tolist(), longest, window_size, more))
        assert ends.dtype == torch.int32 and ends is ends_k and longest == longest_k
        assert more.get("enable_gqa", False) or query.shape[1] == key.shape[1]
        group = query.shape[1] // key.shape[1]
        mixed = torch.zeros_like(query)
        for begin, end in itertools.pairwise(ends.tolist()):
            ago_SS = torch.arange(end - begin)[:, None] - torch.arange(end - begin)[None, :]
            seen_SS = (ago_SS >= 0) & ((ago_SS <= window_size[0]) | (window_size[0] < 0))
            q, k, v = (x[begin:end].transpose(0, 1) for x in (query, key, value))
            k, v = (x.repeat_interleave(group, dim=0) for x in (k, v))
            scores = (q @ k.transpose(1, 2)) * query.shape[2] ** -0.5
            mixed[begin:end] = (scores.masked_fill(~seen_SS, -torch.inf).softmax(2) @ v).transpose(0, 1)
        return mixed

    monkeypatch.setattr(varlen, "varlen_attn", documented)
    monkeypatch.setattr(attention, "_shares_keys", lambda: shares_keys)
    ids_BS, targets_BS, rows, _ = packed()
    model = network(torch.float64, window)
    made = []
    for is_in_one_call in (False, True):
        documents = documents_of(bounds_of(rows, 12), 2, 12, 9, CPU, is_in_one_call)
        made.append(loss_of(model, ids_BS, targets_BS, documents, 0))
    torch.testing.assert_close(*made)
    # as long in every batch: the length of what is handed on is a part of what is compiled
    assert asked[0][0] == [0, 4, 5, 10, 12, 19, 24, 24, 24]
    assert asked[0][1:] == (12, (2 if window else -1, 0), {"enable_gqa": True} if shares_keys else {})
    with pytest.raises(ValueError, match="6 documents exceed the 5"):
        documents_of(bounds_of(rows, 12), 2, 12, 6, CPU, is_in_one_call=True)


def test_one_call_is_for_gpus_in_16_bits() -> None:
    gpu = torch.device("cuda")
    assert can_do_in_one_call(gpu, torch.bfloat16)
    assert not can_do_in_one_call(gpu, torch.float32)
    assert not can_do_in_one_call(CPU, torch.bfloat16)


def test_torch_still_takes_what_we_give_varlen() -> None:
    """Its fake kernel runs without a GPU: a name that torch changed would be seen here."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    rows = bounds_of([(4, 1, 5), (7, 5)], 12)
    with FakeTensorMode():
        q_BHSK, k_BGSK = torch.empty(2, 4, 12, 8), torch.empty(2, 2, 12, 8)
        documents = documents_of(rows, 2, 12, 9, CPU, is_in_one_call=True)
        mixed = attention.document_attention(q_BHSK, k_BGSK, k_BGSK, documents, 3)
    assert mixed.shape == q_BHSK.shape


def test_a_job_of_documents_trains_stops_and_goes_on_in_the_same_bits(
    tmp_path: Path, site: Site, base: Path, alone: Ranks
) -> None:
    made = []
    for name, at_once in (("straight", None), ("halting", None), ("narrow", 3)):
        folder = make_job(
            tmp_path / name, msgspec.structs.replace(site, device_sequences=at_once), WORK, base
        )
        if name == "halting":
            looks = itertools.count(1)
            with pytest.raises(Stopped):
                train(JobFolder(folder), WORK, alone, lambda looks=looks: next(looks) >= 4)  # type: ignore[misc]
        train(JobFolder(folder), WORK, alone, lambda: False)
        made.append((sha256(folder / "result/delta.safetensors"), contribution(folder)))
    assert made[0][0] == made[1][0]
    first, last = made[0][1], made[2][1]
    assert first.losses is not None and last.losses is not None
    assert first.losses.last < first.losses.first - 0.3
    assert last.losses.last == pytest.approx(first.losses.last, rel=1e-4)
    assert sum(first.tokens.values()) < 10 * 4 * 24  # what is empty is not counted


@pytest.mark.parametrize(
    ("config", "is_apart"),
    [
        ({"model_type": "gemma2", "head_dim": 8}, True),
        ({"model_type": "bloom", "n_layer": 2, "n_head": 4}, False),
    ],
)
def test_transformers_is_asked_whether_documents_see_each_other(
    tmp_path: Path, site: Site, tokenizer_json: Path, alone: Ranks, config: dict[str, object], is_apart: bool
) -> None:
    from trainer_samples import CONFIG as SMALL

    from consortium.models import initialise

    initialise(SMALL | config, 5, tokenizer_json, tmp_path / "base")
    work = msgspec.structs.replace(WORK, steps=2)
    folder = make_job(tmp_path / "job", site, work, tmp_path / "base")
    if is_apart:
        train(JobFolder(folder), work, alone, lambda: False)
        assert contribution(folder).steps == 2
        return
    with pytest.raises(JobFailed, match=r"packing: documents: transformers .* see each other"):
        train(JobFolder(folder), work, alone, lambda: False)


def test_reading_ahead_changes_no_batch(alone: Ranks) -> None:
    work = train_work(
        packing="documents",
        sequence_tokens=24,
        steps=7,
        replay_share=0.0,
        public_languages=(),
        epochs_max=50.0,
    )
    batches = Batches(work, streams())
    at_once = Feed(batches, alone, 7, 3, is_in_one_call=False, is_ahead=False)
    with Feed(batches, alone, 7, 3, is_in_one_call=False, is_ahead=True) as ahead:
        for step in (0, 1, 2, 5, 6, 6):  # a job that goes on begins anywhere
            one, other = ahead(step), at_once(step)
            assert one.targets == other.targets and len(one.parts) == 2
            for part, same in zip(one.parts, other.parts, strict=True):
                assert torch.equal(part.ids_BS, same.ids_BS) and torch.equal(part.targets_BS, same.targets_BS)
                assert part.documents is not None and same.documents is not None
                assert part.documents.bounds == same.documents.bounds
