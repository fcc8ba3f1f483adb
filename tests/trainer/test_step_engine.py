"""The ways in which a step may be computed: which is taken, that they agree, and that none waits for the device."""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_samples import contribution, make_job, sha256, train_work

from consortium.jobs import Optimizer, Train
from consortium.tensors import Checkpoint, TensorFile
from site_agent.config import Engine
from site_agent.trainer.attention import documents_of
from site_agent.trainer.compiling import compile_blocks, use_float8
from site_agent.trainer.engine import Given, ways_of
from site_agent.trainer.feeding import Fed, Part
from site_agent.trainer.folder import JobFailed, JobFolder, Site, Stopped
from site_agent.trainer.inner_optimizer import InnerOptimizer
from site_agent.trainer.llama import Llama
from site_agent.trainer.model import load_model
from site_agent.trainer.packing import bounds_of
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.stepping import Stepper, choose, make_stepper
from site_agent.trainer.training import train

GPU = Given(
    is_gpu=True,
    is_native=True,
    computes_in_bf16=True,
    ranks=1,
    is_sharded=False,
    rows=16384,
    vocabulary=32000,
)
CPU = GPU._replace(is_gpu=False, computes_in_bf16=False, rows=1024)
LONG = train_work(steps=500)
BF16 = train_work(precision="bf16")


