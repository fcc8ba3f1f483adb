"""Which variants the experiment on languages compares: each is one change of the same campaign.

Every variant spends the same number of tokens in training, from the same base. What it changes is said by the fields
of ``Variant``; the rest is as in ``STANDARD``. Variants are done tier by tier, so that what a cut-off run has is of
use: the first tier is what the issue of the experiment asks for by name.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from consortium.canonical import Fact, replace
from consortium.codecs.names import EncodingName
from consortium.merging.recipe import PLAIN_STEP, Guards, OuterStep, Recipe, Setting
from policies.reading import load_recipe

AVERAGE = load_recipe("average")
DILOCO = load_recipe("diloco")


class Variant(Fact):
    """One arm.

    kind        rounds: sites train, then their deltas are merged, again and again; alone: sites train once and are
                never merged; pooled: one model on everybody's text; public: one model on the public text;
                base: what all begin with
    big_batch   of pooled and public: as many steps as one site does, with all sites' sequences in each. Else all
                sites' steps, one after the other
    """

    name: str
    group: str
    text: Literal["alike", "unlike"] = "alike"  #: whether public text is of the private text's kind
    kind: Literal["base", "rounds", "alone", "pooled", "public"] = "rounds"
    big_batch: bool = False
    round_steps: int = 30  #: H: steps of a site between merges; 0: all of them, one merge
    #: of pooled: a new job every ``round_steps``, with moments from zero and a new warm-up
    starts_anew: bool = False
    recipe: Recipe = AVERAGE
    replay_share: float = 0.5
    encoding: EncodingName = "bf16"
    unseen_rows: Literal["move", "keep"] = "move"
    proximal: float = 0.0
    optimizer: dict[str, float] = {}  #: what of the sites' AdamW and its schedule is not as in the campaign
    moments: Literal["fresh", "keep"] = "fresh"  #: of the sites' optimizer, in rounds
    #: what becomes of a slow site
    slow: Literal["no", "partial", "refuse", "next_round", "finish_together"] = "no"
    attack: Literal["no", "flipped", "nonsense"] = "no"
    #: admission's presets, and the gate in every round
    defence: Literal["none", "standard", "strict"] = "none"
    tier: int = 1


#: the fields of a variant that have a few values each
SWITCHES = (
    *("text", "kind", "big_batch", "starts_anew", "encoding"),
    *("unseen_rows", "moments", "slow", "attack", "defence"),
)
STANDARD = Variant(name="FedAvg, H 30", group="rounds", tier=1)

_WHO = "who trains on what"
_ONCE = "one merge at the end"
_SHORT = "why short rounds lose"
_REPLAY = "replay"
_ENCODING = "encoding of deltas"
_SLOW = "a site at half speed"
_POISON = "a poisoned site"
_PRICE = "what a defence costs without an attack"
_MORE = "other settings"
_UNLIKE = "public text of another kind"


def _parameters(**values: bool | float) -> dict[str, tuple[Setting, ...]]:
    return {name: (Setting(value=value),) for name, value in values.items()}


_TASK_ARITHMETIC = Recipe(
    method="task_arithmetic", weights="uniform", parameters=_parameters(**{"lambda": 0.4}), outer=PLAIN_STEP
)
_DARE = Recipe(
    method="dare_linear", parameters=_parameters(density=0.5, normalize=True, rescale=True), outer=PLAIN_STEP
)
_GUARDED = replace(AVERAGE, guards=Guards(clip=1.5, cosine_min=0.0), cohorts="all")
_MEDIAN = replace(load_recipe("geometric-median"), cohorts="all")


def _outer(rate: float, momentum: float) -> Recipe:
    """DiLoCo's, with another rate and momentum."""
    return replace(DILOCO, outer=OuterStep(learning_rate=rate, momentum=momentum, nesterov=momentum > 0))


_DEMO = _outer(0.9, 0.5)


def _who() -> list[Variant]:
    return [
        Variant(name="base", group=_WHO, kind="base"),
        Variant(name="joint, all steps in one place", group=_WHO, kind="pooled"),
        Variant(name="joint, large batch", group=_WHO, kind="pooled", big_batch=True),
        Variant(
            name="joint, large batch, a new job every 10 steps",
            group=_WHO,
            kind="pooled",
            big_batch=True,
            starts_anew=True,
            round_steps=10,
            tier=2,
        ),
        Variant(
            name="joint, large batch, a new job every 30 steps",
            group=_WHO,
            kind="pooled",
            big_batch=True,
            starts_anew=True,
            tier=2,
        ),
        Variant(name="public text only, all steps", group=_WHO, kind="public"),
        Variant(name="public text only, large batch", group=_WHO, kind="public", big_batch=True),
        Variant(name="specialists, replay 0.5", group=_WHO, kind="alone"),
        Variant(name="specialists, replay 0", group=_WHO, kind="alone", replay_share=0.0, tier=2),
    ]


