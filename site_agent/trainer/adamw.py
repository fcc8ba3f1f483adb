"""AdamW with clipping in one fused pass over the weights, and no wait for the device.

The functional form of torch's own AdamW: making a ``torch.optim.AdamW`` imports the compiler (1.2 s of CPU), and
only the fused kernel's own arguments let a step be scaled or left out without asking the GPU how it went.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from consortium.jobs import Train
from site_agent.trainer.groups import factors_of
from site_agent.trainer.sharing import local

_EPSILON = 1e-8  # of the update's denominator; the value of the paper and of every LLM we know of


def learning_rate(work: Train, step: int) -> float:
    """Of step ``step`` of the job, from 0: warm-up over the job, decay over the campaign's schedule."""
    rule = work.optimizer
    warm = min(1.0, (step + 1) / rule.warmup_steps) if rule.warmup_steps else 1.0
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


class AdamW:
    """The optimizer of one job; its state has a name for each tensor, so that it can be saved.

    weights     as the base has them: of a proximal term they are copied, each rank its own shards
    total_norm  the norm of the whole gradient, of this rank's parts of its tensors
    Groups of the order may learn slower, decay included, or be frozen: no moments, no decay.
    Weights may be sharded (FSDP2): state lies in the same shards, and each rank steps its own.
    Weight decay is decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101) and spares vectors: norms and biases.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        work: Train,
        total_norm: Callable[[list[Tensor]], Tensor] = torch.nn.utils.get_total_norm,
    ) -> None:
        self._weights = _distinct(weights)
        self._work = work
        self._total_norm = total_norm
        self._factors = factors_of(self._weights, work.groups)
        self._learning = {name: weight for name, weight in self._weights.items() if self._factors[name]}
        self._mean = {name: torch.zeros_like(weight) for name, weight in self._learning.items()}
        self._square = {name: torch.zeros_like(weight) for name, weight in self._learning.items()}
        self._updates = {
            name: torch.zeros((), device=weight.device) for name, weight in self._learning.items()
        }
        self._base = {
            name: local(weight).detach().clone() for name, weight in self._learning.items() if work.proximal
        }
        self.norm = torch.zeros(())  #: of the newest step's gradient, before clipping
        groups = (self._learning, self._mean, self._square)
        self._local = tuple({name: local(tensor) for name, tensor in group.items()} for group in groups)

    @property
    def names(self) -> dict[int, str]:
        """id of a weight -> the name it is saved under; tied weights have one."""
        return {id(weight): name for name, weight in self._weights.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """Everything to save, the weights among it."""
        groups = {
            "weight": self._weights,
            "mean": self._mean,
            "square": self._square,
            "updates": self._updates,
        }
        return {
            f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()
        }

    @torch.no_grad()
    def step(self, step: int) -> Tensor:
        """Update the weights from their gradients, which are used up.

        Returns whether it was done, on the device: a gradient that is not finite changes nothing.
        """
        weights, mean, square = self._local
        gradients = {
            name: torch.zeros_like(weights[name]) if weight.grad is None else local(weight.grad)
            for name, weight in self._learning.items()
        }
        # Before clipping: Li et al. 2020, arXiv:1812.06127, equation 2, have the local solver minimise the loss and the
        # proximal term as one objective, and clipping is a part of our solver. After it, the term would have no bound.
        for name, base in self._base.items():
            gradients[name].add_(weights[name] - base, alpha=self._work.proximal)
        norm = self.norm = self._total_norm(list(gradients.values()))
        is_finite = norm.isfinite()
        rule = self._work.optimizer
        scale = (norm / rule.clip_norm).clamp(min=1.0) if rule.clip_norm else None
        alike: dict[tuple[bool, float], list[str]] = {}
        for name, weight in self._learning.items():
            alike.setdefault((weight.ndim > 1, self._factors[name]), []).append(name)
        for (decay, factor), names in alike.items():
            adamw(
                [weights[name] for name in names],
                [gradients[name] for name in names],
                [mean[name] for name in names],
                [square[name] for name in names],
                [],
                [self._updates[name] for name in names],
                fused=True,
                grad_scale=scale,
                found_inf=1.0 - is_finite.float(),
                amsgrad=False,
                beta1=rule.beta1,
                beta2=rule.beta2,
                lr=learning_rate(self._work, step) * factor,
                weight_decay=rule.weight_decay if decay else 0.0,
                eps=_EPSILON,
                maximize=False,
            )
        for weight in self._weights.values():
            weight.grad = None
        return is_finite


def _distinct(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each weight once, sorted by the first name it has."""
    named = {id(weight): (name, weight) for name, weight in reversed(list(weights.items()))}
    return dict(sorted(named.values(), key=lambda item: item[0]))
