"""How a step changes the weights: clipped, by AdamW or by Muon, in masters or themselves, with no wait for the device.

AdamW is the functional form of torch's own, one fused pass over the weights: making a ``torch.optim.AdamW`` imports
the compiler (1.2 s of CPU), and only the fused kernel's own arguments let a step be scaled or left out without asking
the GPU how it went. ``muon.py`` is the other rule, for the blocks' matrices, where an order asks for it.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from consortium.jobs import Muon, Train
from site_agent.trainer import muon
from site_agent.trainer.groups import factors_of
from site_agent.trainer.saves import WEIGHT
from site_agent.trainer.sharing import gathered, local, norm_of, rows_here

CAST = 1 << 26  # weights whose gradients are cast at once: 256 MiB
_EPSILON = 1e-8  # of the update's denominator; the value of the paper and of every LLM we know of


def learning_rate(work: Train, step: int, steps_before: int = 0) -> float:
    """Of step ``step`` of the job, from 0: warm-up as long as the moments are new, decay over the campaign's schedule.

    steps_before  that the moments had seen when the job began
    """
    rule = work.optimizer
    warm = min(1.0, (steps_before + step + 1) / rule.warmup_steps) if rule.warmup_steps else 1.0
    done = min(1.0, (work.schedule_start + step) / (work.schedule_steps or work.steps))
    shape = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[rule.decay]
    return rule.learning_rate * warm * (rule.final_share + (1 - rule.final_share) * shape)


def freeze(weights: Mapping[str, Tensor], work: Train) -> None:
    """Ask for no gradient of what the order freezes. Before the model is shared, which goes by who has a gradient.

    Raises BadInput for groups that do not fit the model.
    """
    distinct = _distinct(weights)
    for name, factor in factors_of(distinct, work.groups).items():
        distinct[name].requires_grad_(factor > 0)


class InnerOptimizer:
    """The optimizer of one job; its state has a name for each tensor, so that it can be saved.

    weights     as the base has them, float32: of a proximal term they are copied, each rank its own shards
    total_norm  the norm of the whole gradient, of this rank's parts of its tensors
    in_bf16     the model's weights become bf16, and their float32 masters are the optimizer's: it steps those, saves
                those, the delta is taken of those, and the model's are their rounded copies
    Groups of the order may learn slower, decay included, or be frozen: no moments, no decay.
    Weights may be sharded (FSDP2): state lies in the same shards, and each rank steps its own.
    Weight decay is decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101) and spares vectors: norms and biases.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        work: Train,
        total_norm: Callable[[list[Tensor]], Tensor] = norm_of,
        in_bf16: bool = False,
    ) -> None:
        self._parameters = _distinct(weights)
        self._weights = _with_masters(self._parameters) if in_bf16 else self._parameters
        self._in_bf16 = in_bf16
        self._sums: dict[str, Tensor] = {}  # of gradients of parts, in float32
        self._work = work
        self._total_norm = total_norm
        self._factors = factors_of(self._weights, work.groups)
        self._learning = {name: weight for name, weight in self._weights.items() if self._factors[name]}
        is_muons = isinstance(work.optimizer.muon, Muon)
        matrices = {
            name: weight
            for name, weight in self._learning.items()
            if is_muons and muon.is_stepped(name, weight.ndim)
        }
        others = {name: weight for name, weight in self._learning.items() if name not in matrices}
        self._momentum = {name: torch.zeros_like(weight) for name, weight in matrices.items()}
        self._mean = {name: torch.zeros_like(weight) for name, weight in others.items()}
        self._square = {name: torch.zeros_like(weight) for name, weight in others.items()}
        self._updates = {name: torch.zeros((), device=weight.device) for name, weight in others.items()}
        self._base = {
            name: local(weight).detach().clone() for name, weight in self._learning.items() if work.proximal
        }
        self.steps_before = 0  #: that the moments had seen when the job began
        self.norm = torch.zeros(())  #: of the newest step's gradient, before clipping
        groups = (self._learning, self._mean, self._square)
        self._local = tuple({name: local(tensor) for name, tensor in group.items()} for group in groups)

    @property
    def names(self) -> dict[int, str]:
        """id of a model's weight -> the name it is saved under; tied weights have one."""
        return {id(weight): name for name, weight in self._parameters.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """Everything to save, the weights among it."""
        groups = {
            "weight": self._weights,
            "mean": self._mean,
            "square": self._square,
            "updates": self._updates,
            "momentum": self._momentum,
        }
        return {
            f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()
        }

    @property
    def moments(self) -> dict[str, Tensor]:
        """All of the state but the weights: what a next job may go on with."""
        return {name: tensor for name, tensor in self.state.items() if not name.startswith(WEIGHT)}

    def exact(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's ``weights`` in float32, where they lie: themselves, or their masters."""
        names = self.names
        return {name: self._weights[names[id(weight)]] for name, weight in weights.items()}

    @torch.no_grad()
    def round_weights(self) -> None:
        """Make the model's weights of their masters again, where there are any: after the state was filled."""
        if self._in_bf16:
            for name, parameter in self._parameters.items():
                parameter.copy_(self._weights[name])

    @torch.no_grad()
    def collect(self) -> None:
        """After the backward pass of one part of several: gradients in bf16 are summed in float32."""
        for name in self._learning if self._in_bf16 else ():
            gradient = self._parameters[name].grad
            if gradient is not None:
                if name not in self._sums:
                    self._sums[name] = torch.zeros_like(self._weights[name])
                self._sums[name] += gradient
                self._parameters[name].grad = None

    @torch.no_grad()
    def step(self, step: int) -> Tensor:
        """Update the weights from their gradients, which are used up.

        Returns whether it was done, on the device: a gradient that is not finite changes nothing.
        """
        weights, mean, square = self._local
        gradients = self._gradients()
        # Before clipping: Li et al. 2020, arXiv:1812.06127, equation 2, have the local solver minimise the loss and the
        # proximal term as one objective, and clipping is a part of our solver. After it, the term would have no bound.
        for name, base in self._base.items():
            gradients[name] = gradients[name].float().add_(weights[name] - base, alpha=self._work.proximal)
        norm = self.norm = self._total_norm(list(gradients.values()))
        is_finite = norm.isfinite()
        rule, rate = self._work.optimizer, learning_rate(self._work, step, self.steps_before)
        scale = (norm / rule.clip_norm).clamp(min=1.0) if rule.clip_norm else None
        alike: dict[tuple[bool, float], list[str]] = {}
        for name in self._mean:
            alike.setdefault((self._learning[name].ndim > 1, self._factors[name]), []).append(name)
        for (decay, factor), names in alike.items():
            for some in self._in_pieces(names):
                adamw(
                    [weights[name] for name in some],
                    [gradients[name].float() for name in some],
                    [mean[name] for name in some],
                    [square[name] for name in some],
                    [],
                    [self._updates[name] for name in some],
                    fused=True,
                    grad_scale=scale,
                    found_inf=1.0 - is_finite.float(),
                    amsgrad=False,
                    beta1=rule.beta1,
                    beta2=rule.beta2,
                    lr=rate * factor,
                    weight_decay=rule.weight_decay if decay else 0.0,
                    eps=_EPSILON,
                    maximize=False,
                )
                if self._in_bf16:
                    torch._foreach_copy_(
                        [self._parameters[name] for name in some], [weights[name] for name in some]
                    )
        for name in self._momentum:
            self._step_matrix(name, rate, gradients[name], scale, is_finite)
        for weight in self._parameters.values():
            weight.grad = None
        self._sums.clear()
        return is_finite

    def _step_matrix(
        self, name: str, rate: float, gradient: Tensor, scale: Tensor | None, is_finite: Tensor
    ) -> None:
        """By Muon. Where the matrix lies in shards, its direction is gathered and every rank does all of it."""
        weight, rule = self._weights[name], self._work.optimizer
        assert isinstance(rule.muon, Muon)
        kind = torch.bfloat16 if weight.device.type == "cuda" else torch.float32

        def orthogonal_rows(way: Tensor) -> Tensor:
            return rows_here(muon.orthogonal(gathered(way.to(kind), weight)), weight)

        muon.step_matrix(
            local(weight),
            local(self._momentum[name]),
            gradient.float() if scale is None else gradient.float() / scale,
            rule=rule.muon,
            learning_rate=rate * self._factors[name],
            weight_decay=rule.weight_decay,
            is_finite=is_finite,
            orthogonal_rows=orthogonal_rows,
            shape=(weight.shape[0], weight.shape[1]),
        )
        if self._in_bf16:
            self._parameters[name].copy_(weight)

    def _gradients(self) -> dict[str, Tensor]:
        """Of this rank's part of each weight that learns."""
        weights, found = self._local[0], dict(self._sums)
        for name in self._learning:
            gradient = self._parameters[name].grad
            if gradient is not None:
                found[name] = found[name].add_(gradient) if name in found else local(gradient)
            elif name not in found:
                found[name] = torch.zeros_like(weights[name])
        return found

    def _in_pieces(self, names: list[str]) -> Iterator[list[str]]:
        """All at once; with masters, as many as ``CAST`` weights: their gradients are there in float32 meanwhile."""
        piece: list[str] = []
        size = 0
        for name in names:
            size += self._weights[name].numel()
            if self._in_bf16 and piece and size > CAST:
                yield piece
                piece, size = [], self._weights[name].numel()
            piece.append(name)
        yield piece


def _with_masters(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 copies of ``parameters``, which become bf16."""
    masters = {}
    for name, parameter in parameters.items():
        masters[name] = parameter.detach()
        parameter.data = masters[name].detach().to(torch.bfloat16)
    return masters


def _distinct(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each weight once, sorted by the first name it has."""
    named = {id(weight): (name, weight) for name, weight in reversed(list(weights.items()))}
    return dict(sorted(named.values(), key=lambda item: item[0]))
