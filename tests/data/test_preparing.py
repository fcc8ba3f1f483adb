"""Preparing a site's text: the same bytes whatever the processes, the segments, and who was killed when."""

import contextlib
import glob
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import prepare_text
import pytest
import zstandard
from processes import reaped, wait_until_gone
from text_samples import SPLIT, files_below, hplt_v2, jsonl, reading, sentence, source

from consortium.errors import BadInput, Corrupt, Unavailable
from site_agent.config import load_site_config
from site_agent.data import contents
from site_agent.data.contents import Survey, plan_of, remembered, remembered_surveys
from site_agent.data.pool import Orders, Progress, _Process, work_through
from site_agent.data.schedule import Task
from site_agent.data.segments import Words
from site_agent.data.words import encoder, words_alone
from site_agent.holdings import by_language
from site_agent.prepared import prepare_all
from site_agent.text import is_heldout

SCRIPT = Path(prepare_text.__file__)
SMALL = 20_000  # bytes of a segment


def start(
    site: Path, cache: Path, tokenizer: Path, processes: int, size: int = SMALL, seed: str = "0"
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, SCRIPT, site, cache, tokenizer, str(processes), str(size)],
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    return reaped(process)


def run(*arguments: object, **more: str) -> None:
    with start(*arguments, **more) as process:  # type: ignore[arg-type]
        _, said = process.communicate()
    assert process.returncode == 0, said.decode()


def kill(process: subprocess.Popen[bytes]) -> None:
    """And wait for its helpers, which leave by themselves: nobody writes after this."""
    helpers = _children(process.pid)
    process.kill()
    process.communicate()
    wait_until_gone(helpers)


