"""Does the consortium's past hold: chain, signatures, bytes, gates, and every promoted model made again.

For an auditor with a coordinator's home before them and no trust in the coordinator. Nothing is changed; models are
rebuilt beside, in a temporary folder. What is found wrong is said with its place, and the rest is still checked.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from consortium.blobs import Blobs
from consortium.canonical import Fact, encode
from consortium.errors import Corrupt, SprachbundError
from consortium.identity import identity_of
from consortium.ids import CampaignId, Digest, JobId, short
from consortium.jobs import Evaluate, Purpose
from consortium.manifests import FileRef, VersionManifest
from consortium.roles import Role
from consortium.versions import manifest_of, verify_directory
from consortium.witnesses import Seen, Witnesses
from coordinator.config import is_postgres
from coordinator.core.decide import BY_HAND
from coordinator.core.events import ArtifactsLetGo
from coordinator.core.fold import apply, growth
from coordinator.core.keeping import beyond_its_rule, in_words
from coordinator.core.orders import merge_inputs
from coordinator.core.referenced import let_go
from coordinator.core.snapshot import is_current, restore
from coordinator.core.state import CampaignState, Job, LetGo, Site, State, Version
from coordinator.driver import decode_event
from coordinator.inspection import was_signed
from coordinator.ledger_check import verify_chain
from coordinator.ledgers import open_ledger, shown
from coordinator.stores import open_store, places_of
from coordinator.workshop import Workshop, initial, inspect_job, judge_round, merged

Progress = Callable[[str], None]


class Report(Fact):
    """What was checked and what does not hold."""

    ok: bool
    problems: tuple[str, ...]
    checked: dict[str, int]  #: how many of each kind
    versions: dict[str, str]  #: name -> digest, of those made again with the same digest
    let_go: dict[
        str, str
    ] = {}  #: what could not be checked any more, and since when by which rule; no problem


class _Findings:
    def __init__(self, progress: Progress) -> None:
        self.problems: list[str] = []
        self.checked: dict[str, int] = {}
        self.versions: dict[str, str] = {}
        self.let_go: dict[str, str] = {}
        self._progress = progress

    def check(self, kind: str, what: str, test: Callable[[], object]) -> None:
        """Run one test; a failure is noted with its place and does not stop the others."""
        self._progress(f"{kind}: {what}")
        self.checked[kind] = self.checked.get(kind, 0) + 1
        try:
            test()
        except (SprachbundError, OSError) as problem:
            self.problems.append(f"{kind} {what}: {problem}")
        except Exception as problem:  # whatever a forged ledger makes our code stumble over
            self.problems.append(f"{kind} {what}: cannot be checked ({type(problem).__name__}: {problem})")


def verify(
    home: Path,
    rebuild: bool = True,
    model: Path | None = None,
    progress: Progress = lambda text: None,
    seen: Sequence[Seen] = (),
) -> Report:
    """Check everything that a coordinator keeps.

    home     a coordinator's home, or its config, where ledger or artifacts lie elsewhere

    rebuild  also make every merged version again from its contributions (minutes for large models)
    model    a Hugging Face folder that should be one of the versions
    seen     signed heads that sites have kept
    """
    found = _Findings(progress)
    places = places_of(home)
    ledger, name = places.ledger, _name(places.ledger)
    progress("ledger: chain, checkpoints, snapshot")
    state = _replayed(ledger, found, seen)
    key = (
        bytes.fromhex(state.ledger_key) if state is not None else None
    )  # unknown: whoever signed is taken for it
    found.problems[:0] = [
        f"ledger {name}, entry {fault.sequence}: {fault.what}" for fault in verify_chain(ledger, key)
    ]
    if state is None:
        return _report(found)
    store = open_store(places)
    gone = {digest for digest in let_go(state) if not store.has(digest)}
    for digest in store.digests():
        found.check("blob", short(digest), lambda d=digest: store.verify(d))  # type: ignore[misc]
    for site in state.sites.values():
        for mark, pem in site.certificates.items():
            what = f"{short(mark)} of {site.name}"
            found.check("certificate", what, lambda s=site, m=mark, p=pem: _certificate(s, m, p, state))  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="sprachbund-verify-") as folder:
        workshop = Workshop(store, Path(folder))
        for campaign in state.campaigns.values():
            for version in campaign.versions.values():
                found.check("version", version.name, lambda v=version: _is_stored(v, store, gone))  # type: ignore[misc]
                _tell_what_went(version, gone, found)
            _contributions(state, campaign.spec.campaign, workshop, gone, found)
            _gates(state, campaign, workshop, found)
            if rebuild:
                _rebuild(state, campaign, workshop, gone, found)
        for run in sorted(state.flower_runs):
            _contributions(state, run, workshop, gone, found)
    if model is not None:
        found.check("model", str(model), lambda: _known_model(state, model))
    return _report(found)


def _name(ledger: str) -> str:
    """How a ledger is called in a report."""
    return shown(ledger).rpartition("/")[2] if not is_postgres(ledger) else shown(ledger)


def _report(found: _Findings) -> Report:
    return Report(
        ok=not found.problems,
        problems=tuple(found.problems),
        checked=dict(sorted(found.checked.items())),
        versions=dict(sorted(found.versions.items())),
        let_go=dict(sorted(found.let_go.items())),
    )


def _agrees(state: State, snapshot: bytes) -> bool:
    """Whether a snapshot is what the events tell. One of another release is not used, so it cannot mislead."""
    if not is_current(snapshot):
        return True
    try:
        kept = restore(snapshot)
        return kept.snapshot() == state.snapshot() and kept.index == state.index
    except Exception:  # of any kind: it may be forged
        return False


def _replayed(ledger: str, found: _Findings, seen: Sequence[Seen]) -> State | None:
    """The state as the events alone tell it; a snapshot must agree with it in every byte."""
    state, witnesses = State(), Witnesses(seen)
    try:
        with open_ledger(ledger, read_only=True) as opened:
            snapshot = opened.snapshot()
            for recorded in opened.read():
                event = decode_event(recorded)
                if isinstance(event, ArtifactsLetGo) and (
                    wrong := beyond_its_rule(event, state, recorded.at)
                ):
                    found.problems.append(
                        f"ledger entry {recorded.seq}: lets go of {wrong[0]}, which its rule keeps"
                    )
                apply(event, state, recorded.at)
                if snapshot and recorded.seq == snapshot.seq and not _agrees(state, snapshot.state):
                    found.problems.append(
                        f"ledger snapshot at {snapshot.seq}: differs from the replay of its events"
                    )
                found.checked["event"] = recorded.seq
                witnesses.take(recorded.seq, recorded.hash)
            key = bytes.fromhex(state.ledger_key)
    except Exception as problem:  # of any kind: the events may be forged
        found.problems.append(f"ledger: replay stops after entry {found.checked.get('event', 0)}: {problem}")
        return None
    if seen:
        found.checked["witnessed head"] = witnesses.num_heads
        found.problems.extend(witnesses.problems(key))
    return state


def _admitted(state: State, programme: CampaignId) -> Iterator[Job]:
    for name in sorted(
        one.id for one in state.jobs.briefs() if one.campaign == programme and one.contributor
    ):
        yield state.jobs.glance(name)


def _certificate(site: Site, mark: str, pem: str, state: State) -> None:
    """It names this site and was issued by the consortium's authority."""
    identity = identity_of(pem.encode(), state.consortium)
    if (identity.role, identity.name, identity.fingerprint) != (Role.SITE, site.name, mark):
        raise Corrupt(f"is of {identity.role} {identity.name} with fingerprint {short(identity.fingerprint)}")
    try:
        authority = x509.load_pem_x509_certificate(state.authority.encode())
        x509.load_pem_x509_certificate(pem.encode()).verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise Corrupt("was not issued by the consortium's authority") from error


