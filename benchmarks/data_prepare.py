"""How fast text is prepared, beside a plain loop over the tokenizers library: documents, megabytes and tokens a second.

    PYTHONPATH=.:tests/data python benchmarks/data_prepare.py --megabytes 64 --processes 1 2 --rounds 3

The text is made of real sentences (the demo's catalogues, five languages) drawn at random into documents of
about 3 kB, as HPLT v3 lines in several zstd frames, FineWeb2-like Parquet, WET and plain text; all hold the
same documents. The plain loop is what one would write in ten lines: the same decompression, ``json.loads``,
``encode_batch_fast`` of 256 texts, ``numpy`` to a file; no digests, no split, no removal of repeated
documents, no manifest, nothing durable. Tokenizers' own threads are off in both. Rounds alternate. Beside the
wall clock stands CPU time, of all processes together: on a machine that others use it is the steadier one.
"""

import argparse
import io
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from text_samples import fineweb, hplt_v3, jsonl, wet, write_parquet, zst_frames

from console.corpora import write_corpora
from consortium.ids import Language
from site_agent.config import Text
from site_agent.data.contents import Plan, plan_of
from site_agent.data.segments import Split
from site_agent.data.words import encoder, words_alone
from site_agent.prepared import prepare_all
from site_agent.trainer.bpe import train_bpe

LANGUAGES = tuple(Language(code) for code in ("bg", "cs", "da", "el", "fi"))
FORMATS = ("hplt v3 .jsonl.zst", "fineweb2 .parquet", "wet .warc.wet.gz", "plain .txt")
SHARDS = 4


def documents(folder: Path, megabytes: float) -> list[str]:
    """Texts of about 3 kB, of so many megabytes in all."""
    write_corpora(folder, LANGUAGES)
    sentences = [
        json.loads(line)["text"]
        for side in ("public", "private")
        for code in LANGUAGES
        for line in (folder / side / f"{code}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    draw = np.random.default_rng(1)
    made: list[str] = []
    size = 0.0
    while size < megabytes * 1e6:
        chosen = draw.integers(0, len(sentences), int(draw.integers(5, 40)))
        made.append("\n".join(sentences[index] for index in chosen.tolist()))
        size += len(made[-1].encode())
    return made


def write_texts(folder: Path, kind: str, texts: list[str]) -> Text:
    place = folder / kind.partition(" ")[0]
    place.mkdir()
    for shard in range(SHARDS):
        part = list(enumerate(texts))[shard::SHARDS]
        if kind.startswith("hplt"):
            lines = jsonl([hplt_v3(f"d{n}", ["ekk_Latn"], text) for n, text in part])
            (place / f"{shard}.jsonl.zst").write_bytes(zst_frames(lines, 16 << 20))
        elif kind.startswith("fineweb"):
            rows = [fineweb(f"d{n}", "ekk", "Latn", text) for n, text in part]
            write_parquet(place / f"{shard}.parquet", rows, 1000)
        elif kind.startswith("wet"):
            (place / f"{shard}.warc.wet.gz").write_bytes(wet([(f"d{n}", "ekk", text) for n, text in part]))
        else:
            (place / f"{shard}.txt").write_text("\n\n".join(text for _, text in part), encoding="utf-8")
    return Text(language=Language("et"), path=str(place), access="public", licence="CC0-1.0")


class Watch:
    """Wall and CPU seconds, of this process and those it has waited for."""

    def __init__(self) -> None:
        self._began = self._now()

    def read(self) -> tuple[float, float]:
        wall, cpu = self._now()
        return wall - self._began[0], cpu - self._began[1]

    def _now(self) -> tuple[float, float]:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in used)


def plain_loop(place: Path, tokenizer: Path, out: Path) -> tuple[float, float]:
    from tokenizers import Tokenizer

    watch = Watch()
    loaded = Tokenizer.from_file(str(tokenizer))
    with open(out, "wb") as file:
        for path in sorted(place.iterdir()):
            with open(path, "rb") as raw:
                stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
                batch: list[str] = []
                for line in io.BufferedReader(stream, 1 << 20):  # type: ignore[arg-type]
                    batch.append(json.loads(line)["text"])
                    if len(batch) == 256:
                        _write(file, loaded.encode_batch_fast(batch, add_special_tokens=False))
                        batch = []
                _write(file, loaded.encode_batch_fast(batch, add_special_tokens=False))
    return watch.read()


def _write(file: Any, encoded: list[Any]) -> None:
    for one in encoded:
        file.write(np.asarray([*one.ids, 0], "<u2").tobytes())


def prepared(plan: Plan, processes: int, tokenizer: Path) -> tuple[tuple[float, float], int, int]:
    """Seconds, documents, tokens; nothing is there before."""
    shutil.rmtree(plan.cache, ignore_errors=True)
    watch = Watch()
    made = prepare_all(
        [plan], processes, partial(encoder, tokenizer, words_alone(tokenizer, None)), tokenizer
    )[0]
    seconds = watch.read()
    parts = (made.contents.private, made.contents.public, made.contents.heldout)
    return seconds, sum(part.documents for part in parts), sum(part.tokens for part in parts)


def main() -> None:
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("--megabytes", type=float, default=64)
    reader.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    reader.add_argument("--rounds", type=int, default=3)
    reader.add_argument("--tokenizer", type=Path)
    reader.add_argument("--segment-megabytes", type=float, default=16)
    reader.add_argument("--markdown", type=Path)
    given = reader.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(Path(scratch), given)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lines = [
        "| what | processes | documents/s | MB/s | tokens/s | tokens per CPU second | x plain loop, CPU |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"{len(os.sched_getaffinity(0))} CPUs ({platform.machine()}), load {load} at the end.",
    ]
    print("\n".join(lines))
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(folder: Path, given: argparse.Namespace) -> list[str]:
    texts = documents(folder / "corpora", given.megabytes)
    size = sum(len(text.encode()) for text in texts)
    tokenizer = given.tokenizer or folder / "tokenizer.json"
    if given.tokenizer is None:
        tokenizer.write_text(train_bpe(texts[:3000], 32_000), encoding="utf-8")
    words = words_alone(tokenizer, None)
    sources = {kind: write_texts(folder, kind, texts) for kind in FORMATS}
    cases = [(kind, count) for kind in FORMATS for count in given.processes]
    taken: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in cases}
    plain: list[tuple[float, float]] = []
    done = tokens = 0
    for _ in range(given.rounds):
        plain.append(plain_loop(Path(sources[FORMATS[0]].path), tokenizer, folder / "plain.bin"))
        for kind, count in cases:
            split = Split(heldout_share=0.01, seed=0)
            segment = int(given.segment_megabytes * (1 << 20))
            plan = plan_of([sources[kind]], words, split, folder / "cache", segment)
            seconds, done, tokens = prepared(plan, count, tokenizer)
            taken[kind, count].append(seconds)

    def row(name: str, count: int, seconds: list[tuple[float, float]]) -> str:
        wall, cpu = (statistics.median(one[index] for one in seconds) for index in (0, 1))
        ratio = statistics.median(before[1] / after[1] for before, after in zip(plain, seconds, strict=True))
        cells = (
            f"{done / wall:,.0f}",
            f"{size / 1e6 / wall:.2f}",
            f"{tokens / wall:,.0f}",
            f"{tokens / cpu:,.0f}",
        )
        return f"| {name} | {count} | {' | '.join(cells)} | {ratio:.2f} |"

    rows = [row("plain loop over hplt v3", 1, plain)]
    return rows + [row(kind, count, seconds) for (kind, count), seconds in taken.items()]


if __name__ == "__main__":
    main()