@pytest.fixture(scope="module")
def expected(
    site_yaml: Path, tokenizer_json: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    cache = tmp_path_factory.mktemp("alone")
    prepare_text.main(site_yaml, cache, tokenizer_json, 1, SMALL)
    return files_below(cache)


@pytest.mark.parametrize(("processes", "seed"), [(2, "1"), (3, "2")])
def test_processes_and_hash_seeds_make_no_difference(
    site_yaml: Path,
    tokenizer_json: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    processes: int,
    seed: str,
) -> None:
    run(site_yaml, tmp_path, tokenizer_json, processes, seed=seed)
    assert files_below(tmp_path) == expected
    assert not list((tmp_path / "preparing").iterdir())


@pytest.mark.parametrize("size", [3_000, 1 << 26])
def test_neither_does_the_size_of_segments(
    site_yaml: Path, tokenizer_json: Path, tmp_path: Path, expected: dict[str, bytes], size: int
) -> None:
    prepare_text.main(site_yaml, tmp_path, tokenizer_json, 1, size)
    assert files_below(tmp_path) == expected


def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    site_yaml: Path, tokenizer_json: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """A moment is a number of segments on disk, so that every life is killed at work, its helpers after it.

    Who looks for it may look too late, and the life ends by itself: then it begins once more.
    """
    draw = random.Random(5)
    killed_at: list[int] = []
    for number in itertools.count():
        cache = tmp_path / str(number)
        cache.mkdir()
        has_ended = False
        while not has_ended:
            with start(site_yaml, cache, tokenizer_json, processes=1 + len(killed_at) % 3) as process:
                goal = _segments(cache) + draw.randint(1, 7)
                while process.poll() is None and _segments(cache) < goal:
                    time.sleep(0.001)
                has_ended = process.poll() is not None
                if has_ended:
                    assert process.returncode == 0, process.communicate()[1].decode()
                else:
                    kill(process)
                    killed_at.append(_segments(cache))
        assert files_below(cache) == expected
        if len(killed_at) >= 3:
            break


def test_killed_while_segments_are_merged_it_ends_with_the_same_bytes(
    site_yaml: Path, tokenizer_json: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    for life in range(3):
        with start(site_yaml, tmp_path, tokenizer_json, 1 + life % 2) as process:
            while process.poll() is None and not glob.glob(str(tmp_path / "preparing/*/.done*/*")):
                time.sleep(0.0005)
            kill(process)
    run(site_yaml, tmp_path, tokenizer_json, 2)
    assert files_below(tmp_path) == expected


def _segments(cache: Path) -> int:
    """Counted while the process under test removes folders, which pathlib's glob fails of and this one passes over."""
    return len(glob.glob(str(cache / "preparing/*/*.segment")))


@pytest.mark.parametrize("is_done", [False, True], ids=["begins", "ends"])
def test_another_process_that_does_the_same_takes_nothing_away(
    is_done: bool, tmp_path: Path, tokenizer_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to the merge of segments when this one has merged them and not yet moved them into their place."""
    text = tmp_path / "et.jsonl"
    text.write_bytes(jsonl([{"id": str(n), "text": sentence(n)} for n in range(50)]))
    words = words_alone(tokenizer_json, None)
    plan = plan_of([source("et", text)], words, SPLIT, tmp_path / "cache")
    move, others = contents.move_into_place, iter([1])

    def beat() -> None:
        if not is_done:
            raise InterruptedError

    def meanwhile(temporary: Path, place: Path) -> None:
        for _ in others:
            with contextlib.suppress(InterruptedError, Unavailable):
                contents.finish(plan, beat)
        move(temporary, place)

    monkeypatch.setattr(contents, "move_into_place", meanwhile)
    (made,) = prepare_all([plan], encode_texts=lambda: encoder(tokenizer_json, words))
    assert made.contents.private.documents + made.contents.heldout.documents == 50


def test_what_was_done_before_the_kill_is_not_done_again(
    site_yaml: Path, tokenizer_json: Path, tmp_path: Path
) -> None:
    words = words_alone(tokenizer_json, None)
    plans = prepare_text.plans(site_yaml, tmp_path, tokenizer_json, SMALL)
    work_through(plans, encode_texts=lambda: encoder(tokenizer_json, words), merge=False)
    segments = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.segment")}
    assert len(segments) > 10
    lost = sorted(segments)[3]
    lost.unlink()
    told: list[Progress] = []
    batches = []

    def counted() -> object:
        encode = encoder(tokenizer_json, words)

        def one(texts: list[str]) -> list[list[int]]:
            batches.append(len(texts))
            return encode(texts)

        return one

    work_through(plans, encode_texts=counted, tell=told.append, merge=False)  # type: ignore[arg-type]
    assert len(batches) == 1
    assert {
        path for path in segments if path != lost and path.stat().st_mtime_ns == segments[path]
    } == segments.keys() - {lost}
    assert lost.exists()
    assert told[-1].documents > 0


def test_helpers_leave_when_their_caller_is_killed(tmp_path: Path, tokenizer_json: Path) -> None:
    text = tmp_path / "et.jsonl"
    text.write_bytes(jsonl([hplt_v2(str(n), ["ekk_Latn"], sentence(n, 4000)) for n in range(1500)]))
    site = tmp_path / "site.yaml"
    site.write_text(
        "site: s\ncoordinator: c:1\nenrolment: c:2\nhome: home\n"
        "text: [{language: et, path: et.jsonl, access: private, licence: CC0-1.0}]\n"
    )
    with start(site, tmp_path / "cache", tokenizer_json, 2, 1 << 30) as process:
        helpers: Sequence[int] = []
        while len(helpers) < 2 and process.poll() is None:
            helpers = _children(process.pid)
            time.sleep(0.02)
        kill(process)
    assert len(helpers) == 2


def test_a_helper_that_is_killed_is_told_and_nothing_is_lost(
    site_yaml: Path, tokenizer_json: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    plans = prepare_text.plans(site_yaml, tmp_path, tokenizer_json, SMALL)

    def kill(now: Progress) -> None:
        for helper in _children(os.getpid()):
            with contextlib.suppress(OSError):  # another thread has just waited for it
                if b"site_agent.data.worker" in Path(f"/proc/{helper}/cmdline").read_bytes():
                    os.kill(helper, signal.SIGKILL)

    with pytest.raises(Unavailable, match="killed for its memory"):
        prepare_all(plans, 2, tokenizer=tokenizer_json, tell=kill)
    prepare_all(plans, 2, tokenizer=tokenizer_json)
    assert files_below(tmp_path) == expected


def test_a_helper_that_died_before_its_task_came_is_told_and_closed() -> None:
    worker = _Process(Orders(plans=(), tokenizer=None))
    worker._child.kill()
    worker._child.wait()
    with pytest.raises(Unavailable, match="killed for its memory"):
        worker.do(Task(plan=0, unit=0, number=0))
    worker.close()
    assert worker._child.stdin.closed and worker._child.stdout.closed  # type: ignore[union-attr]


def test_the_split_is_what_its_rules_say(site_yaml: Path, tokenizer_json: Path, tmp_path: Path) -> None:
    """By brute force over all documents in memory."""
    config = load_site_config(site_yaml)
    words = words_alone(tokenizer_json, None)
    encode = encoder(tokenizer_json, words)
    for plan in prepare_text.plans(site_yaml, tmp_path, tokenizer_json, SMALL):
        (made,) = prepare_all([plan], encode_texts=lambda: encode)
        texts: dict[str, dict[bytes, str]] = {"private": {}, "public": {}}
        held: set[bytes] = set()
        for text in by_language(config.text)[plan.language]:
            for document in reading(text)[0]:
                texts[text.access][document.digest] = document.text
                if is_heldout(document.id or document.digest.hex(), 0, config.heldout_share):
                    held.add(document.digest)
        wanted = {
            "heldout": {
                digest: one for found in texts.values() for digest, one in found.items() if digest in held
            },
            "private": {digest: one for digest, one in texts["private"].items() if digest not in held},
            "public": {
                digest: one
                for digest, one in texts["public"].items()
                if digest not in held and digest not in texts["private"]
            },
        }
        assert all(wanted.values())
        for part, documents in wanted.items():
            ordered = [documents[digest] for digest in sorted(documents)]
            ids = [[*tokens, words.eos] for tokens in encode(ordered)]
            assert [one.tolist() for one in made.tokens(part).documents()] == ids
            described = getattr(made.contents, part)
            assert described.tokens == sum(map(len, ids))
            assert described.bytes == sum(len(one.encode()) for one in ordered)
        sizes = [len(wanted["heldout"][digest].encode()) for digest in sorted(wanted["heldout"])]
        assert made.heldout_bytes.tolist() == sizes


def surveys(site: Path, cache: Path, tokenizer: Path) -> dict[str, Survey]:
    found = {}
    for plan in prepare_text.plans(site, cache, tokenizer, SMALL):
        for one in remembered_surveys(plan) or ():
            found[f"{one.holding.language}.{one.holding.access}"] = one
    return found


def test_what_is_odd_is_counted(site_yaml: Path, tokenizer_json: Path, tmp_path: Path) -> None:
    prepare_text.main(site_yaml, tmp_path, tokenizer_json, 1, SMALL)
    found = surveys(site_yaml, tmp_path, tokenizer_json)
    public = found["et.public"]
    assert public.duplicates == 10
    assert public.findings.faults == {"not JSON": 1}
    assert public.findings.first_faults == (f"{site_yaml.parent}/text/hplt/5_1.jsonl.zst:151: not JSON",)
    assert public.findings.other_languages == {"rus_Cyrl": 1}
    assert public.findings.passed_over == {"opted out": 4}
    assert public.findings.said == 150 + 120 + 1 + 40
    assert public.holding.documents == 260 + 1 + 36
    private = found["fi.private"]
    assert private.findings.other_languages == {"eng": 40}
    assert private.findings.passed_over == {"another language": 40}
    assert private.holding.documents == 80
    assert found["et.private"].holding.documents == 80


def test_a_broken_file_is_named_after_all_else_was_done(tmp_path: Path, tokenizer_json: Path) -> None:
    words = words_alone(tokenizer_json, None)
    for name, first in (("a", 0), ("b", 100), ("c", 200)):
        data = zstandard.compress(
            jsonl([hplt_v2(f"{name}{n}", ["ekk_Latn"], sentence(n)) for n in range(first, first + 100)])
        )
        (tmp_path / f"{name}.jsonl.zst").write_bytes(data)
    for name in "ab":
        path = tmp_path / f"{name}.jsonl.zst"
        path.write_bytes(path.read_bytes()[:-40])

    def plan() -> object:
        return plan_of([source("et", tmp_path)], words, SPLIT, tmp_path / "cache", 1000)

    with pytest.raises(Corrupt, match=r"a\.jsonl\.zst.*ends within a frame.*b\.jsonl\.zst"):
        prepare_all([plan()], encode_texts=lambda: encoder(tokenizer_json, words))  # type: ignore[list-item]
    assert remembered(plan()) is None  # type: ignore[arg-type]
    done = list((tmp_path / "cache").rglob("*.segment"))
    for name in "ab":
        (tmp_path / f"{name}.jsonl.zst").unlink()
    made = prepare_all([plan()], encode_texts=lambda: encoder(tokenizer_json, words))[0]  # type: ignore[list-item]
    parts = made.contents
    assert parts.private.documents + parts.heldout.documents == 100
    assert done
    assert not list((tmp_path / "cache" / "preparing").iterdir())


def test_token_files_are_as_wide_as_the_vocabulary_needs(tmp_path: Path) -> None:
    (tmp_path / "et.jsonl").write_bytes(jsonl([{"text": "abc"}, {"text": "de"}]))
    for size, dtype in ((1 << 16, np.uint16), ((1 << 16) + 1, np.int32)):
        words = Words(digest="1" * 64, eos=0, vocabulary_size=size)  # type: ignore[arg-type]
        plan = plan_of([source("et", tmp_path / "et.jsonl")], words, SPLIT, tmp_path / "cache")
        (made,) = prepare_all(
            [plan], encode_texts=lambda: lambda texts: [list(one.encode()) for one in texts]
        )
        tokens = np.concatenate([made.tokens(part).tokens for part in ("private", "heldout")])
        assert tokens.dtype == dtype and sorted(tokens.tolist()) == sorted([0, 0, *b"abcde"])


def test_a_tokenizer_without_a_known_end_needs_one_named(tokenizer_json: Path) -> None:
    assert words_alone(tokenizer_json, None).eos == 0
    assert words_alone(tokenizer_json, 7).eos == 7
    with pytest.raises(BadInput, match="has no token 320; give --eos"):
        words_alone(tokenizer_json, 320)


def _children(pid: int) -> Sequence[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found
