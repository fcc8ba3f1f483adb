"""Job directories at the site, and the agent's own copies of them, kept alike over the connection.

The site's is the truth as far as jobs are concerned: what the agent notes is written there first, and what lies
there wins over what is here. Inputs go there once, big ones once per digest for all attempts; of what jobs
write, records, logs and progress come back with every look, training checkpoints stay, and the result comes when
it is whole, verified, in one rename.
"""

import contextlib
import hashlib
import io
import math
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from consortium.canonical import Fact, decode, digest_of_fact, encode
from consortium.errors import BadInput, Corrupt, DiskFull, Unavailable
from consortium.files import disk_errors, make_folder, move_into_place, sync_folder, write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.ids import is_digest
from site_agent.ssh import scripts
from site_agent.ssh.connection import Connection
from site_agent.ssh.errands import Errands, Progress
from site_agent.ssh.frames import Frame, frames
from site_agent.ssh.mirror import by_job, checked, mirror, question
from site_agent.ssh.moves import Sent, digest_of_file, fetch, send
from site_agent.ssh.session import Answer

#: Files and folders that staging lays out, and the agent's notes. Everything else in a job directory is the job's.
_INPUTS = (
    "job.json",
    "job.sig",
    "tokenizer.json",
    "residual.safetensors",
    "moments.safetensors",
    "state.bin",
    "base",
    "versions",
    "inputs",
    "site.json",
)
_NOTES = ("lives.jsonl",)
_GROWN_BYTES_MAX = 4 << 20  #: of one growing file in one look; a look every 30 s catches up with any log
_WAIT_SECONDS = 20.0  #: for a transfer; longer ones go on beside the agent's loop, which a watchdog watches
_SCRIPT_SECONDS = 300.0
_HASH_SECONDS = 3600.0
_NO_SPACE = (b"No space left", b"quota exceeded")
_ARRIVING = ".result.arriving"


class _Sum(Fact):
    """A file of a result, as the site hashed it."""

    name: str
    sha256: str


