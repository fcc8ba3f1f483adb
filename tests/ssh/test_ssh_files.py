"""Job directories kept alike over a real connection: all arrives, big files once, and from where it broke."""

import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from consortium.errors import BadInput, Unavailable
from site_agent.launchers.base import LIFE_FILE
from site_agent.ssh import files as files_module
from site_agent.ssh import scripts
from site_agent.ssh.files import SshFiles
from site_agent.ssh.frames import frames

LITTLE = 2 << 20  # goes by itself, all the same
MODEL = b"\1" * 3000 + os.urandom(LITTLE)
BIG = 16 << 20
BIG_MODEL = MODEL + os.urandom(BIG - len(MODEL))  # for lines that break in the midst of it
JOB = "0123-jobs/0123-jobs.a1"


@pytest.fixture
def spool(tmp_path):
    return tmp_path / "home" / "spool"


@pytest.fixture
def there(site):
    """The job directory at the site."""
    return site.root / "jobs" / JOB


@pytest.fixture
def directory(spool):
    return staged(spool / JOB)


@pytest.fixture
def big(spool):
    return staged(spool / JOB, BIG_MODEL)


@pytest.fixture
def files(site, spool):
    return files_of(site, spool)


def files_of(site, spool, **more):
    """Whose caller waits for all that is carried, however slow the machine is."""
    return SshFiles(site.connect(), spool, site.settings.root, **{"wait_seconds": 300.0, **more})


def staged(directory, model=MODEL):
    for name, data in {
        "job.json": b"{}",
        "job.sig": b"sig",
        "site.json": b"{}",
        "tokenizer.json": b"words",
        "base/model-00001-of-00001.safetensors": model,
        "base/config of it.json": b"{}",
        "inputs/empty": b"",
        "life.json": b"not an input",
        "log.txt": b"nor this",
    }.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def result_of(there, size=LITTLE):
    data = {"contribution.json": b"{}", "delta.safetensors": os.urandom(size), "model/a b.bin": b"x"}
    for name, content in data.items():
        path = there / "result" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return data


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def moved(site):
    """Bytes that went over the line so far: up, down."""
    return site.wire.carried["up"], site.wire.carried["down"]


def test_a_push_brings_the_inputs_and_nothing_else(files, directory, there):
    files.push(directory)
    expected = tree(directory)
    del expected["life.json"], expected["log.txt"]
    arrived = tree(there)
    assert len(arrived.pop(".pushed")) == 65
    assert arrived == expected
    assert there.stat().st_mode & 0o077 == 0
    assert files.place(directory) == str(there)


def test_a_second_push_of_the_same_costs_one_question(site, files, directory):
    files.push(directory)
    before = moved(site)
    files.push(directory)
    assert sum(moved(site)) - sum(before) < 10_000


def test_a_big_input_is_sent_once_for_all_attempts(site, files, directory, spool, there):
    files.push(directory)
    sent = moved(site)[0]
    assert len(MODEL) < sent < len(MODEL) + 200_000
    other = spool / "4567-jobs" / "4567-jobs.a1"
    shutil.copytree(directory, other)
    files_of(site, spool).push(other)  # by another agent, even
    assert moved(site)[0] - sent < 100_000
    name = "base/model-00001-of-00001.safetensors"
    assert (site.root / "jobs" / other.relative_to(spool) / name).samefile(there / name)
    assert (there / name).stat().st_mode & 0o222 == 0


