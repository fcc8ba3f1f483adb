"""What a training job tells beside its loss: gradient norm, share of the peak, waiting, languages, time to go.

Nothing here changes a bit of the training: languages' losses are computed from the same logits a second time, and
only in steps whose line is about to be written.
"""

import contextlib
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from consortium.ids import Language
from site_agent.trainer.head import IGNORED
from site_agent.trainer.llama import Scored
from site_agent.trainer.memory import Sizes

#: Dense bf16 floating-point operations a second by datasheet; the first name that a device's has in it counts. Of an
#: MI250X, torch sees the halves.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "MI250": 191.5e12,
    "MI300X": 1307e12,
}


def peak_of(device: str) -> float | None:
    """Operations a second of a device by its name; None if it is not known."""
    return next((peak for name, peak in _PEAKS.items() if name in device), None)


def operations_per_token(sizes: Sizes, sequence_tokens: int, *, is_causal: bool) -> float:
    """Floating-point operations of one training step, per token, none of them counted twice.

    Six for each parameter of a matrix product, and attention's 12 L h d S, or half of them where those that causal
    attention need not do are not counted. PaLM's convention, as torchtitan, nanochat and llm-foundry print it: not
    halved. A table of input embeddings is no matrix product; where it is the head as well, it is one.
    """
    attention = 12.0 * sizes.layers * sizes.queries * sequence_tokens
    return 6.0 * sizes.in_products + attention * (0.5 if is_causal else 1.0)


class Watch:
    """The numbers of one life of a job."""

    def __init__(
        self, network: nn.Module, sizes: Sizes | None, sequence_tokens: int, peak: float | None
    ) -> None:
        self._network, self._sizes = network, sizes
        self._sequence_tokens, self._peak = sequence_tokens, peak
        self._losses: dict[Language, float] = {}
        self._nats: dict[Language, list[Tensor]] = {}
        self._waited = 0.0
        self.grad_norm: float | None = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around whatever the step waits for before it can begin."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def languages(self, targets_BS: Tensor, languages: Sequence[Language]) -> Iterator[None]:
        """Around a forward pass of so many sequences: note what each one's language costs."""

        def note(module: nn.Module, given: object, made: Any) -> None:
            if isinstance(made, Scored):
                means = made.nats_BS.sum(dim=1) / (targets_BS != IGNORED).sum(dim=1)
                for language, nats in zip(languages, means, strict=True):
                    self._nats.setdefault(language, []).append(nats)
                return
            logits = made if isinstance(made, Tensor) else getattr(made, "logits", None)
            if logits is None:  # a fused loss never makes them
                return
            for language, targets_S, logits_SV in zip(languages, targets_BS, logits.detach(), strict=True):
                nats = functional.cross_entropy(logits_SV.float(), targets_S, ignore_index=IGNORED)
                self._nats.setdefault(language, []).append(nats)

        hook = self._network.register_forward_hook(note)
        try:
            yield
        finally:
            hook.remove()

    def numbers(self, tokens_per_second: float, tokens_left: int, devices: int) -> dict[str, object]:
        """What a line of ``progress.jsonl`` has more of; None is what is not known."""
        for language, nats in self._nats.items():
            self._losses[language] = float(torch.stack(nats).mean())
        self._nats.clear()
        return {
            "grad_norm": self.grad_norm,
            "mfu": self._utilisation(tokens_per_second / devices, is_causal=False),
            "mfu_causal": self._utilisation(tokens_per_second / devices, is_causal=True),
            "data_wait_seconds": round(self._waited, 3),
            "eta_seconds": round(tokens_left / tokens_per_second, 1) if tokens_per_second > 0 else None,
            "peak_bytes": _most_memory(),
            "loss_by_language": dict(sorted(self._losses.items())) or None,
        }

    def _utilisation(self, tokens_per_second: float, *, is_causal: bool) -> float | None:
        if self._peak is None or self._sizes is None:
            return None
        each = operations_per_token(self._sizes, self._sequence_tokens, is_causal=is_causal)
        return round(each * tokens_per_second / self._peak, 4)


def _most_memory() -> int:
    return torch.cuda.max_memory_allocated() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
