"""How long a job will take at a site, when it could begin there, and what it will cost: learnt from the ledger alone.

What is measured stands in contributions (tokens), in the accounts (seconds) and in AttemptStarted (waits in queues);
medians of the newest few, so one bad node or one maintenance day moves nothing. What nobody has measured is assumed,
and said to be. The formulas stand in docs/placement.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from consortium.ids import Digest, SiteName
from consortium.jobs import Evaluate, Purpose, Train, Work
from coordinator.core.state import CampaignState, Job, Site, State

HOUR = 3600.0
#: Useful arithmetic of one GPU where nothing was measured: 3e14 bf16 peak of an A100 at a third.
GPU_FLOPS = 1e14
#: The same of a CPU job, for which nothing is charged: it only orders sites that nobody knows.
CPU_FLOPS = 5e10
FLOPS_PER_TOKEN = 6.0  #: times parameters: forward and backward (Kaplan et al. 2020, arXiv:2001.08361, 2.1)
START_SECONDS = 120.0  #: of every job that was only assumed: the container, the model's bytes
OTHER_SECONDS = 1800.0  #: of tokenizers, evaluations and merges, where none was ever done
QUEUE_SECONDS = 4 * HOUR  #: of a batch system in which nothing of ours ever waited
NEWEST = 5  #: measurements that a median is taken of
SITES_MIN = 3  #: whose times say something of another site: of three, one may lie
_LOOKED_AT = 60  # jobs of other sites, the newest
_BYTES_PER_PARAMETER = 4  # versions are float32
_SECONDS_MIN, _SECONDS_MAX = 1e-3, 366 * 86400.0  # that a job takes, or waits; others are not believed


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    how: str  #: where it comes from, for people
    is_measured: bool = False


@dataclass(frozen=True, slots=True)
class Cost:
    """What one job would take at one site."""

    seconds: Estimate
    gpu_seconds: float  #: what it is expected to be charged


def cost(state: State, site: Site, job: Job) -> Cost:
    """Of a planned job, all of it, at ``site``."""
    return cost_of(state, state.campaigns.get(job.campaign), site, job.work, job.purpose)


def cost_of(
    state: State,
    campaign: CampaignState | None,
    site: Site,
    work: Work,
    purpose: Purpose,
    told: Estimate | None = None,
) -> Cost:
    """``told`` is the site's tokens per second, where somebody knows better; ``campaign`` the work's, if it has one."""
    if isinstance(work, Train):
        assert campaign is not None
        rate = told or tokens_per_second(state, campaign, site, work.base)
        tokens = work.steps * work.batch_sequences * work.sequence_tokens
        start = 0.0 if rate.is_measured else START_SECONDS
        seconds = Estimate(start + tokens / rate.value, rate.how, rate.is_measured)
    else:
        seconds = _other_seconds(state, site, work, purpose)
    return Cost(seconds, seconds.value * site.gpus)


def tokens_per_second(state: State, campaign: CampaignState, site: Site, base: Digest | None) -> Estimate:
    """How fast ``site`` trains this campaign's model, waits in queues left out.

    Measured in this campaign; else in others at the same site, scaled by the size of the model; else assumed from
    the number of its GPUs.
    """
    name = campaign.spec.campaign
    here = (_rate(job) for job in state.index.trained(site.name, name))
    if done := _newest(here):
        return Estimate(median(done), f"measured at {site.name}: {len(done)} job(s) of {name}", True)
    size = parameters(campaign, base)
    others = _newest(
        None if job.campaign == name or (rate := _rate(job)) is None else rate * _size_of(state, job) / size
        for job in state.index.trained(site.name)
    )
    if others:
        how = f"from {len(others)} job(s) of other campaigns at {site.name}, scaled by the model's size"
        return Estimate(median(others), how, True)
    flops = GPU_FLOPS * site.gpus if site.gpus else CPU_FLOPS
    where = f"{site.gpus} GPU(s)" if site.gpus else "a CPU"
    how = f"assumed for {size / 1e6:.4g} M parameters on {where}: nothing was measured at {site.name}"
    return Estimate(flops / (FLOPS_PER_TOKEN * size), how)


def _newest(measured: Iterable[float | None]) -> list[float]:
    """The first few of those that are known; the newest come first."""
    return list(islice((value for value in measured if value is not None), NEWEST))


def _rate(job: Job) -> float | None:
    """Tokens per second of an admitted training job."""
    assert job.contribution is not None
    tokens, seconds = sum(job.contribution.tokens.values()), seconds_taken(job)
    return tokens / seconds if tokens > 0 and seconds > 0.0 else None


def _size_of(state: State, job: Job) -> float:
    assert isinstance(job.work, Train)
    return parameters(state.campaigns[job.campaign], job.work.base)


def seconds_taken(job: Job) -> float:
    """Of its admitted attempt: by the accounts, else by the trainer's own clock."""
    done = job.contribution
    if done is None:
        return 0.0
    counted = job.tries[done.attempt].seconds if done.attempt in job.tries else 0.0
    return _believable(counted or done.seconds)


