"""Whether a candidate may be promoted: no language may pay for the others.

Every language is tested on its own. With n_d and m_d the nats of candidate and reference on held-out
document d, the growth of its bits per byte is ``sum n_d / sum m_d - 1``: same documents, so the bytes cancel.
A paired bootstrap over documents (Koehn 2004, "Statistical significance tests for machine translation
evaluation") puts one-sided bounds below and above it. ``Gate.rule`` says who has the burden of proof:

``no_proven_regression``   Reject if the lower bound is above the tolerance. Noise blocks few harmless
                           candidates, but harm may go unproven where held-out text is scarce:
                           the small language has the weaker protection.
``proven_no_regression``   Reject unless the upper bound is within the tolerance (non-inferiority). Protects
                           the small language; costs more held-out text or a wider tolerance.

The result is the same on every machine: nats are summed as fixed-point integers, and the resampling reads the
raw bits of a Philox generator keyed by (seed, language), so no language's bounds depend on another's.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consortium.canonical import Fact, digest_of_fact
from consortium.ids import Language, SiteName, digest_of
from consortium.manifests import LanguageScore, Scores
from consortium.metrics import bits_per_byte
from policies.campaign import Gate

UNIT = 2.0**-16  # nats of one fixed-point step; a document of 60 nats is rounded by less than a millionth
NATS_MAX = 2.0**40  # of one site's documents: sums over a hundred sites then fit an int64
CHUNK = 1 << 20  # resampled documents in memory at once: 8 MiB an array

Status = Literal["better", "same", "worse", "regressed", "unproven", "unscored"]


class LanguageVerdict(Fact):
    """One language's answer. Numbers are None where nothing could be compared."""

    language: Language
    status: Status
    blocks: bool  #: whether this language alone forbids promotion
    candidate_bpb: float | None = None
    reference_bpb: float | None = None
    change: float | None = None  #: relative growth of bits per byte; above 0 is worse
    lower: float | None = None  #: one-sided bound of the change, at the gate's confidence
    upper: float | None = None  #: the same from above
    documents: int = 0
    reason: str


class GateVerdict(Fact):
    """Whether the candidate is promoted, and why; ``languages`` are sorted."""

    promote: bool
    reason: str
    languages: tuple[LanguageVerdict, ...]


class _Pairs(NamedTuple):
    """All documents of one language that both models were scored on, in order of (site, document digest)."""

    candidate_D: NDArray[np.int64]  # nats / UNIT
    reference_D: NDArray[np.int64]
    num_bytes: int
    left_out: tuple[str, ...]  # why some site's scores do not count


def judge(
    scores: Iterable[Scores],
    candidate: str,
    reference: str | None,
    gate: Gate,
    languages: Iterable[Language],
    trained_by: Mapping[Language, Collection[SiteName]] | None = None,
) -> GateVerdict:
    """Test ``candidate`` against ``reference``, language by language.

    scores      of any number of sites, in any order; a site's scores may come in parts, subjects go by name
    reference   None: the first version, promoted because there is nothing to compare it with
    languages   of the campaign; those that the gate protects are added
    trained_by  which sites' contributions trained a language this round: only for the advice in a rejection
    """
    scores = sorted(scores, key=lambda part: (part.site, digest_of_fact(part)))
    every = sorted(set(languages) | set(gate.protected))
    if reference is None:
        found = [(language, _gather(scores, candidate, candidate, language)) for language in every]
        first = [_first(language, pairs) for language, pairs in found]
        return GateVerdict(
            promote=True, reason="the first version: nothing to compare it with", languages=tuple(first)
        )
    verdicts = tuple(_judge_one(scores, candidate, reference, gate, language) for language in every)
    blocking = [verdict for verdict in verdicts if verdict.blocks]
    if blocking:
        reason = f"{'; '.join(v.reason for v in blocking)}. {_advice(blocking, trained_by or {})}"
    else:
        reason = f"no protected language regressed: {_tally(verdicts)}"
    return GateVerdict(promote=not blocking, reason=reason, languages=verdicts)