def _contributions(
    state: State, programme: CampaignId, workshop: Workshop, gone: set[Digest], found: _Findings
) -> None:
    """Every one that was admitted; of one whose bytes were let go what is left: that its site signed it so."""
    for job in _admitted(state, programme):
        assert job.contribution is not None
        mark = _let_go(state, job)
        if mark is not None and any(ref.digest in gone for ref in job.contribution.artifacts.values()):
            found.let_go[job.id] = f"{in_words(mark)}; that its site signed just this was checked"
            found.check("contribution", job.id, lambda j=job: was_signed(state, j, workshop.store))  # type: ignore[misc]
        else:
            found.check("contribution", job.id, lambda j=job: _contribution(state, j, workshop))  # type: ignore[misc]


def _let_go(state: State, job: Job) -> LetGo | None:
    """Since when its bytes need not be there: a delta's own mark, of a merge one of the version that it made."""
    if job.purpose is not Purpose.MERGE:
        return state.programme(job.campaign).let_go.get(job.id)
    campaign = state.campaigns[job.campaign]
    made = campaign.rounds[job.round].candidate
    if made is None:
        return None
    return campaign.versions[made].weights_let_go or campaign.versions[made].outer_state_let_go


def _contribution(state: State, job: Job, workshop: Workshop) -> None:
    """Inspected once more, it is admitted once more, and says what the ledger says."""
    assert job.envelope is not None and job.attempt is not None and job.contribution is not None
    for digest in (job.envelope, *(ref.digest for ref in job.contribution.artifacts.values())):
        workshop.store.path(digest)  # raises if it is lost, which is no fault of the site's
    again = inspect_job(state, job, workshop, repeat_merges=False)
    if again.contribution is None:
        raise Corrupt(f"should not have been admitted: {again.reason}")
    if again.contribution != job.contribution:
        raise Corrupt("the signed manifest is not the one that the ledger admitted")
    if job.purpose is Purpose.CHECK:
        assert isinstance(job.work, Evaluate)
        judged = state.jobs[JobId(job.work.subjects[-1].name)].judged
        if growth(job.work, again.scores) != judged.get(job.contribution.site):
            raise Corrupt("the ledger's growth of the loss is not that of the scores")
        return
    for subject, languages in again.scores.items():
        known = state.campaigns[job.campaign].scores
        for language, score in languages.items():
            if known[subject][language][job.contribution.site] != score:
                raise Corrupt(
                    f"the ledger's sums of {language} for {short(subject)} are not those of the scores"
                )


