"""How the coordinator's own work is done: bases made, contributions inspected, merges, verdicts.

Each function takes what the ledger says, works on blobs, and returns the command that reports the result. All of
them can be repeated: the same state gives the same bytes, and a blob stored twice is one blob.
"""

import contextlib
import math
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from consortium.blobs import Blobs
from consortium.canonical import encode, replace
from consortium.errors import BadInput, Refused, Unavailable
from consortium.files import make_folder
from consortium.ids import Digest, Language, SiteName
from consortium.jobs import Evaluate, FlowerMessage, Purpose, Train
from consortium.jobs import Merge as MergeWork
from consortium.manifests import Scores, VersionManifest
from consortium.store import BlobStore
from consortium.versions import lay_out
from coordinator import making
from coordinator.core import commands as cm
from coordinator.core.gate import judge
from coordinator.core.history import known_deltas, usual_norm
from coordinator.core.orders import merge_order, what_was_merged
from coordinator.core.owed import Inspect, Judge, MakeBase, Merge, Owed
from coordinator.core.state import CampaignState, Job, Round, State
from coordinator.inspection import Delivery, inspect_delivery, load_scores
from coordinator.making import Interest, Made, always
from coordinator.making_process import Base, BaseOrder, MergeOrder
from coordinator.merge_inspection import MergeCheck
from policies.campaign import Admission, Campaign


@dataclass(frozen=True, slots=True)
class Workshop:
    """The store, and a folder for laid-out versions and work in progress."""

    store: Blobs
    folder: Path
    _laying_out: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)

    @classmethod
    def at(cls, home: Path, store: Blobs | None = None) -> "Workshop":
        """Below a coordinator's home; ``store`` in place of the folder there."""
        return cls(store or BlobStore(home / "store"), home / "work")

    def version_dir(self, version: Digest, manifest: VersionManifest) -> Path:
        """The model laid out from the store by hard links; made once."""
        place = self.folder / "versions" / version
        with self._laying_out:  # two inspections of one round need the same base
            if not place.is_dir():
                make_folder(place.parent)
                lay_out(manifest, self.store.path, place)
        return place

    def scratch(self, name: str) -> Path:
        """A folder that is not there yet, for an inspection that may be cut off and begun again."""
        place = self.folder / "scratch" / name
        make_folder(place.parent)
        _discard(place)
        return place

    @property
    def making(self) -> Path:
        """Where versions are made: what is begun there may go on after this coordinator."""
        return self.folder / "making"

    def keep(self, made: Made) -> None:
        """Move a finished version into the store: files first, the manifest that names them last."""
        for name, ref in sorted({**made.manifest.files, **made.manifest.outer_state}.items()):
            kept = self.store.put_file(made.folder / name, link=True)
            if kept != ref:
                raise Unavailable(
                    f"{made.folder / name}: changed while it was stored; the work will be repeated"
                )
        self.store.put_bytes(encode(made.manifest))


Asked = Callable[[], Interest]  #: whether somebody still waits for a version that is being made


def do(owed: Owed, state: State, workshop: Workshop, interest: Asked = always) -> cm.Command:
    """Carry out one obligation. Raises Unavailable when trying again later can help."""
    match owed:
        case MakeBase():
            return make_base(state.campaigns[owed.campaign], workshop, interest)
        case Inspect():
            return inspect_job(state, state.jobs[owed.job], workshop, interest=interest)
        case Merge():
            campaign = state.campaigns[owed.campaign]
            return merge_round(state, campaign, campaign.rounds[owed.round], workshop, interest)
        case Judge():
            campaign = state.campaigns[owed.campaign]
            return judge_round(state, campaign, campaign.rounds[owed.round], workshop)


def inspect_job(
    state: State, job: Job, workshop: Workshop, repeat_merges: bool = True, interest: Asked = always
) -> cm.ReportInspection:
    """Inspect what was delivered for a job.

    repeat_merges  where the campaign asks for it; an auditor merges every version again in any case
    """
    assert job.site is not None
    work = job.work
    if isinstance(work, FlowerMessage):  # no delta: nothing is measured against a base
        limits = Admission(bytes_max=state.flower_runs[job.campaign].spec.reply_bytes_max)
        reply = Delivery(job, state.sites[job.site], state.consortium, limits, Path)
        return inspect_delivery(reply, workshop.store)
    campaign = state.campaigns[job.campaign]

    def base_dir() -> Path:
        assert isinstance(work, Train | MergeWork)
        return workshop.version_dir(work.base, campaign.versions[work.base].manifest)

    limits, merge_check = limits_of(campaign.spec, job.purpose), None
    name = f"{job.campaign}-r{job.round}-of-{job.site}"
    if isinstance(work, MergeWork):
        round_ = campaign.rounds[job.round]

        def rebuild() -> VersionManifest:
            with merged(state, campaign, round_, workshop, interest) as again:
                return again.manifest

        merge_check = MergeCheck(
            what_was_merged(state, campaign, round_),
            base_dir,
            lambda: workshop.scratch(name),
            rebuild if repeat_merges and campaign.spec.merge_check == "rebuild" else None,
        )
    try:
        is_measured = job.purpose is Purpose.ROUND
        delivery = Delivery(
            job,
            state.sites[job.site],
            state.consortium,
            limits,
            base_dir,
            merge_check,
            usual_norm(state, campaign, job) if is_measured else None,
            known_deltas(state, campaign, job) if is_measured else frozenset(),
        )
        return inspect_delivery(delivery, workshop.store)
    finally:
        _discard(workshop.folder / "scratch" / name)


