"""What a job is told: its work, its seed, and every blob it may read."""

from msgspec import UNSET

from consortium.canonical import replace
from consortium.codecs.names import is_coded
from consortium.ids import Digest, JobId, Language, SiteName, digest_of
from consortium.jobs import Evaluate, Merge, Part, Purpose, Subject, Train, Work
from consortium.manifests import Contribution, VersionManifest
from consortium.merging.recipe import PLAIN_AVERAGE, Recipe
from coordinator.core import events as ev
from coordinator.core.late import staleness, weights
from coordinator.core.state import CampaignState, Round, Site, State
from policies.campaign import Campaign


def train_order(
    campaign: CampaignState,
    base: Digest,
    number: int,
    stream: str,
    languages: tuple[Language, ...],
    steps: int,
    *,
    replay_share: float,
) -> Train:
    """One training job. Its data order is keyed by (campaign seed, round, stream), not by attempt.

    What an encoding leaves unsaid is said a round later, so only rounds use those that do; nor has anything else a
    next job that could go on with its moments; see ``fed_back``.
    """
    spec, plan = campaign.spec, campaign.spec.train
    return Train(
        base=base,
        languages=languages,
        public_languages=spec.languages,
        replay_share=replay_share,
        epochs_max=plan.epochs_max,
        sampling=plan.sampling,
        temperature=plan.temperature,
        packing=plan.packing,
        steps=steps,
        batch_sequences=plan.batch_sequences,
        sequence_tokens=plan.sequence_tokens,
        optimizer=replace(plan.optimizer, moments=UNSET),
        groups=plan.groups if number else (),  # the seed round has weights that were drawn: all must learn
        lora=plan.lora if number else None,
        schedule_start=max(0, number - 1) * plan.steps,
        schedule_steps=spec.rounds * plan.steps,
        seed=_seed(spec.seed, number, stream),
        split_seed=spec.seed,
        delta_dtype="bf16" if is_coded(plan.delta_dtype) else plan.delta_dtype,
        checkpoint_steps=plan.checkpoint_steps,
        shard=plan.shard,
    )


def fed_back(work: Train, state: State, campaign: CampaignState, site: SiteName) -> Train:
    """A round's order with all that is there for the merge: the encoding, and what goes with the base at this site.

    That is the residual and the moments of the site's newest delta that went into the base's lineage: what was
    refused, expired or merged into a rejected version never happened.
    """
    plan = campaign.spec.train
    feeds_back, keeps = is_coded(plan.delta_dtype), plan.optimizer.moments == "keep"
    done = _newest_merged(state, campaign, work.base, site) if feeds_back or keeps else None
    return replace(
        work,
        optimizer=replace(work.optimizer, moments="keep") if keeps else work.optimizer,
        delta_dtype=plan.delta_dtype,
        delta_density=plan.delta_density,
        residual=done.residual if done is not None and feeds_back else None,
        moments=done.moments if done is not None and keeps else UNSET,
        token_counts=campaign.spec.merge.embedding_rows is not None,
        unseen_rows=plan.unseen_rows,
        proximal=plan.proximal,
    )


def _newest_merged(
    state: State, campaign: CampaignState, base: Digest, site: SiteName
) -> Contribution | None:
    """Of the site's contributions that are in ``base``, or in what it was made of, the last; rounds alone count."""
    version = campaign.versions.get(base)
    while version is not None:
        merged = {ingredient.delta.digest for ingredient in version.manifest.ingredients}
        round_ = campaign.rounds.get(version.round)
        found: Contribution | None = None
        for name in round_.collected if round_ else ():
            done = state.jobs[name].contribution
            if done is not None and done.site == site and done.artifacts["delta"].digest in merged:
                found = done
        if found is not None:
            return found
        before = version.manifest.base
        version = None if before is None else campaign.versions.get(before)
    return None


def _seed(seed: int, number: int, stream: str) -> int:
    return int(digest_of(f"{seed}/{number}/{stream}".encode())[:12], 16)


def train_inputs(campaign: CampaignState, work: Train) -> tuple[Digest, ...]:
    return version_inputs(work.base, campaign.versions[work.base].manifest)