def _first(language: Language, pairs: _Pairs) -> LanguageVerdict:
    if not pairs.num_bytes:
        return LanguageVerdict(
            language=language,
            status="unscored",
            blocks=False,
            reason=f"{language} was not scored by any site",
        )
    score = bits_per_byte(float(pairs.candidate_D.sum()) * UNIT, pairs.num_bytes)
    return LanguageVerdict(
        language=language,
        status="same",
        blocks=False,
        candidate_bpb=score,
        documents=len(pairs.candidate_D),
        reason=f"{language} {score:.3f} bits per byte, nothing to compare with",
    )


def _judge_one(
    scores: Iterable[Scores], candidate: str, reference: str, gate: Gate, language: Language
) -> LanguageVerdict:
    protected = not gate.protected or language in gate.protected
    pairs = _gather(scores, candidate, reference, language)
    documents = len(pairs.candidate_D)
    reason = "; ".join(pairs.left_out) or "no site scored it under both models"
    if documents and documents < gate.documents_min:
        reason = f"{documents} held-out document(s), the gate wants {gate.documents_min}"
    elif documents:
        return _compare(pairs, gate, language, protected)
    return LanguageVerdict(
        language=language,
        status="unscored",
        blocks=protected and gate.unscored == "reject",
        documents=documents,
        reason=f"{language} is unscored: {reason}",
    )


def _compare(pairs: _Pairs, gate: Gate, language: Language, protected: bool) -> LanguageVerdict:
    change = float(pairs.candidate_D.sum() / pairs.reference_D.sum()) - 1.0
    lower, upper = _bounds(pairs, gate, language)
    status: Status = "better" if upper < 0 else "worse" if lower > 0 else "same"
    if lower > gate.tolerance:
        status = "regressed"
    elif gate.rule == "proven_no_regression" and upper > gate.tolerance:
        status = "unproven"
    candidate_bpb = bits_per_byte(float(pairs.candidate_D.sum()) * UNIT, pairs.num_bytes)
    reference_bpb = bits_per_byte(float(pairs.reference_D.sum()) * UNIT, pairs.num_bytes)
    tolerance = f"the tolerance of {100 * gate.tolerance:g}%"
    wording = {
        "better": "is better",
        "same": "has no proven change",
        "worse": f"is worse, not proven beyond {tolerance}",
        "regressed": f"regressed beyond {tolerance}",
        "unproven": f"is not proven to stay within {tolerance}",
    }
    left_out = "".join(f"; {why}" for why in pairs.left_out)
    return LanguageVerdict(
        language=language,
        status=status,
        blocks=protected and status in ("regressed", "unproven"),
        candidate_bpb=candidate_bpb,
        reference_bpb=reference_bpb,
        change=change,
        lower=lower,
        upper=upper,
        documents=len(pairs.candidate_D),
        reason=f"{language} {wording[status]}: {reference_bpb:.3f} to {candidate_bpb:.3f} bits per byte "
        f"({change:+.1%}, {100 * gate.confidence:g}% bounds {lower:+.1%} and {upper:+.1%}, "
        f"{len(pairs.candidate_D)} documents{left_out})",
    )


