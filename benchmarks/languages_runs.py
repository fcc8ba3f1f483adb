"""How one variant of the experiment on languages is carried out, and what is kept of it."""

import contextlib
import gc
import math
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from languages_variants import Variant
from languages_world import (
    ATTACKER,
    EVERYTHING,
    LANGUAGES,
    NONSENSE,
    PUBLIC,
    SITES,
    Delta,
    Model,
    World,
    bits_per_byte,
)

from consortium.admission import inspect
from consortium.canonical import Fact, decode, digest_of_fact, encode, replace
from consortium.codecs.reading import open_delta
from consortium.deltas import write_delta
from consortium.errors import Refused
from consortium.files import write_bytes_atomically
from consortium.ids import Digest, Language, SiteName, digest_of
from consortium.jobs import Lora, Train
from consortium.manifests import LanguageScore, Scores
from consortium.store import ref_of
from consortium.tensors import Checkpoint
from coordinator.core.gate import judge
from coordinator.core.late import weights
from coordinator.core.pace import Runner, share_out
from policies.campaign import Admission
from policies.reading import load_admission, load_gate

SLOW = SiteName("west")  # it alone has Irish
FLIP = -3.0  # an attacker that wants to stay within the norms of honest deltas, not far from it


class Result(Fact):
    """What is kept of one run."""

    variant: str
    seed: int
    scale: str  #: digest of the scale
    bits_per_byte: dict[str, float]
    elsewhere: float | None = None  #: of specialists: the mean over all languages of one that is not routed
    tokens: int = 0  #: trained on, by all sites
    upload_bytes: int = 0  #: of one site, the mean
    offered: int = 0  #: contributions
    let_in: int = 0
    bad_offered: int = 0  #: by the poisoned site
    bad_let_in: int = 0
    rounds: int = 0
    refused: int = 0  #: rounds whose merge was refused, because the guards left nobody
    promoted: int = 0  #: rounds that the gate let pass, where there was one
    gate: bool | None = None  #: whether the shipped gate would promote the last version over the base
    regressed: tuple[str, ...] = ()
    norm: float | None = None  #: of the honest deltas relative to their base, the mean
    cpu_seconds: float = 0.0


@dataclass
class _Account:
    tokens: int = 0
    upload_bytes: int = 0
    offered: int = 0
    let_in: int = 0
    bad_offered: int = 0
    bad_let_in: int = 0
    promoted: int = 0
    rounds: int = 0
    refused: int = 0
    norms: list[float] = field(default_factory=list)


def admission_of(defence: str) -> Admission:
    """The preset; of the strict one not the limit on norms, which is for models that were trained before."""
    standard = load_admission("standard")
    if defence == "standard":
        return standard
    return replace(
        load_admission("strict"), norm_max=standard.norm_max, tensor_norm_max=standard.tensor_norm_max
    )


