"""What describes bytes: the manifests of contributions, data, scores and versions.

Only these leave a site beside the weights: digests, counts and losses, nothing that could be read as text.
"""

from typing import Literal

import msgspec

from consortium.canonical import Fact, digest_of_fact
from consortium.ids import AttemptId, CampaignId, Digest, JobId, Language, SiteName


class FileRef(Fact):
    """Bytes by their true name."""

    digest: Digest
    size: int  #: bytes


class Holding(Fact):
    """What a site holds of one language in one class: enough to plan with, nothing to copy."""

    language: Language
    access: Literal["private", "public"]
    documents: int  #: all, held-out ones included
    bytes: int  #: UTF-8
    heldout_documents: int
    licence: str
    digest: Digest  #: over the sorted digests of the documents


class DataManifest(Fact):
    """All holdings of a site, sorted by (language, access)."""

    schema: int = 1
    site: SiteName
    holdings: tuple[Holding, ...]


class Losses(Fact):
    """Nats per token."""

    first: float
    last: float
    mean: float


class Contribution(Fact):
    """The manifest that a site signs beside what a job produced."""

    schema: int = 1
    job: JobId
    attempt: AttemptId
    campaign: CampaignId
    site: SiteName
    assignment: Digest  #: of job.json
    base: Digest | None = None  #: version the delta is relative to
    artifacts: dict[
        str, FileRef
    ]  #: ``delta`` (and ``token_counts``), ``scores``, ``tokenizer``, or a version
    steps: int = 0
    planned_steps: int = 0
    tokens: dict[Language, int] = {}  #: trained on, per language (public and own together)
    public_tokens: dict[Language, int] = {}
    losses: Losses | None = None
    data: dict[str, Digest] = {}  #: ``<language>.<access>`` -> digest of the documents used
    software: dict[str, str] = {}
    seconds: float = 0.0
    joules: float | None = None
    #: Error feedback of int8, int4 and top-k: what was added to the delta before it was encoded, and what the
    #: encoding left unsaid. Both stay at the site. ``residual_before`` None: began from zero.
    residual_before: Digest | None = None
    residual: Digest | None = None
    #: Moments of the optimizer, where the order keeps them: those that the job began with, and those that it left.
    #: Both stay at the site, too. ``moments_before`` unset: began with zeros. Elsewhere neither is written.
    moments_before: Digest | msgspec.UnsetType = msgspec.UNSET
    moments: Digest | msgspec.UnsetType = msgspec.UNSET


class LanguageScore(Fact):
    """Per document, in the order of sorted document digests: paired by position across models."""

    heldout: Digest  #: digest of the held-out document set; only equal ones may be compared
    nats: tuple[float, ...]
    bytes: tuple[int, ...]


class Scores(Fact):
    """The ``scores`` artifact of an evaluation: subject name -> language -> scores."""

    schema: int = 1
    site: SiteName
    subjects: dict[str, dict[Language, LanguageScore]]


class Ingredient(Fact):
    """A delta that went into a merge, and its share (exact: the shares are what was summed)."""

    delta: FileRef
    weight: int  #: e.g. tokens; share = weight / sum of weights
    #: how often it saw each token, where that weighed the rows of embeddings
    row_counts: FileRef | None = None


class Initial(Fact):
    """A base made from nothing: a config and a seed."""

    config: Digest
    seed: int


class VersionManifest(Fact):
    """An immutable model. Its digest is the version's name.

    It holds only what the bits depend on: no times, no sites, no keys. Who and when is in the ledger.
    """

    schema: int = 1
    base: Digest | None  #: version it was merged onto
    files: dict[str, FileRef]  #: Hugging Face layout, relative paths
    recipe: Digest | None = None  #: of the canonical merge recipe
    ingredients: tuple[Ingredient, ...] = ()  #: sorted by delta digest
    outer_state: dict[str, FileRef] = {}  #: outer optimizer's momentum, if the recipe keeps any
    initial: Initial | None = None
    decisions: tuple[str, ...] = ()  #: what guards and robust methods did to which delta, a sentence each

    @property
    def digest(self) -> Digest:
        return digest_of_fact(self)

    @property
    def tokenizer(self) -> Digest | None:
        ref = self.files.get("tokenizer.json")
        return ref.digest if ref else None