def version_inputs(version: Digest, manifest: VersionManifest) -> tuple[Digest, ...]:
    """The blobs that make a version: its manifest and its files."""
    return tuple(sorted({version, *(ref.digest for ref in manifest.files.values())}))


def planned(
    campaign: CampaignState,
    job: JobId,
    number: int,
    purpose: Purpose,
    sites: tuple[SiteName, ...],
    work: Work,
    inputs: tuple[Digest, ...],
    reason: str,
) -> ev.JobPlanned:
    return ev.JobPlanned(
        job=job,
        campaign=campaign.spec.campaign,
        round=number,
        purpose=purpose,
        sites=sites,
        work=work,
        inputs=inputs,
        tokenizer=campaign.tokenizer,
        reason=reason,
    )


def evaluation(
    campaign: CampaignState,
    job: JobId,
    number: int,
    purpose: Purpose,
    site: Site,
    subjects: tuple[Subject, ...],
    languages: tuple[Language, ...],
) -> ev.JobPlanned:
    inputs: set[Digest] = set()
    for subject in subjects:
        inputs.update(version_inputs(subject.version, campaign.versions[subject.version].manifest))
        if subject.delta is not None:
            inputs.add(subject.delta)
    work = Evaluate(
        subjects=subjects,
        languages=languages,
        sequence_tokens=campaign.spec.train.sequence_tokens,
        split_seed=campaign.spec.seed,
    )
    reason = f"{site.name} holds held-out text of {', '.join(languages)}"
    return planned(campaign, job, number, purpose, (site.name,), work, tuple(sorted(inputs)), reason)


# --- merges ----------------------------------------------------------------------------------------


def merge_order(state: State, campaign: CampaignState, round_: Round) -> Merge:
    """What is merged how: the same for the coordinator, for a site, and for an auditor."""
    recipe = recipe_of(campaign.spec, round_.number)
    parts: list[Part] = []
    languages: set[Language] = set()
    counts = [
        (
            sum(_contribution(state, name).tokens.values()) if recipe.weights == "tokens" else 1,
            staleness(round_, state.jobs[name]),
        )
        for name in round_.collected
    ]
    discounted = weights(counts, campaign.spec.quorum.stale_percent)
    for name, weight in zip(round_.collected, discounted, strict=True):
        contribution, own = _contribution(state, name), state.jobs[name].work.languages
        parts.append(
            Part(
                delta=contribution.artifacts["delta"],
                row_counts=contribution.artifacts.get("token_counts") if recipe.embedding_rows else None,
                weight=weight,
                cohort="+".join(own),
            )
        )
        languages.update(own)
    return Merge(
        base=round_.base,
        outer_state=campaign.versions[round_.base].manifest.outer_state,
        parts=tuple(sorted(parts, key=lambda part: (part.delta.digest, part.weight))),
        recipe=recipe,
        languages=tuple(sorted(languages)),
    )


def merge_inputs(state: State, campaign: CampaignState, round_: Round) -> tuple[Digest, ...]:
    """Every blob that a merge reads."""
    base = campaign.versions[round_.base].manifest
    files = merge_order(state, campaign, round_).files
    return tuple(sorted({*version_inputs(round_.base, base), *(ref.digest for ref in files)}))


def recipe_of(spec: Campaign, number: int) -> Recipe:
    """The seed round's single contribution is taken as it is; what the campaign merges by starts with round 1."""
    if number > 0:
        return spec.merge
    return replace(PLAIN_AVERAGE, dtype=spec.merge.dtype, shard_bytes=spec.merge.shard_bytes)


def what_was_merged(state: State, campaign: CampaignState, round_: Round) -> str:
    """For the ledger: whose contributions, onto what."""
    sites = ", ".join(_contribution(state, name).site for name in round_.collected)
    base = campaign.versions[round_.base].name
    stale = [name for name in round_.collected if staleness(round_, state.jobs[name])]
    late = f", {len(stale)} of them late and discounted" if stale else ""
    return f"merged {len(round_.collected)} contribution(s) of {sites} onto {base}{late}"


def _contribution(state: State, job: JobId) -> Contribution:
    found = state.jobs[job].contribution
    assert found is not None, job
    return found
