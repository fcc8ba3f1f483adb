"""Does the gate judge as the campaign's file says? Its arithmetic again, from the scores' bytes.

The product's gate is not asked: what candidate and base cost on the same held-out documents is added up here, and the
bootstrap is drawn as ``coordinator/core/gate.py`` documents it.
"""

import math

import numpy as np

from consortium.blobs import Blobs
from consortium.canonical import decode
from consortium.ids import CampaignId, Digest, Language, SiteName, digest_of
from consortium.jobs import Purpose
from consortium.manifests import LanguageScore, Scores
from coordinator.core import events as ev
from coordinator.core.gate import LanguageVerdict
from coordinator.core.state import CampaignState, State
from policies.campaign import Gate

_SCORES_BYTES_MAX = 1 << 28
_EXACT = 1e-5  # the gate reckons in fixed-point nats; ours are floats

_Known = dict[tuple[Digest, Language], dict[SiteName, LanguageScore]]


class Verdicts:
    """store: the coordinator's; None: nothing can be judged again"""

    def __init__(self) -> None:
        self.store: Blobs | None = None
        self._known: dict[CampaignId, _Known] = {}

    def watch(self, event: ev.AnyEvent, state: State) -> None:
        """Raises AssertionError for a verdict that is not what the scores say. ``state``: before the event."""
        if self.store is None:
            return
        match event:
            case ev.ContributionAdmitted() if state.jobs[event.job].purpose is Purpose.GATE:
                ref = event.contribution.artifacts["scores"]
                scores = decode(self.store.read_bytes(ref.digest, _SCORES_BYTES_MAX), Scores, "scores")
                known = self._known.setdefault(state.jobs[event.job].campaign, {})
                for subject, languages in scores.subjects.items():
                    for language, score in languages.items():
                        known.setdefault((Digest(subject), language), {})[scores.site] = score
            case ev.GateJudged():
                self._judged(event, state.campaigns[event.campaign])
            case _:
                pass

    def _judged(self, event: ev.GateJudged, campaign: CampaignState) -> None:
        gate, verdict = campaign.spec.gate, event.verdict
        round_ = campaign.rounds[event.round]
        every = sorted({*campaign.spec.languages, *gate.protected})
        assert [one.language for one in verdict.languages] == every, "a language is not judged"
        blocking = [one.language for one in verdict.languages if one.blocks]
        assert verdict.promote == (not blocking), f"{blocking} forbid it, the verdict is {verdict.promote}"
        if event.round == 0:
            assert verdict.promote, "there is nothing to compare the first model with"
            return
        known = self._known.get(event.campaign, {})
        for one in verdict.languages:
            ours = known.get((event.version, one.language), {})
            theirs = known.get((round_.base, one.language), {})
            both = sorted(
                site for site in ours.keys() & theirs.keys() if ours[site].heldout == theirs[site].heldout
            )
            mine = np.array([nats for site in both for nats in ours[site].nats])
            other = np.array([nats for site in both for nats in theirs[site].nats])
            is_protected = not gate.protected or one.language in gate.protected
            _agrees(one, gate, mine, other, is_protected)


def _agrees(
    said: LanguageVerdict, gate: Gate, mine_D: np.ndarray, other_D: np.ndarray, is_protected: bool
) -> None:
    """Nats of candidate and base, document by document."""
    if len(mine_D) < max(1, gate.documents_min):
        assert said.status == "unscored", f"{said.language} is {said.status} by {len(mine_D)} documents"
        assert said.blocks == (is_protected and gate.unscored == "reject"), f"{said.language} is unscored"
        return
    assert said.change is not None and said.lower is not None and said.upper is not None
    assert abs(said.change - (mine_D.sum() / other_D.sum() - 1.0)) < _EXACT, f"{said.language}: other sums"
    growth_R = _growths(gate, said.language, mine_D, other_D)
    assert _is_quantile(said.lower, growth_R, 1.0 - gate.confidence), f"{said.language}: another lower bound"
    assert _is_quantile(said.upper, growth_R, gate.confidence), f"{said.language}: another upper bound"
    proof = said.upper if gate.rule == "proven_no_regression" else said.lower
    harms = max(said.lower, proof) > gate.tolerance
    assert said.blocks == (harms and is_protected), (
        f"{said.language} grew by {said.lower:+.2%} to {said.upper:+.2%}, and {said.blocks=}"
    )


def _growths(gate: Gate, language: Language, mine_D: np.ndarray, other_D: np.ndarray) -> np.ndarray:
    """Of each resample, sorted."""
    documents = len(mine_D)
    key = int(digest_of(f"gate/{gate.seed}/{language}".encode())[:32], 16)
    raw = np.random.Philox(key=key).random_raw(gate.resamples * documents) >> np.uint64(32)
    picks_RD = (
        (raw * np.uint64(documents) >> np.uint64(32)).astype(np.int64).reshape(gate.resamples, documents)
    )
    return np.sort(mine_D[picks_RD].sum(axis=1) / other_D[picks_RD].sum(axis=1) - 1.0)


def _is_quantile(value: float, sorted_R: np.ndarray, share: float) -> bool:
    """Within one place of it: where exactly a rounded share falls is not ours to say."""
    at = math.ceil(share * len(sorted_R)) - 1
    low, high = sorted_R[max(0, at - 1)], sorted_R[min(len(sorted_R) - 1, at + 1)]
    return bool(low - _EXACT <= value <= high + _EXACT)