def _same_bytes(name: str, ref: FileRef, store: Blobs) -> None:
    if store.size(ref.digest) != ref.size:
        raise Corrupt(f"{name} has {store.size(ref.digest)} bytes, the manifest says {ref.size}")


def _is_stored(version: Version, store: Blobs, gone: set[Digest]) -> None:
    stored = store.read_bytes(version.digest, 64 << 20)
    if stored != encode(version.manifest):
        raise Corrupt("the stored manifest is not the one in the ledger")
    for name, ref in {**version.manifest.files, **version.manifest.outer_state}.items():
        if ref.digest not in gone:
            _same_bytes(name, ref, store)


def _tell_what_went(version: Version, gone: set[Digest], found: _Findings) -> None:
    for mark, what, refs in (
        (version.weights_let_go, "weights", version.manifest.files),
        (version.outer_state_let_go, "outer optimizer's state", version.manifest.outer_state),
    ):
        if mark is not None and any(ref.digest in gone for ref in refs.values()):
            found.let_go[f"{version.name}, {what}"] = in_words(mark)


def _gates(state: State, campaign: CampaignState, workshop: Workshop, found: _Findings) -> None:
    for number, round_ in sorted(campaign.rounds.items()):
        if round_.verdict is None:
            continue

        def judged_again(round_=round_) -> None:  # type: ignore[no-untyped-def]
            again = judge_round(state, campaign, round_, workshop).verdict
            if again != round_.verdict:
                raise Corrupt(f"the stored scores give another verdict: {again.reason}")

        found.check("gate", f"{campaign.spec.campaign}/r{number}", judged_again)
        version = campaign.versions[round_.candidate] if round_.candidate else None
        if version is not None and version.status == "promoted" and not round_.verdict.promote:
            if not version.reason.startswith(BY_HAND):
                found.problems.append(f"gate {version.name}: promoted against the verdict, and not by hand")


def _rebuild(
    state: State, campaign: CampaignState, workshop: Workshop, gone: set[Digest], found: _Findings
) -> None:
    """Make every version again: the base from config and seed, candidates from their contributions.

    One whose contributions were let go is told as such, with the date and the rule; any other blob that lacks is a
    problem.
    """
    for version in campaign.versions.values():
        if version.role != "initial":
            lacks = gone.intersection(merge_inputs(state, campaign, campaign.rounds[version.round]))
            if lacks and version.unprovable is not None:
                found.let_go[version.name] = (
                    f"cannot be made again: what it was merged from was {in_words(version.unprovable)}"
                )
                continue

        def same_again(version: Version = version) -> None:
            if version.role != "initial":
                again = merged(state, campaign, campaign.rounds[version.round], workshop)
            elif version.manifest.initial is not None and campaign.tokenizer is not None:
                again = initial(campaign.spec, campaign.tokenizer, workshop)
            else:
                return  # given with the campaign: its bytes have been compared
            with again as made:
                if made.manifest != version.manifest:
                    raise Corrupt(_difference(made.manifest, version))
            found.versions[version.name] = version.digest

        found.check("rebuild", version.name, same_again)


def _difference(made: VersionManifest, version: Version) -> str:
    wanted = version.manifest.files | version.manifest.outer_state
    for name, ref in sorted((made.files | made.outer_state).items()):
        if wanted.get(name) != ref:
            had = short(wanted[name].digest) if name in wanted else "no such file"
            made_by = f", as {version.merged_by} merged it" if version.merged_by else ""
            return f"{name} comes out as {short(ref.digest)}, the ledger has {had}{made_by}"
    return f"comes out as {short(made.digest)}, the ledger has {short(version.digest)}"


def _known_model(state: State, folder: Path) -> None:
    """The folder is a version, file by file; if none fits, the closest one says what differs."""
    found = manifest_of(folder).files
    versions = [version for campaign in state.campaigns.values() for version in campaign.versions.values()]
    if not versions:
        raise Corrupt("the ledger knows no version")

    def nearness(version: Version) -> tuple[int, int]:
        return sum(found.get(name) == ref for name, ref in version.manifest.files.items()), version.number

    closest = max(versions, key=nearness)
    try:
        verify_directory(closest.manifest, folder)
    except SprachbundError as refusal:
        raise Corrupt(f"not {closest.name}: {refusal}") from refusal