def _gather(scores: Iterable[Scores], candidate: str, reference: str, language: Language) -> _Pairs:
    """The documents to compare: same site, same held-out set. A set that two sites hold counts once."""
    ours: dict[SiteName, LanguageScore] = {}
    theirs: dict[SiteName, LanguageScore] = {}
    for part in scores:
        for subject, side in ((candidate, ours), (reference, theirs)):
            score = part.subjects.get(subject, {}).get(language)
            if score is not None:
                side[part.site] = score
    kept: dict[str, tuple[LanguageScore, LanguageScore]] = {}
    left_out = []
    for site in sorted(ours.keys() | theirs.keys()):
        if site not in ours or site not in theirs:
            left_out.append(f"{site} did not score the {'reference' if site in ours else 'candidate'}")
        elif ours[site].heldout != theirs[site].heldout or ours[site].bytes != theirs[site].bytes:
            left_out.append(f"{site} scored the two models on different held-out documents")
        elif fault := _fault(ours[site]) or _fault(theirs[site]):
            left_out.append(f"{site} sent {fault}")
        else:
            kept.setdefault(ours[site].heldout, (ours[site], theirs[site]))
    pairs = list(kept.values())
    return _Pairs(
        candidate_D=_fixed([nats for mine, _ in pairs for nats in mine.nats]),
        reference_D=_fixed([nats for _, other in pairs for nats in other.nats]),
        num_bytes=sum(sum(mine.bytes) for mine, _ in pairs),
        left_out=tuple(left_out),
    )


def _fault(score: LanguageScore) -> str | None:
    """Why these numbers cannot be scores of documents; None: they can."""
    if len(score.nats) != len(score.bytes):
        return f"{len(score.nats)} losses for {len(score.bytes)} documents"
    if score.nats and (min(score.nats) < UNIT or min(score.bytes) < 1):
        return "a document without loss or without bytes"
    if score.nats and max(score.nats) * len(score.nats) > NATS_MAX:
        return f"a loss of {max(score.nats):g} nats for one document"
    return None


def _fixed(nats: list[float]) -> NDArray[np.int64]:
    return np.rint(np.asarray(nats, dtype=np.float64) / UNIT).astype(np.int64)


def _bounds(pairs: _Pairs, gate: Gate, language: Language) -> tuple[float, float]:
    """One-sided percentile bounds of the growth, below and above; each leaves out 1 - confidence."""
    documents = len(pairs.candidate_D)
    key = int(digest_of(f"gate/{gate.seed}/{language}".encode())[:32], 16)
    generator = np.random.Philox(key=key)
    growth_R = np.empty(gate.resamples)
    rows = max(1, CHUNK // documents)
    for start in range(0, gate.resamples, rows):
        count = min(rows, gate.resamples - start)
        # raw bits, because numpy may change its integer sampling between releases (NEP 19) but not these
        drawn = generator.random_raw(count * documents) >> np.uint64(32)
        picks = ((drawn * np.uint64(documents)) >> np.uint64(32)).astype(np.int64).reshape(count, documents)
        sums = pairs.candidate_D[picks].sum(axis=1) / pairs.reference_D[picks].sum(axis=1)
        growth_R[start : start + count] = sums - 1.0
    lower, upper = np.quantile(growth_R, [1.0 - gate.confidence, gate.confidence], method="inverted_cdf")
    return float(lower), float(upper)


def _tally(verdicts: Iterable[LanguageVerdict]) -> str:
    statuses = [verdict.status for verdict in verdicts]
    order: tuple[Status, ...] = ("better", "same", "worse", "regressed", "unproven", "unscored")
    return ", ".join(f"{statuses.count(status)} {status}" for status in order if status in statuses)


def _advice(blocking: list[LanguageVerdict], trained_by: Mapping[Language, Collection[SiteName]]) -> str:
    """What an admin can change, by what went wrong."""
    hurt = [verdict.language for verdict in blocking if verdict.status in ("regressed", "unproven")]
    missing = [verdict.language for verdict in blocking if verdict.status == "unscored"]
    advice = []
    if hurt:
        sites = sorted({site for language in hurt for site in trained_by.get(language, ())})
        whose = f"of {' and '.join(sites)}, which trained it" if sites else "of a site that trains it"
        advice.append(
            f"Try a larger replay_share, another weight {whose}, a smaller outer learning rate, "
            "or more and shorter rounds."
        )
    if missing:
        advice.append(
            f"For {', '.join(missing)}: let a site that holds it keep more documents out, enrol one that "
            "does, or let the gate allow unscored languages."
        )
    return " ".join(advice)
