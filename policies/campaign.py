"""One training programme: what the admin writes in a campaign file, resolved and immutable.

``policies.reading.load_campaign`` reads the YAML, resolves the names of recipes, gates and limits, and checks
the whole; what comes out holds no reference to any file and is stored in the ledger as it is. The ranges here
are checked whenever a campaign is decoded; ``policies.consistency`` has the rules over several fields.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta

from consortium.canonical import Fact
from consortium.codecs.names import DENSITY, EncodingName
from consortium.ids import CampaignId, Digest, Language, SiteName
from consortium.jobs import LayerGroup, Lora, Optimizer
from consortium.manifests import FileRef
from consortium.merging.recipe import Recipe
from policies.ranges import Count, Natural, NotNegative, Positive, Share, VocabularySize

TEMPERATURE = 5.0  # of Arivazhagan et al. 2019, arXiv:1907.05019, where nobody says which
COURIER_LEASE_HOURS = 336.0  # a fortnight, where nobody says how long a courier is under way


class ModelSource(Fact):
    """The base: made from a Hugging Face config and a seed, or given as files already in the store."""

    config: dict[str, Any] | None = None  #: of transformers, ``model_type`` included
    seed: Natural = 0
    #: Hugging Face layout; set by ``submit`` when a directory is given
    files: dict[str, FileRef] | None = None


class TokenizerSource(Fact):
    """Trained in the campaign on public text, or given (``digest`` of a tokenizer.json in the store)."""

    vocabulary_size: VocabularySize | None = None
    bytes_per_language: Count = 1_000_000
    digest: Digest | None = None


class TrainPlan(Fact):
    """What every specialist job of a round does."""

    steps: Count
    batch_sequences: Count
    sequence_tokens: Annotated[int, Meta(ge=2)]  #: one to read and one to predict
    #: what a sequence is: a stretch of the text, or whole documents that do not see each other
    packing: Literal["stream", "documents"] = "stream"
    optimizer: Optimizer
    proximal: NotNegative = 0.0  #: FedProx's mu, in rounds
    groups: tuple[LayerGroup, ...] = ()  #: frozen or slower parts, in all jobs but the seed round
    lora: Lora | None = None  #: adapters instead of all weights, in all jobs but the seed round
    replay_share: Share = 0.5  #: public multilingual text; the largest single effect we measured, see docs
    epochs_max: Positive = 4.0
    #: as even as epochs_max allows, or by a power of how much text each language has
    sampling: Literal["unimax", "temperature"] = "unimax"
    temperature: Annotated[float, Meta(ge=1)] = (
        TEMPERATURE  #: 1: in proportion to the text; the larger, the more even
    )
    delta_dtype: EncodingName = "bf16"  #: of the rounds' deltas; int8, int4 and topk with error feedback
    delta_density: Annotated[float, Meta(gt=0, le=1)] = DENSITY  #: share of the elements that topk keeps
    #: whether a round's delta has what happened to rows of embeddings and head whose tokens the site never saw
    unseen_rows: Literal["move", "keep"] = "move"
    checkpoint_steps: Count = 50
    shard: bool = False  #: the model is too large for one device: sites with several ranks share it in shards
    #: whether every site does `steps`, or each so many that all finish together; the sum is the same
    pace: Literal["equal_steps", "finish_together"] = "equal_steps"
    steps_share_min: Annotated[float, Meta(gt=0, le=1)] = 0.25  #: of `steps`; nobody is asked for less
    steps_share_max: Annotated[float, Meta(ge=1)] = 4.0  #: of `steps`; nobody is asked for more


class SeedRound(Fact):
    """Round 0: the base trained on public text at one site, merged as it is."""

    steps: Count
    optimizer: Optimizer


class Quorum(Fact):
    """When a round may close without everybody."""

    #: of the round's jobs that must have been admitted (rounded up); 1: all that can still come
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    minimum: Count = 1  #: contributions below which the round fails
    #: of one job, from when it began to run; when no open job has hours left, close with `minimum` or fail
    deadline_hours: Positive = 72.0
    queue_hours_max: Positive | None = None  #: that a job may wait before it begins; None: `deadline_hours`
    grace_hours: NotNegative = 0.0  #: from the quorum on, for those that are still at it
    #: what becomes of a job that is still at it when its round closes: cancelled, or merged a round later
    late: Literal["refuse", "next_round"] = "refuse"
    staleness_max: Annotated[int, Meta(ge=1, le=3)] = 1  #: rounds that a late delta may be behind
    stale_percent: Annotated[int, Meta(ge=1, le=100)] = 50  #: its weight for each round that it is behind


class Gate(Fact):
    """The per-language test for promotion.

    A language regresses if its bits per byte grew by more than ``tolerance`` (relative) with confidence:
    the one-sided paired bootstrap over documents puts the lower bound of the growth above it.
    With ``proven_no_regression`` it is enough that the upper bound is above it; see coordinator/core/gate.py.
    """

    rule: Literal["no_proven_regression", "proven_no_regression"] = "no_proven_regression"
    tolerance: NotNegative = 0.005
    confidence: Annotated[float, Meta(ge=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Meta(ge=100, le=1_000_000)] = 1000
    seed: Natural = 0
    protected: tuple[Language, ...] = ()  #: empty: every language of the campaign
    #: fewer held-out documents than this cannot decide; the language counts as unscored
    documents_min: Count = 20
    unscored: Literal["reject", "allow"] = "reject"  #: what an unscored protected language means


class Admission(Fact):
    """Limits on a contribution before it may be merged."""

    norm_max: Positive = 0.5  #: of the delta's L2 norm relative to the base's
    tensor_norm_max: Positive = 2.0  #: the same for every single tensor with a non-zero base
    bytes_max: Count = 64 << 30
    tokens_share_min: Share = 0.25  #: a partial delta with fewer of its planned steps is not merged
    #: of a row of a matrix, an embedding say, relative to the base's mean row; None: not looked at
    row_norm_max: Positive | None = None
    #: of the norm, relative to the median of what earlier rounds merged; None: not looked at
    norm_growth_max: Positive | None = None
    #: other sites score base + delta on held-out text of its languages: not, for the record, or to leave out what harms
    loss_check: Literal["off", "advise", "decide"] = "off"
    loss_growth_max: NotNegative = 0.005  #: of that loss, relative to the base's, before a delta harms


class Rivals(Fact):
    """What the campaign is compared with, at the cost of training it. Never merged."""

    public_only: bool = False  #: the public slice alone, with the total compute of all sites and rounds
    specialists: bool = False  #: each site alone, with its own share of the compute


class Campaign(Fact):
    schema: Literal[1] = 1
    campaign: CampaignId
    description: str = ""
    languages: Annotated[tuple[Language, ...], Meta(min_length=1)]  #: sorted
    sites: tuple[SiteName, ...] = ()  #: who may take part; empty: every enrolled site that holds a language
    sites_expected: Count = 1  #: rounds wait until so many able sites are enrolled
    model: ModelSource
    tokenizer: TokenizerSource
    seed_round: SeedRound | None = None
    rounds: Count
    train: TrainPlan
    merge: Recipe = Recipe()
    #: who merges: the coordinator, a site that offers it, or a site if one is free and else the coordinator
    merge_at: Literal["coordinator", "site", "any"] = "coordinator"
    merge_sites: tuple[SiteName, ...] = ()  #: who may merge; empty: those of `sites` that offer it
    #: rebuild: the coordinator repeats a site's merge before it believes it; none: only what costs no merge
    merge_check: Literal["rebuild", "none"] = "rebuild"
    quorum: Quorum = Quorum()
    gate: Gate = Gate()
    admission: Admission = Admission()
    rivals: Rivals = Rivals()
    attempts_max: Count = 3
    lease_seconds: Positive = 900.0  #: three times as long as an agent from cron is silent
    #: the same for a site whose bundles a courier carries: a fortnight
    courier_lease_hours: Positive = COURIER_LEASE_HOURS
    seed: Natural = 0
