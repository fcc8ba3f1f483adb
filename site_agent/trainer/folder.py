"""What lies in a job directory, as the trainer sees it: orders in, progress and results out.

In, read only:  job.json (``Assignment``), site.json (``Site``), tokenizer.json, base/ (Hugging Face layout),
                residual.safetensors (what the last delta left unsaid, if the order names one and it is here),
                moments.safetensors (those that the optimizer was left with then, likewise),
                state.bin (the same of a Flower app: its Context.state), inputs/<digest> (its message),
                for evaluations versions/<digest>/ and inputs/<digest> (deltas), for merges inputs/<digest>
                (deltas, their token counts, and the outer optimizer's state)
Out:            progress.jsonl, checkpoint/ (training checkpoints; scores of an evaluation; ``TEXT_FILE``), then
                result/ in one rename, or failure.json

A STOP file, SIGTERM or SIGUSR1 ask for a training checkpoint and exit code 75; CONTINUE is then left beside a
whole one. A FINISH file asks a training job for its result from the step it has reached. Imports nothing heavy.
"""

import contextlib
import enum
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput
from consortium.files import disk_errors, make_folder, read_small, write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.ids import Digest, Language, digest_of
from consortium.jobs import Assignment
from consortium.manifests import Contribution, FileRef
from site_agent.config import Engine, Flower, Text

STOP = "STOP"  #: the wish that the job leaves with a training checkpoint
FINISH = "FINISH"  #: the wish that it delivers what it has, from the step it has reached
TEXT_FILE = "checkpoint/text.json"  #: bytes of text that the job's lives have read and kept, by language
CONTINUE = "CONTINUE"  #: the trainer's word that it stopped with a whole training checkpoint and may go on
RESIDUAL = "residual.safetensors"  #: in the job directory and in ``result/``
MOMENTS = "moments.safetensors"  #: in the same places
STATE = "state.bin"  #: what a Flower app keeps at the site, in these places, too
CONTINUE_LATER = 75  #: exit code: a training checkpoint is there, start again (EX_TEMPFAIL of sysexits.h)
PROGRESS_SECONDS = 2.0  # a person watching the console sees it move; a line costs 0.1 ms


class Site(Fact):
    """``site.json``: what the agent tells the trainer of this site."""

    schema: int = 1
    text: tuple[Text, ...]
    heldout_share: float
    cache: str  #: folder of surveys and tokenised text, shared by the site's jobs; made when missing
    threads: int = 1  #: of torch; the bits of a CPU job depend on it
    device: Literal["auto", "cpu", "cuda"] = "auto"  #: auto: the GPU if there is one
    sharding: Literal["none", "fsdp", "hsdp"] = "none"  #: how ranks share a model; see ``SiteConfig``
    device_sequences: int | None = None  #: most sequences in one forward pass, for memory; None: all
    engine: Engine = Engine()  #: how a training step is computed
    flower: Flower = Flower()  #: Flower apps that may run here


class FailureReason(enum.StrEnum):
    """Why a job cannot go on, from a closed list. Trying again helps only with the last one, perhaps."""

    BAD_INPUT = "bad_input"  #: the assignment, the base or the site's text is not what it should be
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE = "non_finite"  #: the loss was NaN or infinite three steps in a row
    NO_DATA = "no_data"  #: the site holds no text for it
    INTERNAL = "internal"


class Failure(Fact):
    """``failure.json``."""

    reason: FailureReason
    sentence: str