# --- the base -----------------------------------------------------------------------------------------


def make_base(campaign: CampaignState, workshop: Workshop, interest: Asked = always) -> cm.ReportBase:
    """Version 0: the given files, or a model made from config and seed in a process of its own."""
    spec = campaign.spec
    if spec.model.files is not None:
        manifest = VersionManifest(base=None, files=dict(sorted(spec.model.files.items())))
        for ref in manifest.files.values():
            workshop.store.path(ref.digest)  # Unavailable until the admin has uploaded all of them
        workshop.store.put_bytes(encode(manifest))
        return cm.ReportBase(campaign=spec.campaign, manifest=manifest)
    assert campaign.tokenizer is not None
    with contextlib.ExitStack() as held:
        try:
            base = held.enter_context(initial(spec, campaign.tokenizer, workshop, interest))
        except BadInput as error:
            reason = f"no model can be made from the campaign's config: {error}"
            return cm.ReportBase(campaign=spec.campaign, manifest=None, reason=reason)
        workshop.keep(base)
    return cm.ReportBase(campaign=spec.campaign, manifest=base.manifest)


def initial(
    spec: Campaign, tokenizer: Digest, workshop: Workshop, interest: Asked = always
) -> AbstractContextManager[Made]:
    """The model of a campaign's config and seed. Also how an auditor makes it again."""
    assert spec.model.config is not None
    work = Base(
        config=spec.model.config,
        seed=spec.model.seed,
        tokenizer=tokenizer,
        shard_bytes=spec.merge.shard_bytes,
    )
    order = BaseOrder(work=work, tokenizer_json=str(workshop.store.path(tokenizer)))
    return making.made("coordinator.base_process", order, workshop.making, interest)


def limits_of(spec: Campaign, purpose: Purpose) -> Admission:
    """How far a delta may move: only what is merged into a trained model is held to the norms.

    The seed round starts from noise, which every step leaves far behind; a rival is never merged.
    """
    if purpose is Purpose.ROUND:
        return spec.admission
    return replace(
        spec.admission, norm_max=math.inf, tensor_norm_max=math.inf, row_norm_max=None, norm_growth_max=None
    )


# --- merging ------------------------------------------------------------------------------------------


def merge_round(
    state: State, campaign: CampaignState, round_: Round, workshop: Workshop, interest: Asked = always
) -> cm.ReportMerge:
    """Merge the collected contributions of a round, in a process of its own."""
    name, number = campaign.spec.campaign, round_.number
    with contextlib.ExitStack() as held:
        try:
            candidate = held.enter_context(merged(state, campaign, round_, workshop, interest))
        except (BadInput, Refused) as refusal:
            reason = f"merge refused: {refusal}"
            return cm.ReportMerge(campaign=name, round=number, manifest=None, reason=reason)
        workshop.keep(candidate)
    return cm.ReportMerge(
        campaign=name,
        round=number,
        manifest=candidate.manifest,
        reason=what_was_merged(state, campaign, round_),
    )


def merged(
    state: State, campaign: CampaignState, round_: Round, workshop: Workshop, interest: Asked = always
) -> AbstractContextManager[Made]:
    """The candidate of a round, from the store. Also how an auditor makes it again."""
    work = merge_order(state, campaign, round_)
    order = MergeOrder(
        work=work,
        base_dir=str(workshop.version_dir(work.base, campaign.versions[work.base].manifest)),
        blobs={ref.digest: str(workshop.store.path(ref.digest)) for ref in work.files},
    )
    return making.made("coordinator.merging_process", order, workshop.making, interest)


# --- the gate -----------------------------------------------------------------------------------------


def judge_round(state: State, campaign: CampaignState, round_: Round, workshop: Workshop) -> cm.ReportVerdict:
    """Hand every score of candidate and base to the gate; the gate is pure and its verdict goes to the ledger."""
    assert round_.candidate is not None
    trained_by: dict[Language, set[SiteName]] = {}
    for name in round_.collected:
        job = state.jobs[name]
        for language in job.work.languages:
            trained_by.setdefault(language, set()).update(job.sites)
    verdict = judge(
        gate_scores(state, campaign, round_, workshop.store),
        round_.candidate,
        round_.base if round_.number > 0 else None,
        campaign.spec.gate,
        campaign.spec.languages,
        {language: sorted(sites) for language, sites in sorted(trained_by.items())},
    )
    return cm.ReportVerdict(campaign=campaign.spec.campaign, round=round_.number, verdict=verdict)


def gate_scores(state: State, campaign: CampaignState, round_: Round, store: Blobs) -> Sequence[Scores]:
    """Admitted score artifacts that speak of a round's candidate or base.

    None of later rounds: an auditor, who judges again, must hear what the gate heard.
    """
    subjects, found = {round_.candidate, round_.base}, []
    rounds = (one for _, one in sorted(campaign.rounds.items()) if one.number <= round_.number)
    for job in (state.jobs[name] for name in sorted(name for one in rounds for name in one.gate_jobs)):
        asked = job.work.subjects if isinstance(job.work, Evaluate) else ()
        if job.contribution is None or not subjects & {subject.name for subject in asked}:
            continue
        scores = load_scores(job.contribution.artifacts["scores"], store)
        if subjects & set(scores.subjects):
            found.append(scores)
    return found


def _discard(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
