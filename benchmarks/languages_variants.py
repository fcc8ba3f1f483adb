"""Which variants the experiment on languages compares: each is one change of the same campaign.

Every variant spends the same number of tokens in training, from the same base. What it changes is said by the fields
of ``Variant``; the rest is as in ``STANDARD``. Variants are done tier by tier, so that what a cut-off run has is of
use: the first tier is what the issue of the experiment asks for by name.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from consortium.canonical import Fact, replace
from consortium.codecs.names import DENSITY, EncodingName
from consortium.merging.recipe import PLAIN_STEP, Guards, OuterStep, Recipe, Setting
from policies.campaign import Quorum
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
    width: int = 1  #: of the model, in those of the scale
    kind: Literal["base", "rounds", "alone", "pooled", "public"] = "rounds"
    big_batch: bool = False
    round_steps: int = 30  #: H: steps of a site between merges; 0: all of them, one merge
    #: of pooled: a new job every ``round_steps``, with moments from zero and a new warm-up
    starts_anew: bool = False
    recipe: Recipe = AVERAGE
    replay_share: float = 0.5
    encoding: EncodingName = "bf16"
    density: float = DENSITY  #: share of the elements that top-k keeps
    lora_rank: int = 0  #: of adapters; 0: all weights are trained
    unseen_rows: Literal["move", "keep"] = "move"
    proximal: float = 0.0
    optimizer: dict[str, float] = {}  #: what of the sites' AdamW and its schedule is not as in the campaign
    moments: Literal["fresh", "keep"] = "fresh"  #: of the sites' optimizer, in rounds
    #: what becomes of a slow site
    slow: Literal["no", "partial", "refuse", "next_round", "finish_together"] = "no"
    stale_percent: int = Quorum().stale_percent  #: weight of a delta that is merged a round later
    attack: Literal["no", "flipped", "nonsense"] = "no"
    #: admission's presets, and the gate in every round
    defence: Literal["none", "standard", "strict"] = "none"
    tier: int = 1


#: the fields of a variant that have a few values each
SWITCHES = (
    *("text", "width", "kind", "big_batch", "starts_anew", "encoding"),
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
_OUTER = "other outer steps"
_MORE = "other settings"
_UNLIKE = "public text of another kind"
_WIDE = "a model twice as wide"


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


_FEDADAM = load_recipe("fedadam")
#: the same with steps of the size of these deltas' elements: at this learning rate they are ten times the preset's
_FEDADAM_LARGE = replace(_FEDADAM, outer=replace(_FEDADAM.outer, learning_rate=0.01, tau=0.001))


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
    return found


def _outer_steps() -> list[Variant]:
    """Rates and momenta between FedAvg's 1 and 0 and DiLoCo's 0.7 and 0.9, and beyond; FedAdam."""
    some = replace(STANDARD, group=_OUTER, tier=2)
    kept = replace(some, moments="keep")
    pairs = ((0.7, 0.5), (0.9, 0.5), (0.5, 0.9), (1.0, 0.9), (0.7, 0.0), (1.3, 0.0))
    found = [
        *(replace(some, name=f"outer {_pair(one)}, H 30", recipe=_outer(*one)) for one in pairs),
        *(
            replace(kept, name=f"outer {_pair(one)}, H 30, moments kept", recipe=_outer(*one))
            for one in pairs
        ),
        replace(some, name="FedAdam 0.001, H 30", recipe=_FEDADAM),
        replace(some, name="FedAdam 0.01, H 30", recipe=_FEDADAM_LARGE),
        replace(kept, name="FedAdam 0.01, H 30, moments kept", recipe=_FEDADAM_LARGE),
        replace(some, name="norm-preserving, H 30", recipe=load_recipe("norm-preserving"), tier=3),
    ]
    tiny, long = replace(kept, round_steps=10), replace(some, round_steps=100)
    found.append(replace(tiny, name="DiLoCo 0.7/0.9, H 10, moments kept", recipe=DILOCO))
    for one in pairs[:4]:
        found.append(replace(long, name=f"outer {_pair(one)}, H 100", recipe=_outer(*one)))
    for one in (*pairs[:2], (0.7, 0.9)):
        recipe = _outer(*one)
        found.append(
            replace(long, name=f"outer {_pair(one)}, H 100, moments kept", recipe=recipe, moments="keep")
        )
    return found


def _pair(rate_and_momentum: tuple[float, float]) -> str:
    return "/".join(f"{one:g}" for one in rate_and_momentum)


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
        replace(coded, name="topk 1/16", encoding="topk", density=1 / 16, tier=3),
        replace(more, name="FedProx, mu 0.01", proximal=0.01),
        replace(more, name="FedProx, mu 0.1", proximal=0.1),
        replace(more, name="FedProx, mu 0.1, moments kept", proximal=0.1, moments="keep"),
        replace(more, name="LoRA, rank 4", lora_rank=4),
    ]


def _slow() -> list[Variant]:
    slow = replace(STANDARD, group=_SLOW)
    return [
        replace(slow, name="its partial deltas are merged", slow="partial"),
        replace(slow, name="left out", slow="refuse"),
        replace(slow, name="merged a round later at half weight", slow="next_round", tier=2),
        replace(
            slow, name="merged a round later at full weight", slow="next_round", stale_percent=100, tier=2
        ),
        replace(
            slow,
            name="merged a round later at half weight, moments kept",
            slow="next_round",
            moments="keep",
            tier=2,
        ),
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
        replace(other, name="FedAvg H 30, replay 0.5, moments kept", moments="keep"),
        replace(other, name="FedAvg H 30, replay 0.25, moments kept", moments="keep", replay_share=0.25),
        replace(other, name="one merge, replay 0.5", round_steps=0),
        replace(other, name="specialists, each for its languages", kind="alone"),
    ]


def _wide() -> list[Variant]:
    wide = replace(STANDARD, group=_WIDE, width=2, tier=2)
    return [
        replace(wide, name="base, twice as wide", kind="base"),
        replace(wide, name="one merge, twice as wide", round_steps=0),
        replace(wide, name="FedAvg H 30, twice as wide"),
        replace(wide, name="FedAvg H 30, twice as wide, moments kept", moments="keep"),
        replace(wide, name="FedAvg H 10, twice as wide, moments kept", moments="keep", round_steps=10),
        replace(wide, name="FedAvg H 100, twice as wide", round_steps=100),
        replace(wide, name="FedAvg H 100, twice as wide, moments kept", moments="keep", round_steps=100),
        replace(wide, name="DiLoCo 0.7/0.9 H 30, twice as wide, moments kept", moments="keep", recipe=DILOCO),
        replace(wide, name="public only, all steps, twice as wide", kind="public"),
    ]


_ALL = (
    *(*_who(), *_once(), *_rounds(), *_outer_steps(), *_short()),
    *(*_details(), *_slow(), *_poisoned(), *_unlike(), *_wide()),
)
VARIANTS = tuple(sorted(_ALL, key=lambda variant: variant.tier))
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
    yield "lora", variant.lora_rank > 0
    yield "outer", (recipe.outer.optimizer, recipe.outer.momentum > 0)
    yield "method", recipe.method
    yield "guards", recipe.guards != Guards()
    yield from (("optimizer", key) for key in variant.optimizer)