def _once() -> list[Variant]:
    one = Variant(name="average", group=_ONCE, round_steps=0)
    return [
        one,
        replace(one, name="average, replay 0.25", replay_share=0.25),
        replace(one, name="average, replay 0", replay_share=0.0),
        replace(one, name="task arithmetic, lambda 0.4", recipe=_TASK_ARITHMETIC),
        replace(one, name="TIES, density 0.2", recipe=load_recipe("ties")),
        replace(one, name="DARE, density 0.5", recipe=_DARE),
        replace(one, name="DARE-TIES, density 0.7", recipe=load_recipe("dare-ties")),
        replace(one, name="TIES, replay 0", recipe=load_recipe("ties"), replay_share=0.0, tier=2),
        replace(one, name="task arithmetic, replay 0", recipe=_TASK_ARITHMETIC, replay_share=0.0, tier=2),
    ]


def _rounds() -> list[Variant]:
    found = []
    for steps in (10, 30, 100):
        found.append(replace(STANDARD, name=f"FedAvg, H {steps}", round_steps=steps))
        found.append(replace(STANDARD, name=f"DiLoCo 0.7/0.9, H {steps}", round_steps=steps, recipe=DILOCO))
    outer = replace(STANDARD, tier=2)
    return [
        *found,
        replace(outer, name="outer 0.9/0.5, H 30", recipe=_DEMO),
        replace(outer, name="outer 0.9/0.5, H 100", recipe=_DEMO, round_steps=100),
        replace(outer, name="outer 0.7/0.5, H 30", recipe=_outer(0.7, 0.5)),
        replace(outer, name="outer 0.5/0.5, H 30", recipe=_outer(0.5, 0.5)),
        replace(outer, name="outer 0.7/0, H 30", recipe=_outer(0.7, 0.0)),
        replace(outer, name="outer 1.3/0, H 30", recipe=_outer(1.3, 0.0)),
        replace(outer, name="FedAdam, H 30", recipe=load_recipe("fedadam"), tier=3),
        replace(outer, name="norm-preserving, H 30", recipe=load_recipe("norm-preserving"), tier=3),
    ]


def _short() -> list[Variant]:
    """The outer step is plain averaging's; one thing is changed inside the rounds."""
    tiny = replace(STANDARD, group=_SHORT, round_steps=10, tier=2)
    some = replace(STANDARD, group=_SHORT, tier=2)
    long = replace(some, round_steps=100)
    slow = {"learning_rate": 1e-3}
    return [
        replace(tiny, name="H 10, moments kept", moments="keep"),
        replace(tiny, name="H 10, a third of the learning rate", optimizer=slow),
        replace(tiny, name="H 10, a third of the rate, moments kept", optimizer=slow, moments="keep"),
        replace(tiny, name="H 10, unseen rows kept", unseen_rows="keep"),
        replace(tiny, name="H 10, unseen rows and moments kept", unseen_rows="keep", moments="keep"),
        replace(some, name="H 30, unseen rows kept", unseen_rows="keep"),
        replace(some, name="H 30, unseen rows and moments kept", unseen_rows="keep", moments="keep"),
        replace(long, name="H 100, unseen rows kept", unseen_rows="keep"),
        replace(long, name="H 100, moments kept", moments="keep"),
        replace(long, name="one merge, unseen rows kept", unseen_rows="keep", round_steps=0),
        replace(some, name="H 30, DiLoCo 0.7/0.9, unseen rows kept", recipe=DILOCO, unseen_rows="keep"),
        replace(tiny, name="H 10, no warm-up", optimizer={"warmup_steps": 0}),
        replace(tiny, name="H 10, warm-up of 10 steps", optimizer={"warmup_steps": 10}),
        replace(tiny, name="H 10, beta2 0.8", optimizer={"beta2": 0.8}),
        replace(some, name="H 30, moments kept", moments="keep"),
        replace(some, name="H 30, a third of the learning rate", optimizer=slow),
        replace(some, name="H 30, DiLoCo 0.7/0.9, moments kept", recipe=DILOCO, moments="keep"),
        replace(some, name="H 30, DiLoCo 0.7/0.9, a third of the rate", recipe=DILOCO, optimizer=slow),
        replace(long, name="H 100, a third of the learning rate", optimizer=slow),
        replace(
            some,
            name="joint, large batch, a third of the rate",
            kind="pooled",
            big_batch=True,
            optimizer=slow,
        ),
    ]