class JobFailed(BadInput):
    """The job ends here, for a reason of the closed list."""

    def __init__(self, reason: FailureReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Stopped(Exception):
    """The job was asked to leave, and everything needed to go on is on disk."""


class JobFolder:
    """One job directory. Raises BadInput for an order that cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job: Assignment = decode(_read(path / "job.json"), Assignment, str(path / "job.json"))
        self.site: Site = decode(_read(path / "site.json"), Site, str(path / "site.json"))

    @property
    def base(self) -> Path:
        return self.path / "base"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    def version(self, digest: Digest) -> Path:
        return self.path / "versions" / digest

    def input(self, digest: Digest) -> Path:
        return self.path / "inputs" / digest

    @property
    def residual(self) -> Path:
        return self.path / RESIDUAL

    @property
    def moments(self) -> Path:
        return self.path / MOMENTS

    @property
    def is_asked_to_stop(self) -> bool:
        return (self.path / STOP).exists()

    @property
    def is_asked_to_finish(self) -> bool:
        return (self.path / FINISH).exists()

    def say_it_may_go_on(self) -> None:
        """Everything that the next life needs is on disk; a batch script may queue it again."""
        write_bytes_atomically(self.path / CONTINUE, b"")

    @property
    def has_result(self) -> bool:
        return (self.path / "result").is_dir()

    @contextlib.contextmanager
    def result(self) -> Iterator[Path]:
        """A folder to fill; becomes ``result/`` whole when the block ends well."""
        with fresh_folder(self.path / "result") as folder:
            yield folder

    def contribution(self, artifacts: dict[str, FileRef]) -> Contribution:
        """What every manifest says; the caller adds what its kind of work knows."""
        return Contribution(
            job=self.job.job,
            attempt=self.job.attempt,
            campaign=self.job.campaign,
            site=self.job.site,
            assignment=digest_of(_read(self.path / "job.json")),
            artifacts=artifacts,
        )


def write_contribution(folder: Path, contribution: Contribution) -> None:
    write_bytes_atomically(folder / "contribution.json", encode(contribution))


def write_failure(path: Path, failure: Failure) -> None:
    write_bytes_atomically(path / "failure.json", encode(failure))


class ProgressLog:
    """``progress.jsonl``: a line at the start, every few seconds, at the end; from the first rank."""

    def __init__(self, path: Path, steps: int, enabled: bool = True) -> None:
        self._path, self._steps, self._enabled = path / "progress.jsonl", steps, enabled
        self._written_at = -PROGRESS_SECONDS
        self._since: tuple[float, int] | None = None

    def is_due_within(self, seconds: float) -> bool:
        """Whether it will be time for a line by then."""
        return self._enabled and time.monotonic() + seconds - self._written_at >= PROGRESS_SECONDS

    def report(
        self,
        step: int,
        tokens: int,
        loss: float | None,
        joules: float | None = None,
        now: bool = False,
        more: Callable[[float], Mapping[str, object]] = lambda tokens_per_second: {},
    ) -> None:
        """Write a line if it is time, or ``now``. Tokens per second are those since the line before.

        more  what else there is to say, given these
        """
        clock = time.monotonic()
        if not self._enabled or (clock - self._written_at < PROGRESS_SECONDS and not now):
            return
        before = self._since or (clock, tokens)
        seconds = clock - before[0]
        line: dict[str, object] = {
            "step": step,
            "steps": self._steps,
            "tokens": tokens,
            "loss": loss,
            "tokens_per_second": round((tokens - before[1]) / seconds, 1) if seconds > 0 else 0.0,
            "joules": joules,
            "at": round(time.time(), 3),
        }
        line |= more(float(line["tokens_per_second"]))  # type: ignore[arg-type]
        with disk_errors(self._path), open(self._path, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")  # one write: a reader sees whole lines
        self._written_at, self._since = clock, (clock, tokens)


class Preparation:
    """How a job behaves while it prepares text: it shows that this goes on, and how far it is, and leaves when asked.

    What of the text is done is kept at the site, so that the next life goes on there; ``TEXT_FILE`` says to the
    agent that a life got further, before there is any training checkpoint.
    """

    def __init__(
        self, folder: JobFolder, progress: ProgressLog, is_asked_to_stop: Callable[[], bool]
    ) -> None:
        self._folder, self._progress, self._is_asked_to_stop = folder, progress, is_asked_to_stop
        self._path = folder.path / TEXT_FILE
        self._done = read_text_file(self._path)
        self._is_written, self._written_at = True, -PROGRESS_SECONDS

    def tell(self, language: Language, read_bytes: int) -> None:
        """So much of a language's text is read and kept, by this life and those before it."""
        if read_bytes > self._done.get(language, 0):
            self._done[language] = read_bytes
            self._is_written = False

    def beat(self) -> None:
        """To be called again and again. Raises Stopped."""
        self._progress.report(0, 0, None)
        is_asked = self._is_asked_to_stop()
        clock = time.monotonic()
        if not self._is_written and (is_asked or clock - self._written_at >= PROGRESS_SECONDS):
            make_folder(self._path.parent)
            write_bytes_atomically(self._path, encode(dict(sorted(self._done.items()))))
            self._is_written, self._written_at = True, clock
        if is_asked:
            self._folder.say_it_may_go_on()
            raise Stopped


def read_text_file(path: Path | str) -> dict[Language, int]:
    """What ``TEXT_FILE`` says; nothing if it is not there, or cannot be read."""
    try:
        return decode(read_small(path), dict[Language, int], str(path))
    except (FileNotFoundError, BadInput):
        return {}


def _read(path: Path) -> bytes:
    try:
        return read_small(path)
    except OSError as error:
        raise BadInput(
            f"{path}: {error.strerror}; the agent writes it before it starts the trainer"
        ) from error
