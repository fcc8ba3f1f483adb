"""The trainer as the agent sees it: a process, a folder, an exit code."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from trainer_samples import (
    contribution,
    make_job,
    run,
    run_apart,
    sha256,
    start_and_wait,
    tokenizer_work,
    train_work,
    wait_for_checkpoint,
)

from consortium.tensors import TensorFile
from site_agent.record import checkpoint_of
from site_agent.trainer.folder import CONTINUE_LATER, Failure, FailureReason, Site

LONG = {"steps": 400, "checkpoint_steps": 20, "sequence_tokens": 32, "batch_sequences": 8}


def _failure(folder: Path) -> Failure:
    return msgspec.json.decode((folder / "failure.json").read_bytes(), type=Failure)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, site: Site, base: Path) -> Path:
    folder = make_job(tmp_path_factory.mktemp("long") / "job", site, train_work(**LONG), base)
    assert run_apart(folder) == 0
    return folder


@pytest.mark.slow
def test_signals_stop_it_and_killing_loses_nothing(
    tmp_path: Path, site: Site, base: Path, undisturbed: Path
) -> None:
    folder = make_job(tmp_path / "job", site, train_work(**LONG), base)
    for number, step in (
        (signal.SIGKILL, 40),
        (signal.SIGTERM, 120),
        (signal.SIGKILL, 200),
        (signal.SIGUSR1, 300),
    ):
        with start_and_wait(folder, step + 60 - checkpoint_of(folder)[0]) as trainer:
            wait_for_checkpoint(folder, trainer, step)
            trainer.send_signal(number)
            trainer.wait()
        assert trainer.returncode == (-signal.SIGKILL if number == signal.SIGKILL else CONTINUE_LATER)
        assert not (folder / "result").exists()
    assert run(folder) == 0
    assert sha256(folder / "result" / "delta.safetensors") == sha256(
        undisturbed / "result" / "delta.safetensors"
    )
    assert contribution(folder).losses == contribution(undisturbed).losses
    steps = [json.loads(line)["step"] for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert steps[-1] == 400
    assert any(step not in (0, 400) for step in steps)


def test_a_stop_file_stops_it_and_a_done_job_stays_done(
    tmp_path: Path, site: Site, base: Path, undisturbed: Path
) -> None:
    """After one step: the site's text is prepared since the undisturbed job, or it would stop amid that."""
    folder = make_job(tmp_path / "job", site, train_work(), base)
    (folder / "STOP").touch()
    assert run_apart(folder) == CONTINUE_LATER
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["step-000000001"]
    (folder / "STOP").unlink()
    assert run(folder) == 0
    before = sha256(folder / "result" / "contribution.json")
    assert run(folder) == 0
    assert sha256(folder / "result" / "contribution.json") == before


@pytest.mark.slow
def test_two_ranks_train_what_one_does(tmp_path: Path, site: Site, base: Path) -> None:
    work = train_work(steps=6, batch_sequences=5)
    folders = [make_job(tmp_path / name, site, work, base) for name in ("one", "two")]
    assert run(folders[0]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "site_agent.trainer", str(folders[1])], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    made = [contribution(folder) for folder in folders]
    assert made[0].tokens == made[1].tokens
    assert made[0].losses is not None
    assert made[1].losses is not None
    assert made[1].losses.last == pytest.approx(made[0].losses.last, rel=1e-5)
    files = [TensorFile(folder / "result" / "delta.safetensors") for folder in folders]
    for name in files[0]:
        assert files[1].array(name) == pytest.approx(files[0].array(name), abs=1e-5)
    for file in files:
        file.close()


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("job.json", "{", "job.json"),
        ("job.json", '{"schema": 1}', "missing required field"),
        (
            "site.json",
            '{"text": [], "heldout_share": "much"}',
            "Expected `float`, got `str` - at `$.heldout_share`",
        ),
        ("site.json", None, "No such file"),
    ],
)
def test_orders_that_cannot_be_read(
    tmp_path: Path, site: Site, file: str, content: str | None, sentence: str
) -> None:
    folder = make_job(tmp_path / "job", site, tokenizer_work())
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    assert run(folder) == 2
    assert _failure(folder).reason is FailureReason.BAD_INPUT
    assert sentence in _failure(folder).sentence


def test_a_failure_is_forgotten_when_the_next_start_succeeds(tmp_path: Path, site: Site) -> None:
    folder = make_job(tmp_path / "job", msgspec.structs.replace(site, text=()), tokenizer_work())
    assert run(folder) == 2
    assert _failure(folder).reason is FailureReason.NO_DATA
    (folder / "site.json").write_bytes(msgspec.json.encode(site))
    assert run(folder) == 0
    assert not (folder / "failure.json").exists()


def test_the_trainer_imports_neither_transformers_nor_the_compiler(
    tmp_path: Path, site: Site, base: Path
) -> None:
    """Each costs a second or more, in every one of a campaign's jobs."""
    folder = make_job(tmp_path / "job", site, train_work(), base)
    program = (
        "import sys; from site_agent.trainer.__main__ import main; assert main(sys.argv[1:]) == 0;"
        "assert not {'transformers', 'torch._dynamo', 'pyarrow', 'grpc'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)
