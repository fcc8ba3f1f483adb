"""A step on tensors that have no numbers, its graphs counted, and Inductor's code beside the uncompiled blocks.

What can be shown without a GPU: that nothing in a step asks the device for a number or mixes its tensors with the
host's, where graphs break, and that compiled code computes the same. How fast any of it is, no test says.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_muon import run_steps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainer_samples import CONFIG, train_work

from consortium.jobs import Muon, Optimizer, Train
from site_agent.trainer.compiling import compile_blocks
from site_agent.trainer.engine import Ways
from site_agent.trainer.feeding import Fed, Part
from site_agent.trainer.llama import Llama
from site_agent.trainer.model import Model
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.shape import Shape, shape_of
from site_agent.trainer.sharing import Shared
from site_agent.trainer.stepping import Stepper

pytestmark = [  # the compiler's own doing
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),
]

ADAMW = Optimizer(learning_rate=3e-3, warmup_steps=3)
MUON = Optimizer(learning_rate=3e-3, warmup_steps=3, muon=Muon())
VOCABULARY = 320


def network(device: str = "cpu") -> Llama:
    shape = shape_of({**CONFIG, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5})
    assert isinstance(shape, Shape)
    with torch.device(device):
        made = Llama(shape)
    draw = torch.Generator().manual_seed(2)
    if device == "cpu":
        for weight in made.parameters():
            torch.nn.init.normal_(weight, 1.0 if weight.ndim == 1 else 0.0, 0.05, generator=draw)
    return made


def model_of(made: Llama, rows_at_once: int) -> Model:
    return Model(
        folder=Path(),
        network=made,
        vocabulary_size=VOCABULARY,
        weights=dict(made.named_parameters()),
        backend="native",
        rows_at_once=rows_at_once,
    )


# --- nothing is asked of the device ----------------------------------------------------------------


ASKED = "meta tensors"  # torch's word for who wants a number of a tensor that has none


class AllOnTheDevice(TorchDispatchMode):
    """Raises where a tensor of the host is made, read or mixed with those of the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, made)):
            assert not isinstance(each, Tensor) or each.device.type == "meta", (
                f"{func} has a tensor of the host"
            )
        return made


@pytest.fixture(name="without_autocast")
def _without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without numbers know none."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **more: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *given: False)


def without_numbers(work: Train, rows_at_once: int, masters: bool) -> Stepper:
    """A step's machinery over tensors that have shapes and no memory: whoever asks one for a number, fails."""
    model = model_of(network("meta"), rows_at_once)
    ways = Ways("native", rows_at_once, False, masters, False, False, False, ())
    ranks = Ranks(rank=0, world=1, device=torch.device("meta"))
    return Stepper(Shared(model=model, objective=model.objective), work, ranks, ways)