def _believable(seconds: float) -> float:
    """What a site says of its times enters plans of others: a joke must not make them infinite."""
    return min(max(_SECONDS_MIN, seconds), _SECONDS_MAX) if seconds > 0.0 else 0.0


def _other_seconds(state: State, site: Site, work: Work, purpose: Purpose) -> Estimate:
    """Of jobs that train nothing: like the last ones of their kind at the site, else at others, else assumed.

    Of other sites the median of their medians, three of them at least: what one says of its times, true or false,
    decides nothing for another.
    """
    done = _newest(
        seconds_taken(job) / _amount(job.work) or None for job in state.index.of_kind(purpose, site.name)
    )
    if done:
        how = f"as {len(done)} earlier {purpose} job(s) at {site.name}"
        return Estimate(median(done) * _amount(work), how, True)
    elsewhere: dict[SiteName, list[float]] = {}
    for job in islice(state.index.of_kind(purpose), _LOOKED_AT):
        assert job.contribution is not None
        if (seconds := seconds_taken(job)) > 0.0:
            elsewhere.setdefault(job.contribution.site, []).append(seconds / _amount(job.work))
    if len(elsewhere) >= SITES_MIN:
        middle = median(median(found[:NEWEST]) for _, found in sorted(elsewhere.items()))
        return Estimate(middle * _amount(work), f"as earlier {purpose} jobs at {len(elsewhere)} other sites")
    few = (
        f"only {len(elsewhere)} other site(s) did a {purpose} job"
        if elsewhere
        else f"no {purpose} job was ever done"
    )
    return Estimate(OTHER_SECONDS, f"assumed: {few}")


def _amount(work: Work) -> int:
    """What the length of such a job grows with."""
    return max(1, len(work.subjects)) if isinstance(work, Evaluate) else 1


def queue_seconds(site: Site) -> Estimate:
    """How long a job of ours waits in the site's queue once it is submitted."""
    if site.queued:
        newest = site.queued[-NEWEST * 2 :]
        return Estimate(
            _believable(median(newest)), f"median of {len(newest)} waits in {site.name}'s queue", True
        )
    if site.launcher == "slurm":
        return Estimate(QUEUE_SECONDS, f"assumed: nothing of ours waited in {site.name}'s queue yet")
    return Estimate(0.0, f"{site.name} has no queue")


def median(values: Iterable[float]) -> float:
    """Of at least one value; of an even number the mean of the middle two."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0


def parameters(campaign: CampaignState, base: Digest | None) -> float:
    """Size of the campaign's model: by its files where there are some, else by its config; at least 1."""
    version = campaign.versions.get(base) if base is not None else None
    files = version.manifest.files if version else campaign.spec.model.files
    if files is not None:
        size = sum(ref.size for name, ref in sorted(files.items()) if name.endswith(".safetensors"))
        return max(1.0, size / _BYTES_PER_PARAMETER)
    return max(
        1.0, parameters_of_config(campaign.spec.model.config or {}, campaign.spec.tokenizer.vocabulary_size)
    )


def parameters_of_config(config: dict[str, Any], vocabulary: int | None) -> float:
    """Of a transformer with gated MLPs; a rough count is enough, and what a config leaves out counts nothing."""

    def number(key: str, default: float = 0.0) -> float:
        value = config.get(key)
        return float(value) if isinstance(value, int | float) else default

    width, layers, heads = (
        number("hidden_size"),
        number("num_hidden_layers"),
        number("num_attention_heads", 1.0),
    )
    shared = number("num_key_value_heads", heads) / max(1.0, heads)
    attention = width * width * (2.0 + 2.0 * shared)
    mlp = 3.0 * width * number("intermediate_size", 4.0 * width)
    embeddings = float(vocabulary or number("vocab_size")) * width
    tied = config.get("tie_word_embeddings", False) is True
    return layers * (attention + mlp) + embeddings * (1.0 if tied else 2.0)
