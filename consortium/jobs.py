"""What a site can be asked to do: the assignment that becomes ``job.json`` in the job directory.

An assignment is the whole order. With it, the base model beside it and the site's own text,
``python -m site_agent.trainer JOB_DIR`` needs no agent and no network, and the same assignment
over the same text gives the same bits on CPU.
"""

import enum
from typing import Literal

import msgspec

from consortium.canonical import Fact
from consortium.codecs.names import DENSITY, EncodingName
from consortium.flower.runs import Config
from consortium.ids import AttemptId, CampaignId, Digest, JobId, Language, SiteName
from consortium.manifests import FileRef
from consortium.merging.recipe import Recipe

ANY_SITE = "*"


class Purpose(enum.StrEnum):
    """Why a job exists. Decides what happens with its result, never how it is carried out."""

    TOKENIZER = "tokenizer"  #: train the campaign's tokenizer on public text
    SEED = "seed"  #: round 0: the base model, trained on public text at one site
    ROUND = "round"  #: a language specialist whose delta will be merged
    RIVAL = "rival"  #: trained for comparison only, never merged
    CHECK = "check"  #: evaluate one delta on held-out text of its languages, before it is merged
    GATE = "gate"  #: evaluate a candidate on held-out text
    COMPARE = "compare"  #: evaluate the rivals on held-out text
    MERGE = "merge"  #: make a round's candidate from its contributions
    FLOWER = "flower"  #: have a Flower ClientApp answer one message of its ServerApp


class Outcome(enum.StrEnum):
    """How an attempt ended. Only ``failed`` and ``corrupt`` count against the job."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    PREEMPTED = "preempted"
    EXPIRED = "expired"
    REFUSED = "refused"
    CORRUPT = "corrupt"
    CANCELLED = "cancelled"


class Phase(enum.StrEnum):
    """What an agent says of an attempt it holds."""

    STAGING = "staging"  #: fetching inputs
    QUEUED = "queued"  #: handed to the launcher, not running yet
    RUNNING = "running"
    UPLOADING = "uploading"
    ENDED = "ended"  #: ``outcome`` says how


class Muon(Fact):
    """The blocks' matrices go by their momentum made orthogonal: Jordan et al. 2024, kellerjordan.github.io/posts/muon.

    A step has the root mean square of AdamW's (Liu et al. 2025, arXiv:2502.16982, section 2.2), so that learning rate
    and weight decay stay as they are. Embeddings, head, norms and biases are AdamW's all the same.
    """

    momentum: float = 0.95


class Optimizer(Fact):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and its learning-rate schedule.

    Step t of a job (from 0) uses ``learning_rate * min(1, (s + t + 1) / warmup_steps) * decay(x)`` with
    x = (schedule_start + t) / schedule_steps and s the steps that the moments it began with have seen: warm-up starts
    anew with the moments, and only with them; the decay runs over the whole campaign.
    """

    learning_rate: float
    warmup_steps: int = 0
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    final_share: float = 0.1  #: learning rate at the last step, as a share of ``learning_rate``
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0  #: global gradient norm; 0 turns clipping off
    #: for the blocks' matrices. Where it is left out it is not written either: orders of before keep their digests
    muon: Muon | msgspec.UnsetType = msgspec.UNSET
    #: keep: a site's moments stay there from round to round (DiLoCo's inner optimizer, Douillard et al. 2023,
    #: arXiv:2311.08105); fresh, or left out: each job begins with zeros
    moments: Literal["keep", "fresh"] | msgspec.UnsetType = msgspec.UNSET


class LayerGroup(Fact):
    """Some tensors of the model, and how fast they learn.

    match                 ``embeddings``, ``first third``, ``middle third`` or ``last third`` (of the blocks), ``norm
                          and head``; or a tensor's name with ``*`` and ``?`` for what may differ
    learning_rate_factor  0 to 1; 0: frozen, and zero in the delta
    """

    match: str
    learning_rate_factor: float


class Lora(Fact):
    """Train low-rank changes of matrices instead of the model (Hu et al. 2021, arXiv:2106.09685).

    match  names of matrices in blocks, with ``*`` and ``?`` for what may differ; a matrix is changed by
           alpha / rank times a product of two matrices of that rank
    """

    rank: int
    alpha: float = 32.0
    match: tuple[str, ...] = ("*_proj.weight",)


class Tokenizer(Fact, tag="tokenizer"):
    """Train a byte-level BPE on public text, the same number of bytes from every language."""

    languages: tuple[Language, ...]
    vocabulary_size: int
    bytes_per_language: int
    split_seed: int = 0  #: which documents are held out