class SshFiles:
    """Satisfies ``site_agent.launchers.slurm.commands.JobFiles``.

    spool     the agent's folder of job directories; the site's has the same names below ``root/jobs``
    root      folder at the site
    transfer  another connection for big files; None: the same
    """

    def __init__(
        self,
        connection: Connection,
        spool: Path,
        root: str,
        transfer: Connection | None = None,
        wait_seconds: float = _WAIT_SECONDS,
    ) -> None:
        self._connection = connection
        self._transfer = transfer or connection
        self._spool = spool.resolve()
        self._root = root.rstrip("/")
        self._wait_seconds = wait_seconds
        self._errands = Errands()
        self._digests: dict[tuple[int, int, int, int], str] = {}  # of big files, by what changes with them

    @property
    def errands(self) -> tuple[str, ...]:
        """Transfers that go on beside whoever asked for them, and how far each is."""
        return self._errands.under_way

    def place(self, directory: Path) -> str:
        return f"{self._root}/jobs/{self._job(directory)}"

    def push(self, directory: Path) -> None:
        """Bring the inputs there. Raises Unavailable, too, while a transfer that takes long is under way."""
        directory = directory.resolve()
        left = self._errands.do(
            f"the inputs of {directory.name} on their way to the site",
            lambda progress: self._push(directory, progress),
            self._wait_seconds,
        )
        if left is not None:
            raise Unavailable(f"the inputs of {directory.name} are on their way to the site: {left}")

    def pull(self, directories: Sequence[Path]) -> Mapping[Path, str]:
        """Bring what the jobs wrote. Returns the directories whose result is still on its way, and how far it is."""
        if not directories:
            return {}
        known = {self._job(path): path for path in directories}
        asked = "".join(question(job, path) for job, path in sorted(known.items()))
        answer = self._run(scripts.PULL, [self._root, str(_GROWN_BYTES_MAX)], asked.encode())
        results: dict[str, list[Frame]] = {}
        for job, found in by_job(answer.out, sorted(known)):
            mirror(known[job], found)
            if any(frame.kind == "R" for frame in found) and not (known[job] / "result").is_dir():
                results[job] = [frame for frame in found if frame.kind == "R"]
        coming: dict[Path, str] = {}
        for job, files in results.items():
            if words := self._fetch(job, known[job], files):
                coming[known[job]] = words
        return coming

    def write(self, directory: Path, name: str, data: bytes) -> None:
        self._run(scripts.WRITE, [self._root, self._job(directory), name, str(len(data))], data)
        write_bytes_atomically(directory / name, data)

    def remove(self, directory: Path, name: str) -> None:
        self._run(scripts.REMOVE, [self._root, self._job(directory), name])
        with disk_errors(directory / name), contextlib.suppress(FileNotFoundError):
            (directory / name).unlink()

    def drop(self, directory: Path) -> None:
        """Delete the site's job directory, and inputs that no job directory has used for two days."""
        self._run(scripts.DROP, [self._root, self._job(directory)])

    def tidy(self, hours: float, dry_run: bool = False) -> list[tuple[str, int]]:
        """Delete inputs that no job directory at the site has used for so long; their names there, and bytes.

        ``drop`` does it, too, for what nobody used for two days; but after the last job nothing is dropped any more.
        """
        minutes, verb = f"+{math.ceil(hours * 60)}", "show" if dry_run else "delete"
        answer = self._run(scripts.TIDY, [self._root, minutes, verb])
        gone = []
        for line in answer.out.decode(errors="surrogateescape").splitlines():
            size, _, name = line.partition(" ")
            if not (size.isdecimal() and is_digest(name.removesuffix(".part"))):
                raise Unavailable(f"{self._connection.host}: {line[:200]!r} is no file of {self._root}/cache")
            gone.append((name, int(size)))
        return gone

    def take_back(self) -> list[Path]:
        """Make job directories here for the attempts that lie at the site and not here; returns them.

        So an agent that begins with an empty spool goes on where the one before it was. Inputs stay there.
        """
        held = sorted(str(path.parent.relative_to(self._spool)) for path in self._spool.glob("*/*/job.json"))
        answer = self._run(scripts.HELD, [self._root, *held])
        made: list[Path] = []
        directory: Path | None = None
        files: dict[Path, dict[str, bytes]] = {}
        for frame in frames(answer.out):
            if frame.kind == "J":
                directory = self._spool / frame.name
                files[directory] = {}
            elif directory is not None:
                files[directory][frame.name] = frame.data
        for directory, found in sorted(files.items()):
            if "job.json" in found and not directory.exists():
                with fresh_folder(directory) as folder:
                    for name, data in sorted(found.items()):
                        write_bytes_atomically(folder / name, data)
                made.append(directory)
        return made

    # ---- inside

    def _job(self, directory: Path) -> str:
        """The directory's name below ``jobs/``. Raises BadInput if it is none of the spool's."""
        try:
            name = str(directory.resolve().relative_to(self._spool))
        except ValueError:
            raise BadInput(f"{directory}: is not below the spool {self._spool}") from None
        if name.split() != [name] or name == ".":
            raise BadInput(f"{name!r}: cannot be the name of a job directory at a site")
        return name

    def _run(self, script: str, arguments: Sequence[str], stdin: bytes = b"") -> Answer:
        """A script that has to succeed. Raises Unavailable or DiskFull with the site's words."""
        answer = self._connection.run(script, arguments, stdin, _SCRIPT_SECONDS)
        if answer.rc:
            said = answer.err.decode(errors="replace").strip()[-300:] or f"exit code {answer.rc}"
            if any(words in answer.err for words in _NO_SPACE):
                raise DiskFull(
                    f"{self._connection.host}:{self._root}: {said}; free some space there, or ask for more"
                )
            raise Unavailable(
                f"{self._connection.host}:{self._root}: {said}; see that it can be written there"
            )
        return answer

    # ---- pushing

    def _push(self, directory: Path, progress: Progress) -> None:
        job = self._job(directory)
        files = {str(path.relative_to(directory)): self._sent(path) for path in _to_push(directory)}
        want = digest_of_fact({name: file.sha256 for name, file in files.items()})
        lines = "".join(f"{file.sha256} {file.size} {name}\n" for name, file in files.items())
        answer = self._run(scripts.SURVEY, [self._root, job, want], lines.encode("utf-8", "surrogateescape"))
        states = dict(zip(files, answer.out.decode().split(), strict=True))
        if all(state == "here" for state in states.values()):
            return
        big = [name for name, file in files.items() if file.size >= scripts.SMALL_BYTES_MAX]
        missing = {
            files[name].sha256: (files[name], int(states[name])) for name in big if states[name].isdecimal()
        }
        progress.total = sum(file.size - offset for file, offset in missing.values())
        for file, offset in missing.values():
            send(self._connection, self._transfer, self._root, file, offset, progress.count)
        bundle = _bundle(directory, {name: file for name, file in files.items() if name not in big})
        links = [word for name in big for word in (files[name].sha256, name)]
        self._run(scripts.PLACE, [self._root, job, want, *links], bundle)

    def _sent(self, path: Path) -> Sent:
        with disk_errors(path):
            state = path.stat()
            if state.st_size < scripts.SMALL_BYTES_MAX:
                return Sent(
                    path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=state.st_size
                )
        key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = digest_of_file(path)
        return Sent(path=str(path), sha256=self._digests[key], size=state.st_size)

    # ---- fetching a result

    def _fetch(self, job: str, directory: Path, files: Sequence[Frame]) -> str:
        """How far the result is on its way; "" once it is here."""
        try:
            left = self._errands.do(
                f"the result of {job} on its way here",
                lambda progress: self._bring(job, directory, files, progress),
                self._wait_seconds,
            )
        except (Unavailable, Corrupt) as error:
            return f"its result cannot be fetched yet: {error}"
        return "" if left is None else f"its result is on its way here: {left}"

    def _bring(self, job: str, directory: Path, files: Sequence[Frame], progress: Progress) -> None:
        folder = directory / _ARRIVING
        with disk_errors(folder):
            make_folder(folder)
            sums = self._sums(job, folder)
            names = {checked(frame.name.removeprefix("result/")): frame.size for frame in files}
            if sorted(names) != sorted(found.name for found in sums):
                (folder / "sums").unlink()
                raise Unavailable(f"{job}: the result at the site changed while it was looked at")
            progress.total = sum(names.values())
            for found in sums:
                target = folder / "files" / found.name
                if target.exists():
                    progress.count(names[found.name])
                    continue
                place = f"{job}/result/{found.name}"
                fetch(
                    self._transfer, self._root, place, target, found.sha256, names[found.name], progress.count
                )
            for inner in sorted({path.parent for path in (folder / "files").rglob("*")}):
                sync_folder(inner)
            move_into_place(folder / "files", directory / "result")
            shutil.rmtree(folder, ignore_errors=True)

    def _sums(self, job: str, folder: Path) -> list[_Sum]:
        """The digests of the result; asked for once, because a site takes minutes to read gigabytes."""
        noted = folder / "sums"
        with contextlib.suppress(FileNotFoundError, BadInput):
            return decode(noted.read_bytes(), list[_Sum], str(noted))
        answer = self._connection.run(scripts.SUMS, [self._root, job], timeout=_HASH_SECONDS)
        found = []
        for line in answer.out.decode(errors="surrogateescape").splitlines():
            digest, _, name = line.partition(" *./")
            found.append(_Sum(name=checked(name), sha256=digest))
        if answer.rc or not found:
            raise Unavailable(f"{self._connection.host}: {job}/result cannot be read there")
        write_bytes_atomically(noted, encode(found))
        return found


def _to_push(directory: Path) -> Iterable[Path]:
    """Every file of the inputs and notes, site.json last: in the order to place them in."""
    for name in (*_NOTES, *_INPUTS):
        place = directory / name
        if place.is_dir():
            yield from sorted(path for path in place.rglob("*") if path.is_file())
        elif place.is_file():
            yield place


def _bundle(directory: Path, files: Mapping[str, Sent]) -> bytes:
    """A tar of small files and their digests, as ``sha256sum -c`` reads them."""
    out = io.BytesIO()
    sums = "".join(f"{file.sha256} *{name}\n" for name, file in files.items())
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in files:
            _add(tar, name, (directory / name).read_bytes())
        _add(tar, ".sums", sums.encode("utf-8", "surrogateescape"))
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o600
    tar.addfile(member, io.BytesIO(data))
