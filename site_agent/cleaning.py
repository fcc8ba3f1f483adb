"""How a site's home gets rid of what may go: looked at, decided by ``core.cleaning``, deleted; by the agent or by hand.

    home/cleaned.json   what the last cleaning did, and when
    home/newest.json    what the newest attempt of each campaign was given: the base to keep

The store is looked at before the spool: who begins with an attempt writes it into the spool first, and then makes
each blob that it needs young again, and what became young since it was looked at is not deleted. So cleaning may run
beside the agent, beside another cleaning, and be killed at any moment; the next one does the rest.
"""

import contextlib
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput, SprachbundError
from consortium.files import disk_errors, write_bytes_atomically
from consortium.ids import CampaignId, Digest, is_digest
from consortium.jobs import Assignment
from consortium.store import BlobStore
from site_agent.config import SiteConfig
from site_agent.core.cleaning import HOUR, Cleaning, CleaningPlan, Found, Going, Home, Kind, plan
from site_agent.spool import BROKEN, Spool
from site_agent.ssh.remote import RemoteSite, remote_site

CLEANED_FILE, NEWEST_FILE = "cleaned.json", "newest.json"
_PARTIAL_HINTS = ("result", "checkpoint")  # of an attempt: what its trainer made


class Newest(Fact):
    """``newest.json``: by campaign, the inputs of the attempt that was staged last."""

    inputs: dict[CampaignId, tuple[Digest, ...]] = {}


class Cleaned(Fact):
    """What one cleaning did, or would do."""

    at: float  #: seconds since the epoch, by this machine's clock
    dry_run: bool = False
    gone: tuple[Going, ...] = ()
    bytes: int = 0  #: freed
    inodes: int = 0
    bytes_left: int | None = None  #: below the home; None: not counted, for it has no limit
    inodes_left: int | None = None
    over: str = ""  #: why the limits of the config are not held
    trouble: str = ""  #: the first thing that could not be deleted, or that the site could not be asked


def clean(
    config: SiteConfig,
    now: float,
    dry_run: bool = False,
    goes_on: Callable[[], bool] = lambda: True,
    tell: Callable[[Going], None] = lambda going: None,
) -> Cleaned:
    """Delete what may go by ``config.cleaning``; of a site behind SSH the inputs that lie there, too.

    now      seconds since the epoch, by the clock of the home's file system
    goes_on  asked before each thing; False: leave the rest to the next cleaning
    Raises Unavailable if home or spool cannot be read; then nothing was deleted.
    """
    root, rules = Path(config.home), config.cleaning
    has_limits = rules.bytes_max is not None or rules.inodes_max is not None
    store = BlobStore(root)
    home = look(root, store, has_limits)
    decided: CleaningPlan = plan(home, rules, now)
    gone, trouble = list(decided.going) if dry_run else [], ""
    for going in () if dry_run else decided.going:
        if not goes_on():
            break
        try:
            if _remove(root, store, going):
                gone.append(going)
                tell(going)
        except SprachbundError as error:
            trouble = trouble or str(error)
    if not dry_run and goes_on():
        store.sweep(now - rules.keep_hours * 3600.0)
    if (site := remote_site(config)) is not None and goes_on():
        try:
            for going in _at_the_site(site, rules, now, dry_run):
                gone.append(going)
                tell(going)
        except SprachbundError as error:
            trouble = trouble or f"{site.settings.root} at the site: {error}"
    bytes_, inodes = sum(one.bytes for one in gone), sum(one.inodes for one in gone)
    done = Cleaned(
        at=now,
        dry_run=dry_run,
        gone=tuple(gone),
        bytes=bytes_,
        inodes=inodes,
        bytes_left=home.bytes - bytes_ if has_limits else None,
        inodes_left=home.inodes - inodes if has_limits else None,
        over=decided.over,
        trouble=trouble,
    )
    if not dry_run:
        write_bytes_atomically(root / CLEANED_FILE, encode(done))
    return done


def last_cleaning(home: Path) -> Cleaned | None:
    """What ``cleaned.json`` says; None: there is none that can be read."""
    path = home / CLEANED_FILE
    with contextlib.suppress(FileNotFoundError, BadInput):
        return decode(path.read_bytes(), Cleaned, str(path))
    return None


def note_newest(home: Path, assignment: Assignment) -> None:
    """What the attempt is given is from now on what its campaign has newest here."""
    inputs = tuple(sorted({*assignment.inputs, *([assignment.tokenizer] if assignment.tokenizer else [])}))
    known = _newest(home)
    if known.get(assignment.campaign) != inputs:
        newest = dict(sorted({**known, assignment.campaign: inputs}.items()))
        write_bytes_atomically(home / NEWEST_FILE, encode(Newest(inputs=newest)))


