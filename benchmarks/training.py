"""How fast our trainer's step is beside the loops that people write: tokens a second, MFU, memory, on this machine.

    python benchmarks/training.py                       # on a GPU: 1.1 B parameters; on a CPU: 1 M and 30 M
    python benchmarks/training.py --dry                 # a tiny model, seconds: shows that every line works
    python benchmarks/training.py --markdown docs/training-performance.md

Every variant is a process of its own, so that none has another's memory; they take turns, and ratios are within one
run. All get the same weights and the same random tokens: the losses of the first step must agree. What a variant needs
and is not installed is said in its row. Kernels of deltas have a benchmark of their own, ``benchmarks/gpu_codecs.py``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training_page import Model, Phase, Row, Variant, page

from consortium.canonical import encode, replace
from consortium.files import write_bytes_atomically
from site_agent.config import Engine

HERE = Path(__file__).parent
PLAIN = Variant(name="plain loop, transformers", way="plain")
KEPT = Variant(name="plain loop, freed memory kept", way="plain", keeps_memory=True)
COMPILED = Variant(name="plain loop, compiled whole", way="compiled")
LIGER = Variant(name="plain loop, Liger", way="liger")
TITAN = Variant(name="torchtitan's model, compiled", way="torchtitan")
OURS_HF = Variant(name="ours, transformers", engine=Engine(backend="transformers", compile="off"))
NATIVE = Variant(name="ours, native", engine=Engine(backend="native", compile="off"))
BLOCKS = Variant(name="ours, native, blocks compiled", engine=Engine(backend="native", compile="on"))
MASTERS = Variant(
    name="ours, native, compiled, bf16 weights",
    engine=Engine(backend="native", compile="on", weights="bf16"),
)
SURE = Variant(
    name="ours, native, compiled, deterministic",
    engine=Engine(backend="native", compile="on"),
    is_deterministic=True,
)
IN_PARTS = Variant(
    name="ours, native, loss in parts", engine=Engine(backend="native", compile="off", head="in_parts")
)


def llama(**sizes: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        **sizes,
    }


def sized(width: int, inner: int, layers: int, heads: int, key_heads: int, vocabulary: int) -> dict[str, Any]:
    return llama(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
    )


ONE_B = sized(2048, 5632, 22, 32, 4, 32_000) | {"tie_word_embeddings": False}
ONE_B_WIDE = sized(2048, 5632, 22, 32, 4, 256_000)
CPU_1M = sized(128, 344, 4, 4, 2, 2048)
CPU_30M = sized(512, 1376, 8, 8, 4, 8192)
TINY = sized(32, 96, 2, 4, 2, 512)


def phases(kind: str) -> list[Phase]:
    """What is run on a GPU, on a CPU, or dry."""
    if kind == "gpu":
        big = Model(name="1.1 B, vocabulary 32k", config=ONE_B, batch_sequences=8, sequence_tokens=2048)
        wide = Model(
            name="1.5 B, vocabulary 256k", config=ONE_B_WIDE, batch_sequences=8, sequence_tokens=2048
        )
        packed = Model(
            name="1.1 B, documents of 600 tokens packed",
            config=ONE_B,
            batch_sequences=4,
            sequence_tokens=4096,
            mean_document=600,
        )
        ours = (NATIVE, BLOCKS, MASTERS, SURE)
        return [
            Phase(model=big, variants=(PLAIN, LIGER, COMPILED, TITAN, OURS_HF, *ours), steps=20, warmup=5),
            Phase(model=wide, variants=(LIGER, BLOCKS, MASTERS), steps=15, warmup=5),
            Phase(model=packed, variants=(LIGER, BLOCKS, MASTERS), steps=15, warmup=5),
            Phase(model=big, variants=(LIGER, MASTERS), steps=20, warmup=5, note="again, for the spread"),
        ]
    if kind == "dry":
        tiny = Model(name="tiny", config=TINY, batch_sequences=2, sequence_tokens=32)
        packed = Model(
            name="tiny, packed", config=TINY, batch_sequences=2, sequence_tokens=32, mean_document=8
        )
        return [
            Phase(model=tiny, variants=(PLAIN, LIGER, TITAN, NATIVE), steps=4, warmup=2),
            Phase(model=packed, variants=(NATIVE, IN_PARTS), steps=4, warmup=2),
        ]
    small = Model(name="1.2 M, 2048 tokens a step", config=CPU_1M, batch_sequences=8, sequence_tokens=256)
    middle = Model(name="27 M, 1024 tokens a step", config=CPU_30M, batch_sequences=4, sequence_tokens=256)
    packed = Model(
        name="1.2 M, documents of 60 tokens packed",
        config=CPU_1M,
        batch_sequences=8,
        sequence_tokens=256,
        mean_document=60,
    )
    return [
        Phase(
            model=small,
            variants=(PLAIN, KEPT, NATIVE, IN_PARTS, OURS_HF, COMPILED, BLOCKS, TITAN),
            steps=24,
            warmup=4,
        ),
        Phase(model=middle, variants=(PLAIN, NATIVE, IN_PARTS, COMPILED, BLOCKS), steps=10, warmup=2),
        Phase(model=packed, variants=(PLAIN, NATIVE), steps=24, warmup=4),
    ]


def make_base(model: Model, folder: Path) -> None:
    """A model folder with random weights, if it is not there; drawn on the GPU where there is one."""
    if (folder / "config.json").exists():
        return
    code = (
        "import json, sys, torch\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "config, out = json.loads(sys.argv[1]), sys.argv[2]\n"
        "torch.manual_seed(1)\n"
        "with torch.device('cuda' if torch.cuda.is_available() else 'cpu'):\n"
        "    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)\n"
        "network.save_pretrained(out, max_shard_size='2GB')\n"
    )
    command = [sys.executable, "-P", "-c", code, json.dumps(dict(model.config)), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def started(script: str, spec: object, environment: Mapping[str, str]) -> dict[str, Any]:
    """What the script prints last. A process that ends otherwise has failed, and says so in its row."""
    done = subprocess.run(
        [sys.executable, "-P", str(HERE / script), encode(spec).decode()],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        why = done.stderr.strip().splitlines()[-1:] or ["nothing said"]
        return {"failed": f"exit code {done.returncode}: {why[0]}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def run_phase(
    phase: Phase, folder: Path, threads: int, repeats: int, environment: Mapping[str, str]
) -> list[Row]:
    model, rows = phase.model, {variant: Row(phase=phase, variant=variant) for variant in phase.variants}
    for number in range(repeats):
        for variant in phase.variants:
            if rows[variant].reason:
                continue
            spec = {
                "way": variant.way,
                "engine": variant.engine,
                "folder": str(folder),
                "batch_sequences": model.batch_sequences,
                "sequence_tokens": model.sequence_tokens,
                "mean_document": model.mean_document,
                "keeps_memory": variant.keeps_memory,
                "steps": phase.warmup + phase.steps,
                "warmup": phase.warmup,
                "threads": threads,
                "is_deterministic": variant.is_deterministic,
            }
            began = time.monotonic()
            rows[variant].runs.append(started("training_variant.py", spec, environment))
            told = f"{model.name}: {variant.name}, turn {number + 1}: {rows[variant].summary}"
            print(f"{told} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    return list(rows.values())


def named(variant: Variant, words: Sequence[str]) -> bool:
    return any(word in variant.name for word in words)


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument(
        "--workdir", type=Path, help="folder for the models; a temporary one if it is not given"
    )
    parser.add_argument("--repeats", type=int, help="turns; 1 on a GPU and dry, else 3")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--only", default="", help="only phases whose model's name holds this")
    parser.add_argument(
        "--skip", nargs="+", default=[], help="leave out variants whose name holds one of these"
    )
    parser.add_argument("--markdown", type=Path, help="page to write")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    options = parser.parse_args()
    kind = "dry" if options.dry else "gpu" if torch.cuda.is_available() else "cpu"
    repeats = options.repeats or (3 if kind == "cpu" else 1)
    chosen = [phase for phase in phases(kind) if options.only in phase.model.name]
    chosen = [
        replace(phase, variants=tuple(one for one in phase.variants if not named(one, options.skip)))
        for phase in chosen
    ]
    began, rows, ceilings = time.monotonic(), [], {}
    with tempfile.TemporaryDirectory(prefix="sprachbund-training-") as scratch:
        workdir = options.workdir or Path(scratch)
        environment = {
            "OMP_NUM_THREADS": str(options.threads),
            "PYTHONPATH": os.pathsep.join(
                [str(HERE.parent), str(HERE.parent / "protos"), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "TORCHINDUCTOR_CACHE_DIR": str((workdir / "inductor").resolve()),
        }
        for phase in chosen:
            folder = (workdir / phase.model.folder).resolve()
            make_base(phase.model, folder)
            if phase.model.folder not in ceilings and not phase.model.mean_document:
                spec = {
                    "folder": str(folder),
                    "rows": phase.model.batch_sequences * phase.model.sequence_tokens,
                    "sequence_tokens": phase.model.sequence_tokens,
                    "threads": options.threads,
                }
                ceilings[phase.model.folder] = started("training_ceilings.py", spec, environment)
            rows += run_phase(phase, folder, options.threads, repeats, environment)
    told = page(rows, ceilings, kind, options.threads, time.monotonic() - began)
    if options.json:
        print(json.dumps([row.plain() for row in rows]))
    else:
        print(told)
    if options.markdown:
        write_bytes_atomically(options.markdown, told.encode())
    return 0 if _agree(rows) else 1


def _agree(rows: Sequence[Row]) -> bool:
    """Whether what ran has the same loss in the first step, and our own ways ran at all."""
    ran = all(row.reason is None or row.variant.way != "ours" for row in rows)
    return ran and all(row.is_agreeing(rows) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
