"""The kernels give the codecs' bytes: in triton's interpreter, on every awkward piece, and through a whole delta."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from consortium.codecs import portable
from consortium.codecs.formats import BLOCK, scale_max
from consortium.codecs.kernels import KERNELS
from consortium.tensor_writer import TensorWriter
from consortium.tensors import F32Array
from site_agent.trainer.kernels import reference
from site_agent.trainer.kernels.encoding import sample

HERE = Path(__file__).parent
SIZES = (1, 127, 128, 129, 255, 256, 257, 1023, 5000, 20011)
KINDS = ("noise", "zeros", "subnormal", "faint", "ties", "large", "lonely", "unaligned")
ENCODINGS = ("int8", "int4")
REFUSED = ("nan", "infinite", "overflow")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (the extra `kernels`)"
)

Triple = tuple[F32Array, F32Array, F32Array]


def triple(kind: str, size: int, encoding: str) -> Triple:
    """After, before and residual."""
    peak = 127 if encoding == "int8" else 7
    dice = np.random.default_rng(size)
    after, before, residual = dice.standard_normal((3, size), np.float32)
    residual *= np.float32(1e-3)
    if kind == "zeros":
        return np.copysign(np.float32(0), after), np.copysign(np.float32(0), before), residual * 0
    if kind == "subnormal":
        return after * np.float32(1e-41), before * np.float32(1e-42), residual * np.float32(1e-42)
    if kind == "faint":  # a scale of one or two units: some codes would exceed the peak
        return after * np.float32(peak * 1e-45), before * 0, residual * 0
    if kind == "ties":
        after = (dice.integers(-2 * peak, 2 * peak, size, endpoint=True) / 2).astype(np.float32)
        after[::BLOCK] = peak
        return after, before * 0, residual * 0
    if kind == "large":
        return np.clip(after, -1, 1) * scale_max(peak) * np.float32(peak), before * 0, residual
    if kind == "lonely":
        after *= np.float32(1e-6)
        after[size // 2] = 1e6
        return after, before * 0, residual * np.float32(1e-6)
    if kind in REFUSED:
        after[size // 3] = {"nan": np.nan, "infinite": -np.inf, "overflow": 3e38}[kind]
        before[size // 3] = -3e38
    return after, before, residual


def by_codecs(rows: Triple, encoding: str, codecs: object = KERNELS) -> tuple[bytes, bytes, bytes]:
    after, before, residual = rows[0], rows[1], rows[2].copy()
    codes = np.empty(after.size if encoding == "int8" else -(-after.size // 2), np.uint8)
    scales = np.empty(-(-after.size // BLOCK), np.float32)
    encode = getattr(codecs, f"encode_{encoding}")
    assert encode(after, before, residual, codes.view(np.int8) if encoding == "int8" else codes, scales) == -1
    return codes.tobytes(), scales.tobytes(), residual.tobytes()


def cases() -> list[tuple[str, str, int]]:
    return [
        *((kind, encoding, size) for encoding in ENCODINGS for size in SIZES[:-2] for kind in KINDS),
        *(
            (kind, encoding, size)
            for encoding in ENCODINGS
            for size in SIZES[-2:]
            for kind in ("noise", "lonely")
        ),
        *((kind, encoding, size) for encoding in ENCODINGS for size in (1, 300, 1000) for kind in REFUSED),
    ]


def interpret(*arguments: object) -> str:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": f"{HERE.parents[1]}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, HERE / "interpreted.py", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the kernels made of all cases, in one process."""
    place = tmp_path_factory.mktemp("interpreted")
    given: dict[str, np.ndarray] = {}
    for kind, encoding, size in cases():
        with np.errstate(over="ignore"):
            rows = triple(kind, size, encoding)
        given |= {
            f"{kind}.{size}.{encoding}.{part}": row
            for part, row in zip(("after", "before", "residual"), rows, strict=True)
        }
    np.savez(place / "cases.npz", **given)  # type: ignore[arg-type]
    interpret(place / "cases.npz", place / "answers.npz")
    with np.load(place / "answers.npz") as found:
        return dict(found)


@pytest.mark.parametrize(("kind", "encoding", "size"), [case for case in cases() if case[0] not in REFUSED])
def test_the_kernel_gives_the_bytes_of_the_codecs(
    kind: str, encoding: str, size: int, answers: dict[str, np.ndarray]
) -> None:
    rows = triple(kind, size, encoding)
    mine = [answers[f"{kind}.{size}.{encoding}.{part}"].tobytes() for part in ("codes", "scales", "residual")]
    for one, other, what in zip(
        mine, by_codecs(rows, encoding), ("codes", "scales", "residual"), strict=True
    ):
        assert one == other, what
    assert by_codecs(rows, encoding, portable) == by_codecs(rows, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [257, 20011])
