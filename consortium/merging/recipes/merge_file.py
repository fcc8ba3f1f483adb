"""A merge as a file says it: the recipe, and which models go in where; names only, nothing is opened.

``files`` reads it from YAML, ``export`` writes it.
"""

from typing import Literal

from consortium.canonical import Fact
from consortium.ids import Digest, Language
from consortium.merging.layers import Layout
from consortium.merging.recipe import PLAIN_STEP, EmbeddingRows, Guards, OuterStep, Recipe, Settings

#: mergekit's methods whose recipes count the base_model among the inputs
BASE_IS_AN_INPUT = ("linear", "karcher")


class InputPin(Fact):
    """What mergekit cannot say of an input; in the file, an entry of ``sprachbund: inputs:``."""

    kind: Literal["model", "delta"] = "model"  #: a model's folder, or a file of trained minus base
    #: sha256 that a delta file must have; of a model, that its weights must have
    digest: Digest | None = None
    size: int | None = None  #: bytes of a delta file, where its digest is pinned
    tokens: int = 1  #: that it was trained on; counts where the recipe weighs by tokens
    languages: tuple[Language, ...] = ()  #: of its cohort
    row_counts: str | None = None  #: file of how often each token was seen, beside the recipe


class MergeModel(Fact):
    name: str  #: a folder, a file, or ``organisation/name[@revision]``
    settings: Settings = {}
    pin: InputPin = InputPin()


class MergeFile(Fact):
    recipe: Recipe  #: its ``dtype`` is ``output_dtype``, or the default where that is None
    models: tuple[MergeModel, ...]  #: the inputs, as listed
    base: str | None = None  #: what deltas are taken from; never among the models
    #: whose config and tokenizer the result takes; None: the base's, or else the first model's. Never given
    #: with a base
    config_from: str | None = None
    layout: Layout | None = None  #: positions are those in ``models``
    dtype: str | None = None  #: what mergekit computes in; of ours only the output's default
    out_dtype: str | None = None
    tokenizer_source: str | None = None  #: union, base or a model; None: copied
    chat_template: str | None = None
    gate: str | None = None  #: name of a gate preset that the result must pass
    base_digest: Digest | None = None  #: that the base's weights must have, see ``checksums``

    @property
    def output_dtype(self) -> str | None:
        """Of the published weights; None: that of the inputs."""
        return self.out_dtype or self.dtype

    @property
    def companions(self) -> str:
        """The model whose config and tokenizer the result takes."""
        return self.base or self.config_from or self.models[0].name


class Extensions(Fact):
    """The block ``sprachbund:`` of a recipe file, which mergekit ignores."""

    schema: Literal[1] = 1
    weights: Literal["uniform", "tokens"] = "uniform"
    cohorts: Literal["languages", "all"] = "languages"
    guards: Guards = Guards()
    embedding_rows: EmbeddingRows | None = None
    outer: OuterStep = PLAIN_STEP
    seed: int = 0
    shard_bytes: int = 1 << 30
    gate: str | None = None
    base_digest: Digest | None = None
    inputs: dict[str, InputPin] = {}
