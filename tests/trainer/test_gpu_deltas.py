"""A trainer on a GPU codes its delta there only if the bytes are the codecs', and whatever happens sends those.

There is no GPU here: the formula in torch stands for the kernel, which tests/kernels holds to the same bytes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from trainer_samples import make_job, sha256, train_work

from consortium.codecs.names import EncodingName
from consortium.deltas import Coded
from site_agent.trainer import training
from site_agent.trainer.folder import JobFolder, Site
from site_agent.trainer.kernels import encoding, reference
from site_agent.trainer.kernels.encoding import GpuEncoder, gpu_encoder
from site_agent.trainer.ranks import Ranks

GPU = torch.device("cuda")
CPU = torch.device("cpu")
WEIGHTS = {"w": torch.zeros(4)}


class Pretended(GpuEncoder):
    """What a GPU does, done by the formula; ``spoil`` may make a mistake with what comes out."""

    calls: int = 0
    fails_at: int = -1

    def _encode(
        self, name: str, start: int, size: int, unmoved_N: npt.NDArray[np.bool_] | None
    ) -> Coded | None:
        type(self).calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("CUDA error: out of memory\nand much more")
        before = torch.from_numpy(self.before_N[:size])
        after = self._weights[name].detach().view(-1)[start : start + size]
        if unmoved_N is not None:
            after = torch.where(torch.from_numpy(unmoved_N), before, after)
        found = reference.encode(after, before, torch.from_numpy(self.residual_N[:size]), self._encoding)
        if not torch.isfinite(found.scales_B).all():
            return None
        return self.spoil(Coded(*(piece.numpy() for piece in found)))

    def spoil(self, coded: Coded) -> Coded:
        return coded


class Blind(Pretended):
    """Sees a block that is not finite as one of zeros."""

    def _encode(
        self, name: str, start: int, size: int, unmoved_N: npt.NDArray[np.bool_] | None
    ) -> Coded | None:
        self.before_N[~np.isfinite(self.before_N)] = 0
        return super()._encode(name, start, size, unmoved_N)


class Full(Pretended):
    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        kind: reference.BlockCoded,
        device: torch.device,
        piece: int = 0,
    ) -> None:
        if not piece:
            raise RuntimeError("CUDA out of memory")
        super().__init__(weights, kind, device, piece)


class Careless(Pretended):
    def spoil(self, coded: Coded) -> Coded:
        coded.residual_N[12345] = np.nextafter(coded.residual_N[12345], np.float32(9))
        return coded


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Pretended]], None]:
    """Have a GPU that computes so."""
    tried = encoding.difference
    monkeypatch.setattr(encoding, "difference", lambda kind, _: tried(kind, CPU))

    def has(gpu: type[Pretended]) -> None:
        gpu.calls, gpu.fails_at = 0, -1
        monkeypatch.setattr(
            encoding, "GpuEncoder", lambda weights, kind, _, *more: gpu(weights, kind, CPU, *more)
        )

    return has


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_gpu_is_believed_whose_sample_has_the_codecs_bytes(
    kind: EncodingName, pretend: Callable[[type[Pretended]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(Careless)
    assert gpu_encoder(kind, WEIGHTS, GPU) is None
    assert f"{kind} deltas are coded on the CPU: residual_N of a sample are " in capsys.readouterr().err
    pretend(Pretended)
    assert gpu_encoder(kind, WEIGHTS, GPU) is not None
    assert "coded on the GPU" in capsys.readouterr().err


def test_a_gpu_without_room_for_the_pieces_is_left_alone(
    pretend: Callable[[type[Pretended]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(Full)
    assert gpu_encoder("int4", WEIGHTS, GPU) is None
    assert "coded on the CPU: RuntimeError: CUDA out of memory" in capsys.readouterr().err


def test_a_gpu_that_does_not_see_an_infinity_is_not_believed(
    pretend: Callable[[type[Pretended]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(Blind)
    assert gpu_encoder("int8", WEIGHTS, GPU) is None
    assert "it did not see an infinity" in capsys.readouterr().err


def test_without_triton_or_a_gpu_or_against_the_sites_wish_the_codecs_do_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_encoder("int8", WEIGHTS, CPU) is None
    assert gpu_encoder("topk", WEIGHTS, GPU) is None
    assert not capsys.readouterr().err  # nothing to explain: there is no kernel, or no GPU
    halves = {"w": torch.zeros(4, dtype=torch.bfloat16)}
    assert gpu_encoder("int8", halves, GPU) is None
    assert "weights are torch.bfloat16" in capsys.readouterr().err
    monkeypatch.setattr(encoding, "difference", lambda *_: __import__("no_such_triton"))
    assert gpu_encoder("int8", WEIGHTS, GPU) is None
    assert "ModuleNotFoundError: No module named 'no_such_triton'" in capsys.readouterr().err
    monkeypatch.setattr(encoding, "WISH", "native")
    assert gpu_encoder("int8", WEIGHTS, GPU) is None
    assert "SPRACHBUND_KERNELS=native" in capsys.readouterr().err


@pytest.mark.parametrize("unseen", ["move", "keep"])
@pytest.mark.parametrize("fails_at", [-1, 3])
def test_a_job_sends_the_same_bytes_with_a_gpu_and_where_it_fails_midway(
    fails_at: int, unseen: Literal["move", "keep"], pretend: Callable[[type[Pretended]], None],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Site, base: Path, alone: Ranks,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    work = train_work(steps=2, delta_dtype="int8", unseen_rows=unseen)
    digests = []
    for name in ("cpu", "gpu"):
        make_job(tmp_path / name, site, work, base)
        if name == "gpu":
            pretend(Pretended)
            monkeypatch.setattr(
                training, "gpu_encoder", lambda kind, weights, _: gpu_encoder(kind, weights, GPU)
            )
        Pretended.calls, Pretended.fails_at = 0, fails_at + 2 if fails_at > 0 else -1  # two for the sample
        training.train(JobFolder(tmp_path / name), work, alone, lambda: False)
        result = tmp_path / name / "result"
        digests.append([sha256(result / f"{file}.safetensors") for file in ("delta", "residual")])
    assert digests[0] == digests[1]
    said = capsys.readouterr().err
    if fails_at > 0:
        assert Pretended.calls == fails_at + 2  # and no more
        assert "and the rest are coded on the CPU: RuntimeError: CUDA error: out of memory\n" in said
    else:
        assert Pretended.calls > 10
        assert "and the rest" not in said