def test_a_push_goes_on_where_the_line_broke(site, files, big, there):
    site.connect().run("true")
    site.wire.cut_after("up", BIG // 2)
    files.push(big)
    assert tree(there / "base") == tree(big / "base")
    again = moved(site)[0] - BIG
    print(f"bytes sent a second time, logins and questions included: {again}")
    assert again < 4 << 20  # what was under way in sockets and windows


def test_a_push_that_was_given_up_goes_on_in_the_next_agent(site, spool, big, there, monkeypatch):
    monkeypatch.setattr("site_agent.ssh.moves._TRIES", 1)
    site.wire.cut_after("up", BIG // 2)
    with pytest.raises(Unavailable):
        files_of(site, spool).push(big)
    assert not (there / "site.json").exists()
    part = next((site.root / "cache").glob("*.part")).stat().st_size
    assert part > BIG // 4
    files_of(site, spool).push(big)
    assert tree(there / "base") == tree(big / "base")
    assert moved(site)[0] < BIG + (4 << 20)


def test_a_part_with_a_hole_is_found_out_and_sent_again(site, files, directory, there):
    """As after a power cut at the site: the length is there, the bytes are not."""
    model = directory / "base" / "model-00001-of-00001.safetensors"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    (site.root / "cache").mkdir(parents=True)
    (site.root / "cache" / f"{digest}.part").write_bytes(bytes(len(MODEL) // 2))
    files.push(directory)
    assert (there / "base" / model.name).read_bytes() == model.read_bytes()


def test_a_writer_that_lingers_does_no_harm(site, files, directory, there):
    """The old line's dd may still write when the new one's begins; both write the same bytes to the same place."""
    model = directory / "base" / "model-00001-of-00001.safetensors"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    from site_agent.ssh.scripts import BLOCK, SEND
    from site_agent.ssh.session import write_all

    (site.root / "cache").mkdir(parents=True)
    with site.connect().session(SEND, [site.settings.root, digest, "0"]) as lingering:
        write_all(lingering.stdin, model.read_bytes()[: 5 * BLOCK + 7])
        files.push(directory)
        write_all(lingering.stdin, model.read_bytes()[5 * BLOCK + 7 : 9 * BLOCK])
        lingering.stdin.close()
        lingering.process.wait(timeout=120)
    assert (there / "base" / model.name).read_bytes() == model.read_bytes()


def test_a_changed_input_and_one_that_was_purged_are_placed_again(files, directory, there):
    files.push(directory)
    (there / "base" / "model-00001-of-00001.safetensors").unlink()  # as scratch folders do
    (directory / "tokenizer.json").write_bytes(b"other words")
    files.push(directory)
    assert tree(there / "base") == tree(directory / "base")
    assert (there / "tokenizer.json").read_bytes() == b"other words"


def test_what_takes_long_goes_on_beside_the_agent(site, spool, directory, there, monkeypatch):
    files = files_of(site, spool, wait_seconds=0.0)
    may_go_on = threading.Event()

    def takes_long(work):
        def waits(*given):
            assert may_go_on.wait(300)
            work(*given)

        return waits

    for name in ("_push", "_bring"):
        monkeypatch.setattr(files, name, takes_long(getattr(files, name)))
    with pytest.raises(Unavailable, match="on their way"):
        files.push(directory)
    may_go_on.set()
    files._wait_seconds = 300.0
    files.push(directory)
    assert (there / "site.json").exists()
    result_of(there)
    may_go_on.clear()
    files._wait_seconds = 0.0
    assert "on its way" in files.pull([directory])[directory]
    assert not (directory / "result").exists()
    may_go_on.set()
    files._wait_seconds = 300.0
    assert files.pull([directory]) == {}
    assert tree(directory / "result") == tree(there / "result")


def test_an_error_that_nobody_foresaw_is_no_success(site, files, directory, monkeypatch):
    """Else a job would be submitted without its inputs."""

    def fails(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(files, "_push", fails)
    with pytest.raises(ValueError, match="a bug"):
        files.push(directory)


def test_a_folder_of_sockets_that_is_gone_is_said(files, directory, site, sockets):
    for path in sockets.iterdir():
        path.unlink()
    sockets.rmdir()
    try:
        with pytest.raises(Unavailable, match="No such file or directory"):
            files.push(directory)
    finally:
        sockets.mkdir(mode=0o700)


def test_a_result_comes_whole_from_where_the_line_broke(site, files, directory, there):
    files.push(directory)
    result_of(there, BIG)
    before = moved(site)[1]
    site.wire.cut_after("down", BIG // 2)
    assert files.pull([directory]) == {}
    assert tree(directory / "result") == tree(there / "result")
    assert not (directory / ".result.arriving").exists()
    again = moved(site)[1] - before - BIG
    print(f"bytes fetched a second time, logins and answers included: {again}")
    assert again < 4 << 20


def test_a_result_goes_on_in_the_next_agent(site, spool, directory, there, monkeypatch):
    monkeypatch.setattr("site_agent.ssh.moves._TRIES", 1)
    files = files_of(site, spool)
    files.push(directory)
    result_of(there, BIG)
    before = moved(site)[1]
    site.wire.cut_after("down", BIG // 2)
    assert "cannot be fetched yet" in files.pull([directory])[directory]
    assert not (directory / "result").exists()
    assert files_of(site, spool).pull([directory]) == {}
    assert tree(directory / "result") == tree(there / "result")
    assert moved(site)[1] - before < BIG + (4 << 20)


def test_a_result_that_arrives_wrong_is_fetched_anew(site, files, directory, there):
    files.push(directory)
    result_of(there)
    part = directory / ".result.arriving" / "files" / "delta.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    assert "another digest" in files.pull([directory])[directory]
    assert files.pull([directory]) == {}
    assert tree(directory / "result") == tree(there / "result")


def test_what_jobs_write_is_seen_here(site, files, directory, there, spool):
    other = staged(spool / "4567-jobs" / "4567-jobs.a1", b"")
    for one in (directory, other):
        files.push(one)
    for name in (
        "owner.1",
        "started.1.0",
        "end.1.0.json",
        "CONTINUE",
        "failure.json",
        "usage.json",
        "doubt.json",
    ):
        (there / name).write_text(f"of {name}")
    (there / "progress.jsonl").write_text('{"step": 1}\n')
    (there / "log.1.txt").write_text("begun\n")
    (there / "checkpoint" / "step-000000007").mkdir(parents=True)
    (there / "checkpoint" / "step-000000007" / "state.json").write_text("{}")
    assert files.pull([directory, other]) == {}
    for name in ("owner.1", "end.1.0.json", "CONTINUE", "failure.json", "usage.json", "started.1.0"):
        assert (directory / name).read_text() == f"of {name}"
        assert not (other / name).exists()
    assert (directory / "checkpoint" / "step-000000007" / "state.json").exists()
    # later: things grew, and things went
    with open(there / "progress.jsonl", "a") as file:
        file.write('{"step": 2}\n')
    (there / "log.1.txt").write_text("anew")
    (there / "CONTINUE").unlink()
    shutil.rmtree(there / "checkpoint")
    before = moved(site)[1]
    files.pull([directory, other])
    assert (directory / "progress.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert (directory / "log.1.txt").read_text() == "anew"
    assert not (directory / "CONTINUE").exists()
    assert not (directory / "checkpoint" / "step-000000007" / "state.json").exists()
    assert moved(site)[1] - before < 10_000


def test_a_long_log_is_caught_up_with(files, directory, there, monkeypatch):
    monkeypatch.setattr(files_module, "_GROWN_BYTES_MAX", 1000)
    files.push(directory)
    (directory / "log.txt").unlink()
    text = os.urandom(2500)
    (there / "log.txt").write_bytes(text)
    for length in (1000, 2000, 2500, 2500):
        files.pull([directory])
        assert (directory / "log.txt").read_bytes() == text[:length]


def test_notes_are_written_there_and_here_and_taken_away(files, directory, there):
    files.push(directory)
    files.write(directory, "STOP", b"")
    files.write(directory, LIFE_FILE, b'{"life": 1}')
    files.pull([directory])
    for place in (directory, there):
        assert (place / "STOP").read_bytes() == b""
        assert (place / LIFE_FILE).read_bytes() == b'{"life": 1}'
    files.remove(directory, "STOP")
    files.remove(directory, "STOP")
    assert not (directory / "STOP").exists() and not (there / "STOP").exists()


def test_a_note_that_was_cut_short_is_not_placed(site, files, directory, there):
    files.write(directory, "batch.1.sh", b"whole")
    site.wire.cut_after("up", 200_000)
    with pytest.raises(Unavailable):
        files.write(directory, "batch.1.sh", bytes(1 << 20))
    assert (there / "batch.1.sh").read_bytes() == b"whole"
    assert (directory / "batch.1.sh").read_bytes() == b"whole"


def test_a_site_that_is_away_changes_nothing_here(own_site, directory, spool):
    files = files_of(own_site, spool)
    files.push(directory)
    before = tree(directory)
    own_site.sshd.stop()
    own_site.wire.cut()
    for act in (
        lambda: files.pull([directory]),
        lambda: files.write(directory, "STOP", b""),
        lambda: files.remove(directory, "site.json"),
        lambda: files.push(staged(spool / "4567-jobs" / "4567-jobs.a1", b"")),
    ):
        with pytest.raises(Unavailable):
            act()
    assert tree(directory) == before


def test_an_agent_with_an_empty_spool_takes_back_what_runs(site, files, directory, there, tmp_path):
    files.push(directory)
    files.write(directory, LIFE_FILE, b'{"number": 3}')
    half = site.root / "jobs" / "4567-jobs" / "4567-jobs.a1"  # a push that never ended
    half.mkdir(parents=True)
    (half / "job.json").write_text("{}")
    elsewhere = tmp_path / "new home" / "spool"
    successor = files_of(site, elsewhere)
    assert successor.take_back() == [elsewhere / JOB]
    taken = tree(elsewhere / JOB)
    assert set(taken) == {"job.json", "job.sig", "site.json", "life.json"}
    assert taken["life.json"] == b'{"number": 3}'
    assert successor.take_back() == []
    result_of(there, 5000)
    assert successor.pull([elsewhere / JOB]) == {}
    assert tree(elsewhere / JOB / "result") == tree(there / "result")
    successor.push(elsewhere / JOB)  # for another life: what is there stays
    assert tree(there / "base") == tree(directory / "base")


def test_nothing_is_taken_back_from_a_site_that_is_new(files):
    assert files.take_back() == []


def test_a_dropped_directory_goes_at_the_site_and_unused_inputs_later(site, files, directory, there):
    files.push(directory)
    files.drop(directory)
    files.drop(directory)
    assert not there.exists() and not there.parent.exists()
    assert len(list((site.root / "cache").iterdir())) == 1  # the next round's base may be the same


def test_what_no_job_has_used_for_long_goes_by_cleaning(site, files, directory, there, spool, monkeypatch):
    assert files.tidy(1.0) == []  # nothing was ever brought there
    other = staged(spool / "4567-jobs" / "4567-jobs.a1", model=MODEL[::-1])
    files.push(directory)
    files.push(other)
    files.drop(other)
    assert files.tidy(1.0) == []  # it was used just now
    monkeypatch.setattr(
        scripts, "TIDY", scripts.TIDY.replace('-cmin "$2"', "-cmin -600")
    )  # nobody can age a ctime
    digest = hashlib.sha256(MODEL[::-1]).hexdigest()
    assert files.tidy(1.0, dry_run=True) == files.tidy(1.0) == [(digest, len(MODEL))]
    assert [path.name for path in (site.root / "cache").iterdir()] == [hashlib.sha256(MODEL).hexdigest()]
    assert tree(there / "base") == tree(directory / "base")


def test_a_job_elsewhere_is_not_touched(files, tmp_path):
    with pytest.raises(BadInput, match="not below the spool"):
        files.write(tmp_path, "STOP", b"")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../b", "a//b", ""])
def test_a_site_cannot_name_a_file_outside(files, directory, there, monkeypatch, name):
    files.push(directory)
    answer = f"J 0 0 y\nW 0 1 {name}\nxZ 0 0 end\n".encode()
    run = files._run
    monkeypatch.setattr(files, "_run", lambda *args: type(run("jobs", []))(rc=0, out=answer, err=b""))
    with pytest.raises(BadInput, match="does not lie in the job directory"):
        files.pull([directory])


@pytest.mark.parametrize(
    "answer",
    [b"", b"J 0 0 y\n", b"W 0 x name\nZ 0 0 end\n", b"Q 0 0 x\n", b"W 0 9 short\nxZ 0 0 end\n", b"J 0 0 y"],
)
def test_a_garbled_answer_is_not_believed(answer):
    with pytest.raises(Unavailable, match="read again"):
        list(frames(answer))


def test_a_transfer_host_carries_the_big_files(site, spool, directory, there):
    second = site.another_line()
    files = files_of(site, spool, transfer=second.connect())
    files.push(directory)
    assert second.wire.carried["up"] > len(MODEL) > site.wire.carried["up"]
    assert tree(there / "base") == tree(directory / "base")
    second.connect().close()
    second.wire.close()
    assert Path(files.place(directory)) == there