def look(root: Path, store: BlobStore, counts: bool) -> Home:
    """The home as it is. ``counts``: all that lies in it, too."""
    with disk_errors(root):
        found = [
            *_blobs(root, store),
            *_partials(root, store),
            *_logs(root),
            *_broken(root),
            *_residuals(root),
        ]
        spool = Spool(root / "spool")
        attempts, _ = spool.look()
        held = [spool.assignment(files.attempt) for files in attempts]
        needed = {digest for one in held for digest in one.inputs}
        bytes_, inodes = _count(root) if counts else (0, 0)
    return Home(
        found=tuple(found),
        needed=frozenset(needed | {one.tokenizer for one in held if one.tokenizer is not None}),
        newest=frozenset(digest for inputs in _newest(root).values() for digest in inputs),
        campaigns=frozenset(one.campaign for one in held),
        attempts=frozenset(one.attempt for one in held),
        bytes=bytes_,
        inodes=inodes,
    )


def _at_the_site(site: RemoteSite, rules: Cleaning, now: float, dry_run: bool) -> Iterator[Going]:
    """What goes, or would go, of the inputs that were brought to a site behind SSH; the home is another machine's."""
    for name, size in site.files.tidy(rules.keep_hours, dry_run):
        yield Going(
            kind="cache",
            name=f"{site.settings.root}/cache/{name}",
            bytes=size,
            inodes=1,
            used_at=now - rules.keep_hours * HOUR,
            digest=Digest(name) if is_digest(name) else None,
            reason=f"no job at the site has needed it for longer than keep_hours {rules.keep_hours:g}",
        )


# --- what there is -----------------------------------------------------------------------------------


def _newest(home: Path) -> dict[CampaignId, tuple[Digest, ...]]:
    path = home / NEWEST_FILE
    with contextlib.suppress(FileNotFoundError, BadInput):
        return decode(path.read_bytes(), Newest, str(path)).inputs
    return {}


def _blobs(root: Path, store: BlobStore) -> Iterator[Found]:
    for digest in store.digests():
        with contextlib.suppress(FileNotFoundError):
            yield _file("blob", root, root / "blobs" / digest[:2] / digest[2:], digest)


def _partials(root: Path, store: BlobStore) -> Iterator[Found]:
    for digest, owner, _ in store.partials():
        with contextlib.suppress(FileNotFoundError):
            yield _file("partial", root, root / "partials" / owner / digest, digest)


def _logs(root: Path) -> Iterator[Found]:
    for path in sorted((root / "logs").glob("*.txt")):
        with contextlib.suppress(FileNotFoundError):
            yield _file("log", root, path, attempt=path.name.removesuffix(".txt"))


def _broken(root: Path) -> Iterator[Found]:
    for path in sorted((root / "spool" / BROKEN).glob("*")):
        is_unsent = any((path / name).exists() for name in _PARTIAL_HINTS)
        with contextlib.suppress(FileNotFoundError):
            yield _folder("broken", root, path, is_unsent=is_unsent)


def _residuals(root: Path) -> Iterator[Found]:
    for path in sorted((root / "residuals").glob("*")):
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                yield _folder("residuals", root, path, campaign=CampaignId(path.name))


def _file(kind: Kind, root: Path, path: Path, digest: Digest | None = None, attempt: str = "") -> Found:
    found = path.stat()
    alone = found.st_nlink == 1
    return Found(
        kind=kind,
        name=path.relative_to(root).as_posix(),
        bytes=_on_disk(found) if alone else 0,
        inodes=1 if alone else 0,
        used_at=found.st_mtime,
        digest=digest,
        attempt=attempt,
    )


def _folder(
    kind: Kind, root: Path, path: Path, campaign: CampaignId | None = None, is_unsent: bool = False
) -> Found:
    bytes_, inodes, used_at = 0, 0, path.stat().st_mtime
    # os.walk passes over what another cleaning takes away meanwhile
    below = (os.path.join(at, name) for at, folders, files in os.walk(path) for name in (*folders, *files))
    for inner in (str(path), *below):
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(inner)
            bytes_ += _on_disk(found) if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode) else 0
            inodes, used_at = inodes + 1, max(used_at, found.st_mtime)
    return Found(
        kind=kind,
        name=path.relative_to(root).as_posix(),
        bytes=bytes_,
        inodes=inodes,
        used_at=used_at,
        campaign=campaign,
        is_unsent=is_unsent,
    )


def _count(root: Path) -> tuple[int, int]:
    """Bytes and inodes below the home, as a quota counts them."""
    seen: set[tuple[int, int]] = set()
    bytes_ = 0
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(os.path.join(folder, name))
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    bytes_ += _on_disk(found)
    return bytes_, len(seen)


def _on_disk(found: os.stat_result) -> int:
    return found.st_blocks * 512  # what a quota counts: a file with holes takes less than its size


# --- deleting ------------------------------------------------------------------------------------------


def _remove(root: Path, store: BlobStore, going: Going) -> bool:
    """Whether it is gone by this; not, if it was used since it was looked at."""
    path = root / going.name
    if going.kind == "blob":
        assert going.digest is not None
        if not store.has(going.digest):
            return False
        return store.remove(going.digest, math.nextafter(going.used_at, math.inf)) > 0 or not store.has(
            going.digest
        )
    with disk_errors(path), contextlib.suppress(FileNotFoundError):
        if not path.exists() or (path.is_file() and path.stat().st_mtime > going.used_at):
            return False
        if going.kind == "partial":
            assert going.digest is not None and is_digest(going.digest)
            store.discard(going.digest, path.parent.name)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return not path.exists()