def _details() -> list[Variant]:
    replay = replace(STANDARD, group=_REPLAY)
    coded = replace(STANDARD, group=_ENCODING)
    more = replace(STANDARD, group=_MORE, tier=3)
    return [
        replace(replay, name="replay 0.25", replay_share=0.25),
        replace(replay, name="replay 0", replay_share=0.0),
        replace(coded, name="int8", encoding="int8"),
        replace(coded, name="int4", encoding="int4"),
        replace(coded, name="topk 1/64", encoding="topk", tier=3),
        replace(more, name="FedProx, mu 0.01", proximal=0.01),
    ]


def _slow() -> list[Variant]:
    slow = replace(STANDARD, group=_SLOW)
    return [
        replace(slow, name="its partial deltas are merged", slow="partial"),
        replace(slow, name="left out", slow="refuse"),
        replace(slow, name="merged a round later at half weight", slow="next_round", tier=2),
        replace(slow, name="fewer steps there, more elsewhere", slow="finish_together", tier=2),
    ]


def _poisoned() -> list[Variant]:
    flipped = replace(STANDARD, group=_POISON, attack="flipped")
    nonsense = replace(STANDARD, group=_POISON, attack="nonsense")
    honest = replace(STANDARD, group=_PRICE, tier=2)
    return [
        replace(flipped, name="flipped x3, no defence"),
        replace(flipped, name="flipped x3, shipped defaults", defence="standard"),
        replace(flipped, name="flipped x3, strict admission", defence="strict"),
        replace(flipped, name="flipped x3, clip and cosine", recipe=_GUARDED),
        replace(flipped, name="flipped x3, geometric median", recipe=_MEDIAN, tier=2),
        replace(nonsense, name="nonsense text, no defence"),
        replace(nonsense, name="nonsense text, shipped defaults", defence="standard", tier=2),
        replace(nonsense, name="nonsense text, strict admission", defence="strict"),
        replace(nonsense, name="nonsense text, clip and cosine", recipe=_GUARDED, tier=2),
        replace(nonsense, name="nonsense text, geometric median", recipe=_MEDIAN, tier=2),
        replace(honest, name="clip and cosine", recipe=_GUARDED),
        replace(honest, name="geometric median", recipe=_MEDIAN),
        replace(honest, name="strict admission", defence="strict"),
    ]


def _unlike() -> list[Variant]:
    other = replace(STANDARD, group=_UNLIKE, text="unlike", tier=2)
    return [
        replace(other, name="base, public text of another kind", kind="base"),
        replace(other, name="joint, all steps", kind="pooled"),
        replace(other, name="public only, all steps", kind="public"),
        replace(other, name="public only, one batch of all", kind="public", big_batch=True),
        replace(other, name="FedAvg H 30, replay 0.5"),
        replace(other, name="FedAvg H 30, replay 0.25", replay_share=0.25),
        replace(other, name="FedAvg H 30, replay 0", replay_share=0.0),
    ]


VARIANTS = tuple(
    sorted(
        [*_who(), *_once(), *_rounds(), *_short(), *_details(), *_slow(), *_poisoned(), *_unlike()],
        key=lambda variant: variant.tier,
    )
)
assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


def every_setting_once(variants: Sequence[Variant]) -> list[Variant]:
    """Of ``variants`` as few as show that each kind, method, encoding, attack and so on works; ``STANDARD`` is one."""
    seen: set[tuple[str, object]] = set()
    found = []
    for variant in [STANDARD, *(one for one in variants if one != STANDARD)]:
        settings = set(_settings(variant))
        if settings - seen:
            seen |= settings
            found.append(variant)
    return found


def _settings(variant: Variant) -> Iterator[tuple[str, object]]:
    """What a variant sets; of numbers, whether it sets them."""
    recipe = variant.recipe
    for field in SWITCHES:
        yield field, getattr(variant, field)
    yield "one merge", not variant.round_steps
    yield "proximal", variant.proximal > 0
    yield "outer", (recipe.outer.optimizer, recipe.outer.momentum > 0)
    yield "method", recipe.method
    yield "guards", recipe.guards != Guards()
    yield from (("optimizer", key) for key in variant.optimizer)