def batch(work: Train, rows: int, step: int, parts: int = 1) -> Fed:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 320, (rows, work.sequence_tokens + 1), generator=generator)
    documents = None
    if work.packing == "documents":
        lengths = [(5, work.sequence_tokens - 5)] * (rows // parts)
        bounds = bounds_of(lengths, work.sequence_tokens)
        documents = documents_of(bounds, rows // parts, work.sequence_tokens, 20, torch.device("cpu"), False)
    pieces = [Part(each[:, :-1], each[:, 1:], documents) for each in ids.split(rows // parts)]
    return Fed(pieces, rows * work.sequence_tokens)


def stepper_of(base: Path, work: Train, alone: Ranks, **engine: Any) -> Stepper:
    ways = choose(base, work, alone, Engine(**engine), rows_at_once=4)
    return make_stepper(base, work, alone, ways)


# --- which -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "work", "given", "mark"),
    [
        (Engine(), LONG, CPU, ""),
        (Engine(), LONG, GPU, "loss in parts, compiled"),
        (Engine(), train_work(steps=499), GPU, "loss in parts"),
        (Engine(), LONG, GPU._replace(is_native=False), ""),
        (Engine(compile="off", head="whole"), LONG, GPU, ""),
        (Engine(compile="on", head="in_parts"), LONG, CPU, "loss in parts, compiled"),
        (Engine(weights="bf16"), LONG, GPU, "loss in parts, compiled, bf16 weights"),
        (Engine(), train_work(steps=500, packing="documents"), GPU, "loss in parts, compiled"),
        (Engine(), train_work(steps=500, packing="documents"), GPU._replace(computes_in_bf16=False), "loss in parts"),
        (Engine(float8=True), LONG, GPU, "loss in parts, compiled, float8"),
    ],
)  # fmt: skip
def test_the_ways_are_chosen_by_what_there_is(engine: Engine, work: Train, given: Given, mark: str) -> None:
    ways = ways_of(engine, work, given)
    assert ways.mark == mark
    assert len(ways.said) == 2
    assert ways.autocasts == (given.computes_in_bf16 and engine.weights == "float32")


@pytest.mark.parametrize(
    ("engine", "work", "given", "why"),
    [
        (Engine(weights="bf16"), LONG, CPU, "weights: bf16: the job computes in float32"),
        (Engine(weights="bf16"), LONG, GPU._replace(ranks=2), "set `sharding: fsdp`"),
        (Engine(compile="on"), LONG, GPU._replace(is_native=False), "compile: on: only the native"),
        (Engine(compile="on"), train_work(packing="documents"), CPU, "would compile anew"),
        (Engine(head="in_parts"), LONG, GPU._replace(is_native=False), "head: in_parts: transformers"),
        (Engine(float8=True), LONG, CPU, "float8: true: it is for the native model on a GPU"),
    ],
)
def test_what_is_asked_for_and_cannot_be_is_refused(
    engine: Engine, work: Train, given: Given, why: str
) -> None:
    with pytest.raises(JobFailed, match=why):
        ways_of(engine, work, given)


def test_sharded_bf16_weights_are_masters_by_themselves() -> None:
    ways = ways_of(Engine(weights="bf16"), LONG, GPU._replace(ranks=2, is_sharded=True))
    assert (ways.masters, ways.shards_in_bf16, ways.autocasts) == (False, True, False)


def test_what_was_chosen_is_said_and_in_the_manifest(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, capfd: pytest.CaptureFixture[str]
) -> None:
    usual = make_job(tmp_path / "usual", site, train_work(), base)
    train(JobFolder(usual), train_work(), alone, lambda: False)
    assert contribution(usual).software["model"] == "native"
    assert "engine: loss with all logits at once: 64 rows of 320 words" in capfd.readouterr().err
    parts = msgspec.structs.replace(site, engine=Engine(head="in_parts", head_bytes=20 * 320 * 4))
    folder = make_job(tmp_path / "parts", parts, train_work(), base)
    train(JobFolder(folder), train_work(), alone, lambda: False)
    assert contribution(folder).software["model"] == "native, loss in parts"
    assert "engine: loss in parts: " in capfd.readouterr().err
    one, other = contribution(usual).losses, contribution(folder).losses
    assert one is not None and other is not None
    assert other.last == pytest.approx(one.last, rel=1e-5)
    assert b'"loss_by_language":{' in (folder / "progress.jsonl").read_bytes().replace(b" ", b"")


def test_other_programs_can_be_asked_for(base: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = stepper_of(base, train_work(), alone, backend="transformers")
    assert theirs.shared.model.backend.startswith("transformers")
    monkeypatch.setitem(__import__("sys").modules, "liger_kernel.transformers", None)
    with pytest.raises(Exception, match=r"engine\.backend: liger: .* install the extra `gpu`"):
        stepper_of(base, train_work(), alone, backend="liger")
    ours = load_model(base, torch.device("cuda"), torch.device("cpu"), "native")
    assert ours.backend == "native"


# --- that they agree --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own doing
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_blocks_and_loss_are_one_graph_each(
    base: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch, backend: str, packing: str
) -> None:
    """``fullgraph``: a break raises. And one graph serves all blocks, all parts and all steps."""
    graphs: list[int] = []

    def counted(module: torch.fx.GraphModule, given: list[Tensor]) -> Any:
        graphs.append(len(module.graph.nodes))
        if backend == "eager":
            return module.forward
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(module, given)

    torch._dynamo.reset()
    work = train_work(packing=packing, steps=3)
    plain, compiled = (stepper_of(base, work, alone, head="in_parts", head_bytes=32 * 320 * 4) for _ in "ab")
    assert compiled.shared.model.rows_at_once == 32
    network = compiled.shared.model.network
    assert isinstance(network, Llama)
    compile_blocks(network, counted)  # type: ignore[arg-type]
    for step in range(3):
        one, other = (each.step(step, batch(work, 4, step, parts=2)) for each in (plain, compiled))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 2, graphs  # the block's, the loss's
    for name, weight in plain.shared.model.weights.items():
        torch.testing.assert_close(weight, compiled.shared.model.weights[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_graph_break_in_a_block_would_be_seen(base: Path, alone: Ranks) -> None:
    torch._dynamo.reset()
    stepper = stepper_of(base, train_work(), alone)
    network = stepper.shared.model.network
    assert isinstance(network, Llama)
    block = network.model.layers[0]
    forward = block.forward

    def broken(*given: Any) -> Tensor:
        torch._dynamo.graph_break()
        out: Tensor = forward(*given)
        return out

    block.forward = broken
    compile_blocks(network, "eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        stepper.step(0, batch(train_work(), 4, 0))


@pytest.mark.parametrize("parts", [1, 2])
def test_masters_follow_float32(base: Path, alone: Ranks, parts: int) -> None:
    """Steps of 1e-5, which bf16's own steps at 0.02 and 1 swallow: masters move as they do under autocast."""
    work = train_work(precision="bf16", optimizer=Optimizer(learning_rate=1e-5))
    exact = stepper_of(base, msgspec.structs.replace(work, precision="fp32"), alone)
    masters, cast = (stepper_of(base, work, alone, weights=kind) for kind in ("bf16", "float32"))
    with Checkpoint(base) as before:
        start = torch.cat([torch.from_numpy(before.array(name)).flatten() for name in sorted(before)])
    for step in range(12):
        for stepper, pieces in ((exact, 1), (masters, parts), (cast, parts)):
            assert stepper.step(step, batch(work, 4, step, pieces))[1] == 1

    def moved(stepper: Stepper) -> Tensor:
        return torch.cat([tensor.detach().flatten() for _, tensor in sorted(weights_of(stepper).items())])

    truth = moved(exact) - start
    error, theirs = ((moved(each) - start - truth).norm() / truth.norm() for each in (masters, cast))
    assert error < 2 * theirs < 0.5
    swallowed = (moved(exact).bfloat16() - start.bfloat16()).float()
    assert (swallowed - truth).norm() / truth.norm() > 4 * error
    for name, weight in masters.shared.model.weights.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, weights_of(masters)[name].bfloat16())
        assert weight.grad is None


def weights_of(stepper: Stepper) -> dict[str, Tensor]:
    return stepper.optimizer.exact(stepper.shared.model.weights)


def test_gradients_of_parts_are_summed_in_float32(base: Path, alone: Ranks) -> None:
    """A thousand times 1/256 on top of 1: in bf16, whose step at 1 is 1/128, nothing would be added."""
    model = load_model(base, alone.device)
    optimizer = InnerOptimizer(model.weights, train_work(), in_bf16=True)
    weight = next(iter(model.weights.values()))
    for value in (1.0, *[1 / 256] * 1000):
        weight.grad = torch.full_like(weight, value)
        optimizer.collect()
        assert weight.grad is None
    [found] = [gradient for gradient in optimizer._gradients().values() if gradient.any()]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full_like(found, 1 + 1000 / 256))


def test_a_job_with_masters_delivers_and_saves_them(
    tmp_path: Path, site: Site, base: Path, alone: Ranks
) -> None:
    site = msgspec.structs.replace(site, engine=Engine(weights="bf16"))
    made = []
    for name, stops in (("straight", False), ("halting", True)):
        folder = make_job(tmp_path / name, site, BF16, base)
        if stops:
            looks = iter(range(1, 13))
            with pytest.raises(Stopped):
                train(JobFolder(folder), BF16, alone, lambda looks=looks: next(looks) >= 5)  # type: ignore[misc]
        train(JobFolder(folder), BF16, alone, lambda: False)
        made.append(sha256(folder / "result/delta.safetensors"))
    assert made[0] == made[1]
    assert contribution(folder).software["model"] == "native, bf16 weights"
    with TensorFile(folder / "result/delta.safetensors") as delta, Checkpoint(base) as before:
        whole = {name: torch.from_numpy(before.array(name) + delta.array(name)) for name in before}
    # what a delta of rounded weights would be; norms begin at 1, where bf16 has steps of 1/128
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in whole.values())
    norm = whole["model.norm.weight"]
    assert 0 < (norm - 1).abs().max() < 1 / 20 and not torch.equal(norm, norm.bfloat16().float())


# --- that none waits --------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Raises where a GPU would be waited for: a number taken from a tensor, a shape that depends on one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "is_nonzero"):
            raise AssertionError(f"{name}: the host would wait for the device here")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("work", "engine"),
    [
        (train_work(), Engine()),
        (train_work(proximal=0.1), Engine(head="in_parts", head_bytes=1 << 15)),
        (BF16, Engine(weights="bf16", head="in_parts", head_bytes=1 << 15)),
        (train_work(packing="documents"), Engine()),
    ],
)
def test_a_step_takes_no_number_from_the_device(
    base: Path, alone: Ranks, work: Train, engine: Engine, parts: int
) -> None:
    """Of our own module. Transformers 5.23 takes one in each forward pass, to see whether documents are packed."""
    stepper = make_stepper(base, work, alone, choose(base, work, alone, engine, rows_at_once=4))
    fed = batch(work, 4, 0, parts)
    with Waits():
        found = stepper.step(0, fed)
    assert found.isfinite().all()


def test_a_number_taken_would_be_seen(base: Path, alone: Ranks) -> None:
    stepper = stepper_of(base, train_work(), alone)
    with Waits(), pytest.raises(AssertionError, match="the host would wait"):
        stepper.step(0, batch(train_work(), 4, 0)).sum().item()
    objective = stepper.shared.objective

    class Asking(torch.nn.Module):
        def forward(self, *given: Any) -> Tensor:
            loss: Tensor = objective(*given)
            return loss if loss > 0 else -loss

    stepper.shared = dataclasses.replace(stepper.shared, objective=Asking())
    with Waits(), pytest.raises(AssertionError, match="the host would wait"):
        stepper.step(0, batch(train_work(), 4, 0))


# --- float8 -----------------------------------------------------------------------------------------


def test_float8_without_torchao_says_what_to_do(
    base: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.float8", None)
    network = load_model(base, alone.device).network
    assert isinstance(network, Llama)
    with pytest.raises(Exception, match=r"engine\.float8: .* install torchao where jobs run"):
        use_float8(network)