def test_codes_scales_and_what_is_left_say_all_that_there_was(
    size: int, encoding: str, answers: dict[str, np.ndarray]
) -> None:
    """Against float64: code * scale + residual is t, to the rounding of one float32."""
    after, before, residual = triple("noise", size, encoding)
    t = after.astype(np.float64) - before + residual
    codes, scales, left = (
        answers[f"noise.{size}.{encoding}.{part}"] for part in ("codes", "scales", "residual")
    )
    if encoding == "int4":
        halves = np.stack((codes & 15, codes >> 4), axis=1).reshape(-1)[:size].astype(np.int8)
        codes = (halves ^ 8) - 8
    said = codes.view(np.int8).astype(np.float64) * np.repeat(scales.astype(np.float64), BLOCK)[:size]
    np.testing.assert_allclose(said + left, t, rtol=0, atol=4 * np.finfo(np.float32).eps * np.abs(t).max())
    assert (np.abs(left) <= np.repeat(scales, BLOCK)[:size] * 0.5001).all()


@pytest.mark.parametrize(("kind", "encoding", "size"), [case for case in cases() if case[0] in REFUSED])
def test_a_piece_that_is_not_finite_is_left_to_the_codecs(
    kind: str, encoding: str, size: int, answers: dict[str, np.ndarray]
) -> None:
    assert not [name for name in answers if name.startswith(f"{kind}.{size}.{encoding}.")]
    with np.errstate(over="ignore"):
        rows = triple(kind, size, encoding)
    codes, scales = np.empty(size, np.uint8), np.empty(-(-size // BLOCK), np.float32)
    assert KERNELS.encode_int8(rows[0], rows[1], rows[2], codes.view(np.int8), scales) == size // 3


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", SIZES)
def test_the_formula_in_plain_torch_gives_the_same(size: int, encoding: str) -> None:
    for kind in KINDS:
        rows = triple(kind, size, encoding)
        after, before, residual = map(torch.from_numpy, rows)
        coded = reference.encode(after, before, residual, encoding)  # type: ignore[arg-type]
        assert tuple(piece.numpy().tobytes() for piece in coded) == by_codecs(rows, encoding), kind


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_sample_that_a_gpu_has_to_code_has_what_careless_ones_get_wrong(encoding: str) -> None:
    rows = sample(encoding)  # type: ignore[arg-type]
    right = by_codecs(rows, encoding)
    after, before, residual = (torch.from_numpy(row) for row in rows)
    t = torch.nn.functional.pad((after - before) + residual, (0, -after.numel() % BLOCK)).view(-1, BLOCK)
    peak = 127.0 if encoding == "int8" else 7.0
    scale = torch.clamp(t.abs().amax(1, keepdim=True) / peak, max=float(scale_max(int(peak))))
    divisor = torch.where(scale == 0, torch.inf, scale)
    tiny = torch.finfo(torch.float32).tiny

    def rest(codes: torch.Tensor) -> bytes:
        return (t - codes * scale).view(-1)[: after.numel()].numpy().tobytes()

    exact = torch.clamp(t / divisor, -peak, peak)
    assert rest(torch.round(exact) + 0.0) == right[2]
    careless = {
        "times the inverse": torch.round(torch.clamp(t * (1 / divisor), -peak, peak)),
        "ties away from zero": torch.trunc(exact + torch.copysign(torch.tensor(0.5), exact)),
        "subnormals are zero": torch.round(torch.where(t.abs() < tiny, 0.0, exact)),
        "no clamp": torch.round(t / divisor),
    }
    for what, codes in careless.items():
        assert rest(codes) != right[2], what
    fused = (t.double() - (torch.round(exact) + 0.0).double() * scale.double()).float()
    assert fused.view(-1)[: after.numel()].numpy().tobytes() != right[2], "one rounding for two"
    uncapped = (t.abs().amax(1) / peak).numpy()
    with np.errstate(over="ignore"):
        has_a_cap = np.isinf(np.finfo(np.float32).max / np.float32(peak) * np.float32(peak))
    assert (uncapped.tobytes() != right[1]) == has_a_cap


def test_a_delta_written_from_a_gpu_has_the_same_digest(tmp_path: Path) -> None:
    """Tensors of several pieces, of odd sizes, of one axis, empty ones; rows that are still; with a residual."""
    shapes = {"embed": (300, 67), "mlp": (129, 31), "norm": (50,), "none": (0, 4), "one": (1, 1)}
    dice = np.random.default_rng(3)
    values = {name: dice.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for folder, size in (("base", 0.0), ("trained", 1e-2)):
        (tmp_path / folder).mkdir()
        with TensorWriter(tmp_path / folder / "model.safetensors", shapes, "F32") as writer:
            for name, value in values.items():
                moved = value + np.float32(size) * dice.standard_normal(value.shape, np.float32)
                writer.write(name, 0, moved.reshape(-1))
    with TensorWriter(tmp_path / "residual.safetensors", shapes, "F32") as writer:
        for name, shape in shapes.items():
            writer.write(name, 0, np.float32(1e-4) * dice.standard_normal(int(np.prod(shape)), np.float32))
    said = interpret("--files", tmp_path).splitlines()
    assert said == [
        "int8 sample None", "int8 files same", "int8 files same",
        "int4 sample None", "int4 files same", "int4 files same",
    ]  # fmt: skip