class Train(Fact, tag="train"):
    """Train the base for ``steps`` and return trained minus base."""

    base: Digest  #: version manifest
    languages: tuple[Language, ...]  #: the site's own languages; empty: public text only
    public_languages: tuple[Language, ...]  #: of the replayed public text
    replay_share: float  #: share of sequences drawn from public text, 0 to 1
    epochs_max: float = 4.0  #: cap on passes over one language's text within the job
    sampling: Literal["unimax", "temperature"] = "unimax"  #: which shares the languages have
    #: of that sampling: a language's share goes with its text's size to the power of 1 / T
    temperature: float = 5.0
    #: what a sequence is: a stretch of the text, or whole documents that do not see each other
    packing: Literal["stream", "documents"] = "stream"
    steps: int
    batch_sequences: int
    sequence_tokens: int
    optimizer: Optimizer
    proximal: float = 0.0  #: FedProx's mu: the gradient has mu times (weights - base) added
    groups: tuple[LayerGroup, ...] = ()  #: of the groups that a tensor is in, the first counts
    lora: Lora | None = None  #: train adapters; the delta is that of the dense weights all the same
    schedule_start: int = 0  #: where this job's first step stands in the decay schedule
    schedule_steps: int = 0  #: length of the decay schedule; 0: this job's ``steps``
    seed: int  #: of data order
    split_seed: int = 0
    delta_dtype: EncodingName = "bf16"
    delta_density: float = DENSITY  #: share of the elements that top-k keeps
    #: what the site's last delta before this base left unsaid; None: nothing. Not an input: the site has it.
    residual: Digest | None = None
    #: the moments that the job of that delta left, where the optimizer keeps them; not written where there are none
    moments: Digest | msgspec.UnsetType = msgspec.UNSET
    #: whether to say how often each token was seen: the rows of embeddings are weighed by it
    token_counts: bool = False
    #: of tokens that were neither read nor predicted: whether the delta has what decay and softmax did to their
    #: rows of embeddings and head, or zeros
    unseen_rows: Literal["move", "keep"] = "move"
    checkpoint_steps: int = 50
    shard: bool = False  #: whether ranks are to share the model in shards even where the site would not
    precision: Literal["auto", "fp32", "bf16"] = "auto"  #: auto: bf16 on GPU, fp32 on CPU


class Subject(Fact):
    """A model to be scored: a version, or a version plus a delta."""

    name: str
    version: Digest
    delta: Digest | None = None


class Evaluate(Fact, tag="evaluate"):
    """Score models on held-out text; returns nats and bytes per document, never the text."""

    subjects: tuple[Subject, ...]
    languages: tuple[Language, ...]
    sequence_tokens: int
    split_seed: int = 0


class Part(Fact):
    """One contribution to a merge."""

    delta: FileRef
    row_counts: FileRef | None = None  #: how often it saw each token, where the recipe weighs embedding rows
    weight: int  #: tokens trained on, or 1 where the recipe weighs all alike
    cohort: str  #: its languages, joined by ``+``: robust methods compare within a cohort


class Merge(Fact, tag="merge"):
    """Merge contributions onto the base; returns the model, its outer state and its version's manifest.

    The same order gives the same bytes wherever it is carried out.
    """

    base: Digest  #: version manifest
    outer_state: dict[str, FileRef]  #: of the base: what the outer optimizer keeps between merges
    parts: tuple[Part, ...]  #: by digest
    recipe: Recipe
    languages: tuple[Language, ...]  #: of the contributions

    @property
    def files(self) -> tuple[FileRef, ...]:
        """Every file that the merge reads beside the base."""
        counts = (part.row_counts for part in self.parts if part.row_counts is not None)
        return (*(part.delta for part in self.parts), *counts, *self.outer_state.values())


class FlowerMessage(Fact, tag="flower"):
    """Hand one message to a Flower ClientApp that the site has installed; returns its reply."""

    app: str  #: of the ClientApp, ``module:attribute``
    run_config: Config
    message_type: str  #: train, evaluate or query, and perhaps an action: ``train.merge``
    group: str  #: Flower's group id: the round, mostly
    node: int  #: the site's number in Flower
    letter: FileRef  #: the message; see consortium/flower/letters.py
    #: what the app kept at the site with its reply before this one (``Context.state``); None: nothing
    state: Digest | None = None

    @property
    def languages(self) -> tuple[Language, ...]:
        """None that the consortium knows of: what an app reads, its site's operator has allowed."""
        return ()


Work = Tokenizer | Train | Evaluate | Merge | FlowerMessage


class Assignment(Fact):
    """``job.json``, verbatim as the coordinator signed it."""

    schema: int = 1
    job: JobId
    attempt: AttemptId
    campaign: CampaignId
    round: int
    site: SiteName
    purpose: Purpose
    work: Work
    inputs: tuple[Digest, ...]  #: every blob the job needs, sorted; the site may read these and no others
    tokenizer: Digest | None  #: tokenizer.json; None only for a tokenizer job
    sender: str = ""  #: who submitted the campaign, by the name in the certificate; "": not known
    #: sites that may get the delta to merge it: none, these, or ``ANY_SITE``. None: not known
    merged_by: tuple[str, ...] | None = None
