"""The page of the trainer's speed: rows of what was measured, ratios within the run, what could not be run."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from consortium.canonical import Fact
from consortium.ids import digest_of
from site_agent.config import Engine

_AGREE_BF16, _AGREE_FLOAT32 = 2e-3, 2e-5  # relative, of the first step's loss
_PACKAGES = ("torch", "transformers", "triton", "liger-kernel", "torchao", "torchtitan")

INTRODUCTION = """\
# The trainer's speed, measured

Written by `python benchmarks/training.py` on {date}, in {minutes:.0f} minutes. {machine}.
{packages}.

Every variant is a process of its own with the same weights and random tokens; *turns* of all variants follow each
other, and a figure is the median over turns. Loading, the first steps and compiling are not counted. *ours* is the
step that a site's job does (`site_agent/trainer/stepping.py`), the plain loop is what one writes with transformers,
torch's fused AdamW and clipping. *against the plain loop* is the ratio of tokens per second in this run, in
brackets that of processor seconds, which other programs on the machine disturb less. *first loss* is that of the
first step; all of a model must agree. {precision}
"""

GPU_LEFT = """\
No GPU was at hand when this page was written. Not run, therefore: every figure for an H100 of the plan (MFU, Liger,
the vocabulary of 256k, varlen attention, bf16 weights, deterministic mode on a GPU, kernels against a copy).
`python benchmarks/training.py` runs all of these where there is one, in the same command.
"""


class Model(Fact):
    name: str
    config: dict[str, Any]
    batch_sequences: int
    sequence_tokens: int
    mean_document: int = 0

    @property
    def folder(self) -> str:
        """Equal configs, equal weights."""
        return "model-" + digest_of(json.dumps(self.config, sort_keys=True).encode())[:12]


class Variant(Fact):
    name: str
    way: Literal["ours", "plain", "compiled", "liger", "torchtitan"] = "ours"
    engine: Engine = Engine()
    keeps_memory: bool = False
    is_deterministic: bool = False


class Phase(Fact):
    model: Model
    variants: tuple[Variant, ...]
    steps: int  #: that are timed
    warmup: int
    note: str = ""


@dataclass
class Row:
    """One variant of one model: what its processes said, turn by turn."""

    phase: Phase
    variant: Variant
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reason(self) -> str | None:
        """Why there is nothing to show; None: there is."""
        for run in self.runs:
            if "missing" in run:
                return f"not installed: {run['missing']}"
            if "failed" in run:
                return f"failed: {run['failed']}"
        return None

    def median(self, key: str) -> float | None:
        found = [run[key] for run in self.runs if run.get(key) is not None]
        return statistics.median(found) if found else None

    @property
    def summary(self) -> str:
        speed = self.median("tokens_per_second")
        return self.reason or (f"{speed:.0f} tokens/s" if speed is not None else "nothing")

    def plain(self) -> dict[str, Any]:
        return {
            "model": self.phase.model.name,
            "variant": self.variant.name,
            "note": self.phase.note,
            "runs": self.runs,
        }

    def is_agreeing(self, rows: Sequence["Row"]) -> bool:
        """Whether its first loss is that of the first variant of the same model, as far as the precision goes."""
        mine, others = self.median("first_loss"), _first(self, rows)
        if mine is None or others is None:
            return True
        is_cpu = all(run.get("device") == "cpu" for run in self.runs)
        return abs(mine - others) <= (_AGREE_FLOAT32 if is_cpu else _AGREE_BF16) * abs(others)


def _first(row: Row, rows: Sequence[Row]) -> float | None:
    same = [one for one in rows if one.phase.model == row.phase.model]
    return next((loss for one in same if (loss := one.median("first_loss")) is not None), None)


def page(
    rows: Sequence[Row], ceilings: Mapping[str, dict[str, Any]], kind: str, threads: int, seconds: float
) -> str:
    precision = "float32." if kind != "gpu" else "bf16 products, float32 weights unless a row says otherwise."
    devices = sorted({run["device"] for row in rows for run in row.runs if "device" in run})
    where = (
        f"{os.cpu_count()} cores, {platform.machine()}, {', '.join(devices)}, {threads} thread(s) on a CPU"
    )
    lines = [
        INTRODUCTION.format(
            date=datetime.now(UTC).strftime("%d %B %Y"),
            minutes=seconds / 60,
            machine=f"{where}; load of the last 15 minutes {os.getloadavg()[2]:.1f}",
            packages=", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
            precision=precision,
        )
    ]
    for phase in dict.fromkeys(_key(row) for row in rows):
        members = [row for row in rows if _key(row) == phase]
        lines += [f"## {phase}", "", *_table(members, rows), ""]
        said = ceilings.get(members[0].phase.model.folder)
        if said and not members[0].phase.note and not members[0].phase.model.mean_document:
            lines += [*_ceilings(said), ""]
    if kind != "gpu":
        lines += ["## Not run", "", GPU_LEFT]
    return "\n".join(lines)


def _key(row: Row) -> str:
    return ", ".join(part for part in (row.phase.model.name, row.phase.note) if part)


def _table(members: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    is_gpu = any(run.get("device", "cpu") != "cpu" for row in members for run in row.runs)
    head = [
        "variant",
        "tokens/s",
        "step p50 / p90, ms",
        "against the plain loop",
        "first loss",
        "peak MB",
        "warm-up s",
    ]
    head += ["MFU / causal"] if is_gpu else ["GFLOP/s"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    base = members[0]
    for row in members:
        if row.reason is not None or not row.runs:
            lines.append(f"| {row.variant.name} | {row.reason} |" + " |" * (len(head) - 2))
            continue
        agrees = "" if row.is_agreeing(rows) else " **differs**"
        cells = [
            row.variant.name,
            f"{_number(row, 'tokens_per_second'):,.0f}",
            f"{1e3 * _number(row, 'step_p50'):.1f} / {1e3 * _number(row, 'step_p90'):.1f}",
            _ratio(row, base),
            f"{_number(row, 'first_loss'):.5f}{agrees}",
            f"{_number(row, 'peak_bytes') / 1e6:,.0f}",
            f"{_number(row, 'warmup_seconds'):.1f}",
        ]
        if is_gpu:
            cells.append(f"{_number(row, 'mfu'):.1%} / {_number(row, 'mfu_causal'):.1%}")
        else:
            cells.append(f"{_number(row, 'operations_per_second') / 1e9:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _number(row: Row, key: str) -> float:
    found = row.median(key)
    return float("nan") if found is None else found


def _ratio(row: Row, base: Row) -> str:
    if row is base or base.reason is not None:
        return ""
    speed = _number(row, "tokens_per_second") / _number(base, "tokens_per_second")
    processor = _number(base, "cpu_seconds_per_step") / _number(row, "cpu_seconds_per_step")
    return f"{speed:.2f} ({processor:.2f})"


def _ceilings(said: dict[str, Any]) -> list[str]:
    if "failed" in said:
        return [f"The ceilings could not be measured: {said['failed']}."]
    products = ", ".join(f"{shape}: {rate / 1e9:,.0f}" for shape, rate in said["products"].items())
    copied = f"{said['copy_bytes_per_second'] / 1e9:,.1f} GB/s read and written"
    return [
        f"Ceilings here: copy {copied}; matrix products (rows x in x out), GFLOP/s: {products}; causal attention "
        f"forward and backward, counted whole: {said['attention'] / 1e9:,.0f}."
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
