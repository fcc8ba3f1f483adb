import pytest

from consortium.merging.comparison import differences
from consortium.merging.recipe import PLAIN_STEP, Guards, MethodName, OuterStep, Recipe, Setting
from consortium.merging.signatures import SIGNATURES


def recipe(method: MethodName, **changes: object) -> Recipe:
    return Recipe(**{"method": method, "weights": "uniform", "outer": PLAIN_STEP, **changes})  # type: ignore[arg-type]


HALF = {"density": (Setting(value=0.5),)}


@pytest.mark.parametrize(
    ("method", "density", "verdict"),
    [
        ("linear", False, "the same up to rounding"),
        ("ties", False, "the same up to rounding"),
        ("ties", True, "the same but for ties"),
        ("dare_ties", False, "the same up to rounding"),
        ("dare_ties", True, "the same rule, other draws"),
        ("coordinate_median", False, "mergekit has no method coordinate_median"),
    ],
)
def test_the_verdict_comes_first(method: MethodName, density: bool, verdict: str) -> None:
    assert differences(recipe(method), [{}, HALF if density else {}])[0].startswith(verdict)
    assert differences(recipe(method, parameters=HALF if density else {}))[0].startswith(verdict)


def test_a_density_of_one_somewhere_else_does_not_hide_one_below() -> None:
    gradient = {"density": (Setting(value=1.0, filter="mlp"), Setting(value=(1.0, 0.25)))}
    assert "ties" in differences(recipe("ties"), [gradient])[0]


@pytest.mark.parametrize("method", sorted(SIGNATURES))
def test_every_method_is_compared_in_plain_sentences(method: MethodName) -> None:
    told = differences(recipe(method))
    assert told and all(sentence and sentence[-1] not in ".;" for sentence in told)


def test_what_mergekit_lacks_is_named() -> None:
    told = differences(
        recipe("linear", weights="tokens", guards=Guards(clip=2.0), outer=OuterStep(optimizer="adam"))
    )
    assert told[0] == "but for what mergekit lacks (below): the same up to rounding"
    assert [word in " ".join(told[1:]) for word in ("tokens", "guards", "outer adam step")] == [True] * 3