class Run:
    """One variant from one seed.

    place  a folder for what is not kept, removed at the end
    kept   folder of what several variants begin with alike
    """

    def __init__(self, world: World, variant: Variant, seed: int, place: Path, kept: Path) -> None:
        self._world, self._variant, self._seed = world, variant, seed
        self._place, self._kept = place, kept
        self._account = _Account()
        self._number = 0

    def result(self) -> Result:
        began = time.process_time()
        shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir(parents=True)
        base = self._world.base(self._seed)
        elsewhere = None
        if self._variant.kind == "alone":
            found, elsewhere = self._alone(base)
        else:
            model = base
            if self._variant.kind in ("pooled", "public"):
                model = self._in_one_place(base)
            elif self._variant.kind == "rounds":
                model = self._rounds(base)
            found = self._scored(model)
        reference = self._base_scores(base)
        verdict = judge(
            [_named(found, "candidate"), _named(reference, "base")],
            "candidate",
            "base",
            load_gate("standard"),
            LANGUAGES,
        )
        account = self._account
        shutil.rmtree(self._place)
        gc.collect()  # a job's text stays mapped until then; in a campaign it is a process of its own
        return Result(
            variant=self._variant.name,
            seed=self._seed,
            scale=digest_of_fact(self._world.scale),
            bits_per_byte={str(language): bits for language, bits in bits_per_byte(found).items()},
            elsewhere=elsewhere,
            tokens=account.tokens,
            upload_bytes=account.upload_bytes // len(SITES),
            offered=account.offered,
            let_in=account.let_in,
            bad_offered=account.bad_offered,
            bad_let_in=account.bad_let_in,
            rounds=account.rounds,
            refused=account.refused,
            promoted=account.promoted,
            gate=verdict.promote,
            regressed=tuple(str(one.language) for one in verdict.languages if one.status == "regressed"),
            norm=statistics.fmean(account.norms) if account.norms else None,
            cpu_seconds=round(time.process_time() - began, 1),
        )

    # --- what each kind trains ------------------------------------------------------------------------

    def _in_one_place(self, base: Model) -> Model:
        scale, sites = self._world.scale, len(SITES)
        pooled = self._variant.kind == "pooled"
        steps = scale.steps if self._variant.big_batch else scale.steps * sites
        length = scale.round_steps(self._variant.round_steps) if self._variant.starts_anew else steps
        model = base
        for start in range(0, steps, length):
            order = self._order(
                model,
                LANGUAGES if pooled else (),
                f"pool/{start}" if start else "pool",
                steps=length,
                batch_sequences=scale.batch_sequences * (sites if self._variant.big_batch else 1),
                schedule_start=start,
                schedule_steps=steps,
            )
            delta = self._train(EVERYTHING if pooled else PUBLIC, model, order, is_shared=not start)
            model = self._merged(model, [(delta, 1)])
        return model

    def _alone(self, base: Model) -> tuple[dict[Language, LanguageScore], float]:
        """Each language's scores by the site that has it, and how good one of them is for all languages."""
        routed: dict[Language, LanguageScore] = {}
        means = []
        for site, languages in SITES.items():
            delta = self._train(site, base, self._order(base, languages, site))
            scores = self._world.scores(self._folder("scores"), EVERYTHING, {"it": (base, delta)})
            found = scores.subjects["it"]
            means.append(statistics.fmean(bits_per_byte(found).values()))
            routed |= {language: found[language] for language in languages}
        return routed, statistics.fmean(means)

    def _rounds(self, base: Model) -> Model:
        variant, scale = self._variant, self._world.scale
        steps = scale.round_steps(variant.round_steps)
        rounds = scale.steps // steps
        model, late = base, None
        newest: dict[SiteName, Delta] = {}
        head = self._base_scores(base) if variant.defence != "none" else {}
        for number in range(1, rounds + 1):
            self._account.rounds += 1
            come: list[tuple[Delta, int]] = [] if late is None else [(late, 1)]
            late = None
            for site, languages in SITES.items():
                is_slow = site == SLOW and variant.slow != "no"
                if is_slow and (
                    variant.slow == "refuse" or (variant.slow == "next_round" and not number % 2)
                ):
                    continue
                order = self._order(
                    model,
                    languages,
                    f"{number}/{site}",
                    steps=self._steps(steps)[site],
                    schedule_start=(number - 1) * steps,
                    schedule_steps=rounds * steps,
                    **(_of(newest[site]) if site in newest else {}),
                )
                done = max(1, steps // 2) if is_slow and variant.slow == "partial" else None
                delta = self._contribution(site, model, order, newest.get(site), done, number == 1)
                newest[site] = delta
                if is_slow and variant.slow == "next_round":
                    late = delta
                else:
                    come.append((delta, 0))
            come = [one for one in come if self._is_let_in(model, one[0])]
            if not come:
                continue
            counts = [(delta.tokens, behind) for delta, behind in come]
            weighed = weights(counts, variant.stale_percent)
            pairs = [(delta, weight) for (delta, _), weight in zip(come, weighed, strict=True)]
            try:
                candidate = self._merged(model, pairs)
            except Refused:  # the guards leave nobody
                self._account.refused += 1
                continue
            if variant.defence == "none":
                model = candidate
                continue
            scores = self._scored(candidate)
            if self._passes(head, scores):
                model, head = candidate, scores
        return model

    def _contribution(
        self, site: SiteName, model: Model, order: Train, before: Delta | None, done: int | None, first: bool
    ) -> Delta:
        is_bad = site == ATTACKER and self._variant.attack != "no"
        trains_at = NONSENSE if is_bad and self._variant.attack == "nonsense" else site
        delta = self._train(trains_at, model, order, before, done, first)
        if is_bad and self._variant.attack == "flipped":
            delta = self._flipped(model, delta)
        self._account.offered += 1
        self._account.bad_offered += is_bad
        self._account.upload_bytes += delta.ref.size
        return delta

    def _flipped(self, model: Model, delta: Delta) -> Delta:
        path = self._folder("flipped")
        with Checkpoint(model.folder) as base, open_delta(delta.path) as found:
            wrong = {name: base.array(name) + FLIP * found.array(name) for name in base}
            return Delta(
                path=path,
                ref=write_delta(base, wrong, path),
                base=delta.base,
                tokens=delta.tokens,
                steps=delta.steps,
                residual=None,
                moments=delta.moments,
                languages=delta.languages,
            )

    # --- what defends -----------------------------------------------------------------------------------

    def _is_let_in(self, model: Model, delta: Delta) -> bool:
        """Whether admission and, where it decides, the loss of the delta's own languages let it pass."""
        is_bad = self._variant.attack != "no" and delta.languages == SITES[ATTACKER]
        passes = self._variant.defence == "none" or self._is_admitted(
            model, delta, admission_of(self._variant.defence)
        )
        self._account.let_in += passes
        self._account.bad_let_in += passes and is_bad
        return passes

    def _is_admitted(self, model: Model, delta: Delta, limits: Admission) -> bool:
        norms = self._account.norms
        with Checkpoint(model.folder) as base:
            found = inspect(
                base,
                delta.path,
                delta.ref,
                norm_max=limits.norm_max,
                tensor_norm_max=limits.tensor_norm_max,
                bytes_max=limits.bytes_max,
                encoding=self._variant.encoding,
                row_norm_max=limits.row_norm_max,
                usual=statistics.median(norms) if norms else None,
                growth_max=limits.norm_growth_max,
            )
        if not found.ok:
            return False
        if limits.loss_check == "decide":
            # the sites that judge hold no private text of these languages: only the public slice
            pair: dict[str, tuple[Model, Delta | None]] = {"base": (model, None), "with": (model, delta)}
            scores = self._world.scores(self._folder("check"), PUBLIC, pair, delta.languages).subjects
            before, after = (
                math.fsum(nats for one in scores[name].values() for nats in one.nats) for name in pair
            )
            if after > before * (1.0 + limits.loss_growth_max):
                return False
        norms.append(found.norm / found.base_norm)
        return True

    def _passes(
        self, head: Mapping[Language, LanguageScore], candidate: Mapping[Language, LanguageScore]
    ) -> bool:
        both = [_named(candidate, "candidate"), _named(head, "head")]
        passes = judge(both, "candidate", "head", load_gate("standard"), LANGUAGES).promote
        self._account.promoted += passes
        return passes

    # --- pieces -----------------------------------------------------------------------------------------

    def _order(self, model: Model, languages: tuple[Language, ...], stream: str, **changes: object) -> Train:
        variant = self._variant
        order = self._world.order(
            model,
            languages,
            **{
                "seed": int(digest_of(f"{self._seed}/{stream}".encode())[:12], 16),
                "replay_share": variant.replay_share,
                "delta_dtype": variant.encoding,
                "delta_density": variant.density,
                "lora": Lora(rank=variant.lora_rank) if variant.lora_rank else None,
                "unseen_rows": variant.unseen_rows,
                "proximal": variant.proximal,
                **changes,
            },
        )
        keeps = variant.moments == "keep" and variant.kind == "rounds"
        own = {**variant.optimizer, **({"moments": "keep"} if keeps else {})}
        return replace(order, optimizer=replace(order.optimizer, **own))

    def _train(
        self,
        site: SiteName,
        model: Model,
        order: Train,
        before: Delta | None = None,
        done: int | None = None,
        is_shared: bool = True,
    ) -> Delta:
        """A job's delta; where other variants begin with the same job, it is done once."""
        if not is_shared:
            delta = self._world.train(self._folder("job"), site, model, order, before, done)
        else:
            place = self._kept / f"{site}-{digest_of_fact([order, done])[:16]}"
            if not (place / "result").exists():
                made = self._folder("job")
                self._world.train(made, site, model, order, before, done)
                place.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(OSError):  # another process was faster: the same bytes are there
                    made.rename(place)
            delta = self._world.delta_of(place, model, order)
        self._account.tokens += delta.tokens
        return delta

    def _merged(self, model: Model, weighed: list[tuple[Delta, int]]) -> Model:
        place = self._folder("model")
        return self._world.merge(model, weighed, self._variant.recipe, place)

    def _scored(self, model: Model) -> dict[Language, LanguageScore]:
        found = self._world.scores(self._folder("scores"), EVERYTHING, {"it": (model, None)})
        return found.subjects["it"]

    def _base_scores(self, base: Model) -> dict[Language, LanguageScore]:
        path = self._kept / f"scores-{base.digest[:16]}.json"
        if not path.exists():
            self._kept.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(path, encode(self._scored(base)))
        found: dict[Language, LanguageScore] = decode(
            path.read_bytes(), dict[Language, LanguageScore], str(path)
        )
        return found

    def _steps(self, steps: int) -> dict[SiteName, int]:
        if self._variant.slow != "finish_together":
            return dict.fromkeys(SITES, steps)
        runners = {
            site: Runner(0.5 if site == SLOW else 1.0, 0.0, math.ceil(steps / 4), steps * 4) for site in SITES
        }
        return share_out(steps * len(SITES), runners)

    def _folder(self, what: str) -> Path:
        self._number += 1
        return self._place / f"{self._number}-{what}"


def _named(found: Mapping[Language, LanguageScore], name: str) -> Scores:
    return Scores(site=EVERYTHING, subjects={name: dict(found)})


def _of(delta: Delta) -> dict[str, Digest]:
    """What an order names of its site's last delta."""
    return {name: ref_of(path).digest for name, path in delta.left.items()}