def batch(parts: int, device: str = "meta") -> Fed:
    drawn = torch.arange(4 * 17).view(4, 17).mul(37).remainder(VOCABULARY).to(device)
    return Fed([Part(piece[:, :-1], piece[:, 1:], None) for piece in drawn.split(4 // parts)], 64)


@pytest.mark.usefixtures("without_autocast")
@pytest.mark.parametrize("rule", [ADAMW, MUON])
@pytest.mark.parametrize(
    ("rows_at_once", "masters", "parts", "proximal"),
    [(0, False, 1, 0.0), (24, False, 2, 0.1), (24, True, 1, 0.0), (0, True, 2, 0.0)],
)
def test_a_whole_step_needs_no_number_and_nothing_of_the_host(
    rule: Optimizer, rows_at_once: int, masters: bool, parts: int, proximal: float
) -> None:
    stepper = without_numbers(train_work(optimizer=rule, proximal=proximal), rows_at_once, masters)
    stepper.step(0, batch(parts))  # tables of angles are made by the host, once
    fed = batch(parts)
    with AllOnTheDevice():
        found = stepper.step(1, fed)
    assert found.shape == (3,)


@pytest.mark.usefixtures("without_autocast")
@pytest.mark.parametrize(
    ("asking", "seen"),
    [
        (lambda norm: norm if norm > 1 else norm * 2, ASKED),
        (lambda norm: norm * float(norm), ASKED),
        (lambda norm: norm[norm.isfinite()].sum(), ASKED),
        (lambda norm: norm * torch.ones(1), "a tensor of the host"),
    ],
)
def test_who_asks_or_brings_something_is_seen(asking: Callable[[Tensor], Tensor], seen: str) -> None:
    stepper = without_numbers(train_work(), 0, False)
    stepper.step(0, batch(1))
    total = stepper.optimizer._total_norm
    stepper.optimizer._total_norm = lambda gradients: asking(total(gradients))
    fed = batch(1)
    with AllOnTheDevice(), pytest.raises((RuntimeError, AssertionError), match=seen):
        stepper.step(1, fed)


# --- graphs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "masters"), [(ADAMW, False), (MUON, True)])
def test_the_optimizers_graph_breaks_at_torchs_fused_kernel_alone(rule: Optimizer, masters: bool) -> None:
    """Which torch itself keeps out of graphs ("don't trace into fused optimizer")."""
    torch._dynamo.reset()
    optimizer, _ = run_steps(train_work(optimizer=rule), steps=1, in_bf16=masters)
    for parameter in optimizer._parameters.values():
        parameter.grad = torch.ones_like(parameter)
    found = torch._dynamo.explain(optimizer.step)(1)
    reasons = [reason.reason for reason in found.break_reasons]
    assert reasons and all("_fused_adam" in reason for reason in reasons), reasons


def test_a_look_at_the_norm_would_break_the_optimizers_graph() -> None:
    torch._dynamo.reset()
    optimizer, _ = run_steps(train_work(), steps=1)
    for parameter in optimizer._parameters.values():
        parameter.grad = torch.ones_like(parameter)
    total = optimizer._total_norm
    optimizer._total_norm = lambda gradients: total(gradients) * total(gradients).item()
    found = torch._dynamo.explain(optimizer.step)(1)
    assert not all("_fused_adam" in reason.reason for reason in found.break_reasons)


def test_forward_and_backward_of_all_blocks_and_of_the_loss_are_one_graph_each() -> None:
    from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func

    ways: dict[str, int] = {"forward": 0, "backward": 0}

    def counted(way: str) -> Callable[[torch.fx.GraphModule, Any], Any]:
        def compiled(graph: torch.fx.GraphModule, given: Any) -> Any:
            ways[way] += 1
            return make_boxed_func(graph.forward)

        return compiled

    def backend(graph: torch.fx.GraphModule, given: Any) -> Any:
        return aot_module_simplified(
            graph, given, fw_compiler=counted("forward"), bw_compiler=counted("backward")
        )

    torch._dynamo.reset()
    made = network()
    compile_blocks(made, backend)  # type: ignore[arg-type]
    model = model_of(made, 0)
    for _ in range(2):
        fed = batch(2, "cpu")
        for part in fed.parts:
            model.objective(*part).backward()
    assert ways == {"forward": 2, "backward": 2}


# --- Inductor ---------------------------------------------------------------------------------------


@pytest.mark.soak
def test_inductors_code_computes_what_the_blocks_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled by the machine's C++ compiler, forward and backward: loss and gradients within 1e-5 of the largest."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    plain, compiled = network(), network()
    compile_blocks(compiled)
    losses, gradients = [], []
    for made in (plain, compiled):
        model = model_of(made, 24)
        loss = model.objective(*batch(1, "cpu").parts[0])
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: weight.grad for name, weight in made.named_parameters()})
    assert list(tmp_path.rglob("*.cpp")), "nothing was compiled"
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0.0)
    for name, expected in gradients[0].items():
        found = gradients[1][name]
        assert expected is not None and found is not None
        largest = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5 * largest, msg=name)
