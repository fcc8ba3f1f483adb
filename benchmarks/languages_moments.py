"""What if a site kept its optimizer's moments from round to round? Measured here; the product's jobs begin anew."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from consortium.ids import SiteName
from consortium.jobs import Train
from site_agent.trainer import stepping
from site_agent.trainer.inner_optimizer import InnerOptimizer


class Moments:
    """Of every site's optimizer, as its newest job left them."""

    def __init__(self) -> None:
        self._kept: dict[SiteName, dict[str, Tensor]] = {}

    @contextmanager
    def of(self, site: SiteName) -> Iterator[None]:
        """A job that is done meanwhile begins with the site's moments, and leaves its own."""
        made: list[InnerOptimizer] = []

        def optimizer(
            weights: Mapping[str, Tensor],
            work: Train,
            total_norm: Callable[[list[Tensor]], Tensor],
            in_bf16: bool,
        ) -> InnerOptimizer:
            one = InnerOptimizer(weights, work, total_norm, in_bf16)
            with torch.no_grad():
                for name, value in self._kept.get(site, {}).items():
                    one.state[name].copy_(value)
            made.append(one)
            return one

        with patch.object(stepping, "InnerOptimizer", optimizer):
            yield
        for one in made:
            state = one.state.items()
            self._kept[site] = {
                name: value.clone() for name, value in state if not name.startswith("weight/")
            }
