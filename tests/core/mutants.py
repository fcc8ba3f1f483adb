"""Do the tests of the core notice when the core is broken? ``python tests/core/mutants.py`` tries.

Each mutant is one small, plausible mistake in a copy of the tree; ``tests/core`` must fail on it. Prints the
survivors and exits with their number. ``python tests/core/mutants.py fence resume`` tries those whose name has
one of the words.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("consortium", "coordinator", "policies", "protos", "simulation", "site_agent", "pyproject.toml")


class Mutant(NamedTuple):
    name: str
    file: str
    right: str
    wrong: str


MUTANTS = (
    # decide
    Mutant(
        "token is never used up",
        "core/state.py",
        "state.tokens.pop(event.token_hash)",
        "state.tokens[event.token_hash]",
    ),
    Mutant("token of another site", "core/decide.py", "if invitation.site != command.site:", "if False:"),
    Mutant("token never expires", "core/decide.py", "if moment.now > invitation.valid_until:", "if False:"),
    Mutant("suspended site may sync", "core/decide.py", 'if site.status == "suspended":', "if False:"),
    Mutant("fence: a stale attempt counts", "core/decide.py", "or job.attempt != report.attempt or", "or"),
    Mutant("fence: another site's attempt counts", "core/decide.py", "or job.site != site.name or", "or"),
    Mutant(
        "doubled lines count twice",
        "core/decide.py",
        "sorted(reports.items())",
        "((r.attempt, r) for r in command.reports)",
    ),
    Mutant(
        "resume: any ended attempt",
        "core/decide.py",
        "job.outcome is Outcome.EXPIRED and site.name",
        "site.name",
    ),
    Mutant(
        "resume: never",
        "core/decide.py",
        "job.state is JobState.PLANNED and job.outcome is Outcome.EXPIRED",
        "False",
    ),
    Mutant(
        "a site may say expired",
        "core/decide.py",
        "if report.outcome is Outcome.EXPIRED else",
        "if False else",
    ),
    Mutant("inspection of a stale attempt", "core/decide.py", " or job.attempt != command.attempt:", ":"),
    Mutant(
        "merge reported twice",
        "core/decide.py",
        "if round_.state is not RoundState.MERGING or not coordinator_merges(state, round_):",
        "if False:",
    ),
    Mutant(
        "same version made again",
        "core/decide.py",
        "if known := campaign.versions.get(manifest.digest):",
        "known = next(iter(campaign.versions.values()))\n    if False:",
    ),
    Mutant(
        "verdict while judges work",
        "core/decide.py",
        "if any(not state.jobs[job].is_final for job in round_.gate_jobs):",
        "if False:",
    ),
    Mutant(
        "verdict undoes an admin",
        "core/decide.py",
        'if campaign.versions[version].status != "candidate":',
        "if False:",
    ),
    Mutant(
        "verdict ignores a moved head",
        "core/decide.py",
        "if verdict.promote and campaign.head == round_.base:",
        "if verdict.promote:",
    ),
    Mutant(
        "rejected is promoted",
        "core/decide.py",
        "if verdict.promote and campaign.head == round_.base:",
        "if campaign.head == round_.base:",
    ),
    Mutant(
        "roll back to a rejected version", "core/decide.py", 'if version.status != "promoted":', "if False:"
    ),
    Mutant(
        "stop leaves jobs running",
        "core/decide.py",
        "if job.campaign == command.campaign\n    ]",
        "if False\n    ]",
    ),
    Mutant(
        "stop cancels other campaigns' jobs",
        "core/decide.py",
        "if job.campaign == command.campaign\n    ]",
        "]",
    ),
    Mutant(
        "restart shortens leases",
        "core/decide.py",
        "max(last, job.leased_at, moment.started_at)",
        "max(last, job.leased_at)",
    ),
    Mutant(
        "syncs do not renew",
        "core/decide.py",
        "moment.renewed.get(job.attempt, job.leased_at)",
        "job.leased_at",
    ),
    # plan
    Mutant(
        "leases never lapse",
        "core/plan.py",
        "elif moment.now > lease_until(job, lease_seconds, moment):",
        "elif False:",
    ),
    Mutant(
        "leases of the suspended stay",
        "core/plan.py",
        'if site.status == "suspended":\n            reason',
        "if False:\n            reason",
    ),
    Mutant("one failure more", "core/plan.py", "if job.failures >= limit:", "if job.failures > limit:"),
    Mutant(
        "all refused and still waiting",
        "core/plan.py",
        "elif set(job.sites) <= {*job.refused_by, *job.disproved}:",
        "elif False:",
    ),
    Mutant(
        "a failed seed is shrugged off",
        "core/plan.py",
        "if last.number == 0 and last.candidate is None:",
        "if False:",
    ),
    Mutant(
        "next round before this one closed",
        "core/plan.py",
        "if last.state is not RoundState.CLOSED:",
        "if last.state is RoundState.TRAINING:",
    ),
    Mutant(
        "too few sites open a round",
        "core/rounds.py",
        "if len(participants(state, campaign)) < campaign.spec.sites_expected:",
        "if False:",
    ),
    Mutant("draining sites take part", "core/able.py", "        and not site.draining\n", ""),
    Mutant(
        "uninvited sites take part",
        "core/able.py",
        "and (not spec.sites or name in spec.sites)\n        and own",
        "and own",
    ),
    Mutant(
        "closed round leaves jobs open",
        "core/plan.py",
        "        elif not job.is_final:\n            yield ev.JobCancelled",
        "        elif False:\n            yield ev.JobCancelled",
    ),
    Mutant(
        "partial deltas are merged",
        "core/plan.py",
        "tuple(j for j in done if _enough(state.jobs[j], campaign))",
        "done",
    ),
    Mutant(
        "partial deltas make a quorum",
        "core/plan.py",
        "done = sum(_enough(j, campaign) for j in jobs)",
        "done = sum(j.state is JobState.DONE for j in jobs)",
    ),
    Mutant("no minimum", "core/plan.py", "if len(mergeable) < needed:", "if not mergeable:"),
    Mutant("quorum rounds down", "core/plan.py", "math.ceil(quorum.share", "math.floor(quorum.share"),
    Mutant(
        "quorum below the minimum", "core/plan.py", "needed = max(quorum.minimum, wanted)", "needed = wanted"
    ),
    Mutant("no deadline of a round", "core/plan.py", "if None not in late:", "if False:"),
    Mutant(
        "no deadline of the gate",
        "core/plan.py",
        "if not job.is_final and (why := given_up(",
        "if False and (why := given_up(",
    ),
    Mutant(
        "base is scored again and again",
        "core/plan.py",
        "if not _scored(campaign, round_.base, site, languages) and",
        "if",
    ),
    Mutant(
        "no deadline of the comparison",
        "core/comparison.py",
        "if (why := given_up(",
        "if False and (why := given_up(",
    ),
    Mutant(
        "comparison is late from the start",
        "core/comparison.py",
        "max((j.planned_at for j in comparisons), default=_last_word(campaign))",
        "_last_word(campaign)",
    ),
    Mutant(
        "judged before everybody scored",
        "core/owed.py",
        "return all(state.jobs[j].is_final for j in round_.gate_jobs)",
        "return any(state.jobs[j].is_final for j in round_.gate_jobs)",
    ),
    Mutant("data order depends on nothing", "core/orders.py", 'f"{seed}/{number}/{stream}"', 'f"{seed}"'),
    Mutant(
        "ended before it was compared",
        "core/plan.py",
        "if following is None and is_compared(state, campaign):",
        "if following is None:",
    ),
    Mutant(
        "tokenizer is waited for without end",
        "core/plan.py",
        "        elif (late := overdue(campaign, job",
        "        elif False and (late := overdue(campaign, job",
    ),
    # place
    Mutant(
        "rivals first",
        "core/place.py",
        "return URGENCY.index(job.purpose), -steps",
        "return -URGENCY.index(job.purpose), -steps",
    ),
    Mutant(
        "slots are no limit",
        "core/place.py",
        "free = site.slots - len(state.live(name))\n    if free",
        "free = site.slots + 1 - len(state.live(name))\n    if free",
    ),
    Mutant(
        "leases within one sync are not counted",
        "core/place.py",
        "    free = site.slots - len(state.live(name))\n    if free",
        "    free = site.slots\n    if free",
    ),
    Mutant("draining sites get leases", "core/place.py", "if site.draining:", "if False:"),
    Mutant(
        "admin's draining is ignored",
        "core/place.py",
        'if site.status != "enrolled":',
        'if site.status == "suspended":',
    ),
    Mutant("who refused is asked again", "core/place.py", "if site.name in job.refused_by:", "if False:"),
    Mutant(
        "rivals take the last slot", "core/place.py", "free < 2 and has_rounds_ahead(campaign)", "free < 1"
    ),
    Mutant(
        "attempts are numbered anew",
        "core/place.py",
        "attempt_of(job.id, job.attempts + 1)",
        "attempt_of(job.id, 1)",
    ),
    # merges at sites
    Mutant(
        "merge: the coordinator does a site's",
        "core/decide.py",
        "RoundState.MERGING or not coordinator_merges(state, round_):",
        "RoundState.MERGING:",
    ),
    Mutant(
        "merge: owed twice",
        "core/owed.py",
        "RoundState.MERGING and coordinator_merges(",
        "RoundState.MERGING or (",
    ),
    Mutant("merge: nobody has to offer", "core/able.py", "if not site.merges:", "if False:"),
    Mutant("merge: draining sites", "core/able.py", "if site.draining:", "if False:"),
    Mutant("merge: suspended sites", "core/able.py", 'if site.status != "enrolled":', "if False:"),
    Mutant(
        "merge: anybody may",
        "core/able.py",
        "if not named or name in named)",
        ")",
    ),
    Mutant(
        "merge: offers are for ever",
        "core/place.py",
        "if job.purpose is Purpose.MERGE and not site.merges:",
        "if False:",
    ),
    Mutant("merge: liars are asked again", "core/place.py", "if site.name in job.disproved:", "if False:"),
    Mutant(
        "merge: liars are waited for",
        "core/plan.py",
        "{*job.refused_by, *job.disproved}",
        "{*job.refused_by}",
    ),
    Mutant(
        "merge: whoever sends garbage is a liar",
        "core/state.py",
        "if job.purpose is Purpose.MERGE and job.site is not None:",
        "if job.site is not None:",
    ),
    Mutant(
        "merge: any means site",
        "core/able.py",
        "return round_.merge_job is not None and state.jobs[round_.merge_job].is_final",
        "return False",
    ),
    Mutant(
        "merge: full sites are free", "core/merging.py", "site.slots > len(state.live(site.name))", "True"
    ),
    Mutant("merge: no deadline", "core/merging.py", "if (late := overdue(", "if False and (late := overdue("),
    Mutant(
        "merge: inspections are cut off",
        "core/merging.py",
        "if job.state is JobState.DELIVERED:",
        "if False:",
    ),
    Mutant(
        "merge: any waits for ever",
        "core/merging.py",
        "if moment.now > asked_since + spec.lease_seconds:",
        "if False:",
    ),
    Mutant(
        "merge: a restart is no excuse",
        "core/merging.py",
        "max(job.free_since, moment.started_at)",
        "job.free_since",
    ),
    Mutant(
        "merge: a lost try leaves no time",
        "core/state.py",
        "job.outcome, job.free_since = event.outcome, at",
        "job.outcome = event.outcome",
    ),
    Mutant(
        "merge: momentum is forgotten",
        "core/orders.py",
        "outer_state=campaign.versions[round_.base].manifest.outer_state,",
        "outer_state={},",
    ),
    Mutant("merge: nobody made it", "core/state.py", "        event.merged_by,\n", "        None,\n"),
    Mutant(
        "merge: last in the queue",
        "core/place.py",
        "URGENCY.index(job.purpose), -steps",
        "9 if job.purpose is Purpose.MERGE else URGENCY.index(job.purpose), -steps",
    ),
    # accounts, placement, pace, late deltas
    Mutant(
        "account: leases outside windows",
        "core/place.py",
        "if (closed := _outside(site, takes, moment)) is not None:",
        "if False and (closed := _outside(site, takes, moment)) is not None:",
    ),
    Mutant("account: a long job in a short window", "core/place.py", "if needs <= length:", "if False:"),
    Mutant(
        "account: leases beyond what is left",
        "core/charging.py",
        "elif takes.gpu_seconds > remaining:",
        "elif False:",
    ),
    Mutant(
        "account: an ended allocation pays",
        "core/accounting.py",
        "if a.until is None or now < a.until]",
        "if True]",
    ),
    Mutant(
        "account: a job outlives its allocation",
        "core/charging.py",
        "if allocation.until is None or ends <= allocation.until:",
        "if True:",
    ),
    Mutant(
        "account: nothing is held back",
        "core/accounting.py",
        "max(0.0, one.expected_gpu_seconds - one.gpu_seconds)",
        "0.0",
    ),
    Mutant(
        "account: usage is charged again and again",
        "core/state.py",
        "more = event.gpu_seconds - known.gpu_seconds",
        "more = event.gpu_seconds",
    ),
    Mutant(
        "account: another site's attempt is charged",
        "core/accounting.py",
        " or known.site != site.name:",
        ":",
    ),
    Mutant(
        "account: every heartbeat is an event",
        "core/accounting.py",
        "return usage.gpu_seconds >= known.gpu_seconds + step",
        "return usage.gpu_seconds > known.gpu_seconds",
    ),
    Mutant(
        "account: what is cancelled is no longer held back",
        "core/state.py",
        '    _move(state, event.job, "cancel", event.reason)',
        '    job = _move(state, event.job, "cancel", event.reason)\n    _let_go(state, job, job.attempt or "")',
    ),
    Mutant(
        "account: what a site forgot is held back for ever",
        "core/accounting.py",
        "if report is not None and report.phase is not Phase.ENDED:",
        "if report is None or report.phase is not Phase.ENDED:",
    ),
    Mutant(
        "account: judges that cannot pay are waited for",
        "core/lateness.py",
        "return unpayable(state, job, now) or overdue(",
        "return overdue(",
    ),
    Mutant(
        "account: what may come back is given up",
        "core/charging.py",
        " or job.outcome is Outcome.EXPIRED or",
        " or",
    ),
    Mutant(
        "pace: more than can be paid",
        "core/pace.py",
        "max(plan.steps, min(most, payable))",
        "most",
    ),
    Mutant(
        "rounds: fewer than the quorum needs",
        "core/rounds.py",
        "if len(able) + len(late) < spec.quorum.minimum:",
        "if not able and not late:",
    ),
    Mutant(
        "late: a failed round drops what it has", "core/plan.py", "sorted((*left, *kept))", "sorted(left)"
    ),
    Mutant(
        "courier: its windows are the coordinator's",
        "core/decide.py",
        "if not site.windows or site.courier:",
        "if not site.windows:",
    ),
    Mutant("index: final jobs stay open", "core/index.py", "if job.is_final:", "if False:"),
    Mutant(
        "index: the oldest measurements",
        "core/index.py",
        "reversed(self._admitted.get(key, []))",
        "iter(self._admitted.get(key, []))",
    ),
    Mutant("account: nobody is warned", "core/plan.py", "yield from warnings(state)", "yield from ()"),
    Mutant(
        "account: a site without means takes part",
        "core/rounds.py",
        "            out.append(lacks)",
        "            able.append(site)",
    ),
    Mutant(
        "place: the slow site gets it",
        "core/place.py",
        "if mine.finish_seconds <= best.finish_seconds * _AS_GOOD:\n        return None",
        "if True:\n        return None",
    ),
    Mutant(
        "place: the best is waited for without end",
        "core/place.py",
        "if best.wait_seconds <= 0.0 and moment.now > asked_since + grace:",
        "if False:",
    ),
    Mutant(
        "pace: steps are lost",
        "core/pace.py",
        "while (missing := total - sum(whole.values())) > 0:",
        "while (missing := 0) > 0:",
    ),
    Mutant(
        "pace: the decay is everybody else's",
        "core/rounds.py",
        "schedule_steps=spec.rounds * steps)",
        "schedule_steps=work.schedule_steps)",
    ),
    Mutant("hours count from planning", "core/lateness.py", "if job.started_at is not None:", "if False:"),
    Mutant("no grace", "core/plan.py", "if now >= met_at + quorum.grace_hours * 3600.0:", "if True:"),
    Mutant(
        "late: a stale delta weighs as much",
        "core/late.py",
        "tokens * percent**behind",
        "tokens * _PERCENT**behind",
    ),
    Mutant(
        "late: for ever", "core/late.py", "        and following - job.round <= quorum.staleness_max\n", ""
    ),
    Mutant(
        "late: past the last round", "core/late.py", "        and following <= campaign.spec.rounds\n", ""
    ),
    Mutant("late: its site is asked again", "core/rounds.py", "if site.name in busy:", "if False:"),
    # state
    Mutant(
        "corrupt contributions do not count",
        "core/state.py",
        '"refuse", event.reason)\n    job.failures += 1',
        '"refuse", event.reason)',
    ),
    Mutant(
        "bad luck counts",
        "core/state.py",
        "if event.outcome in (Outcome.FAILED, Outcome.CORRUPT):",
        "if event.outcome is not Outcome.REFUSED:",
    ),
    Mutant(
        "resumed leases are old",
        "core/state.py",
        "job.leased_at, job.outcome = at, None\n    if event.attempt in",
        "job.outcome = None\n    if event.attempt in",
    ),
    Mutant(
        "older certificates are forgotten",
        "core/state.py",
        "{**site.certificates, fingerprint: certificate}",
        "{fingerprint: certificate}",
    ),
    Mutant(
        "roll back is not applied",
        "core/state.py",
        "state.campaigns[event.campaign].head = event.version\n\n\n@apply.register\ndef _(event: ev.VersionRejected",
        "pass\n\n\n@apply.register\ndef _(event: ev.VersionRejected",
    ),
    Mutant(
        "table: refused is done",
        "core/transitions.py",
        '(JobState.DELIVERED, "refuse"): JobState.PLANNED',
        '(JobState.DELIVERED, "refuse"): JobState.DONE',
    ),
    # shells
    Mutant("two lay out one model at once", "workshop.py", "with self._laying_out:", "if True:"),
    Mutant(
        "an impossible base is tried for ever",
        "workshop.py",
        '    except BadInput as error:\n        reason = f"no model can',
        '    except ZeroDivisionError as error:\n        reason = f"no model can',
    ),
    Mutant(
        "an unwritten decision is believed",
        "driver.py",
        "self._state = None  # what could not",
        "pass  # what could not",
    ),
    Mutant(
        "the snapshot of another release is trusted",
        "driver.py",
        "contextlib.suppress(msgspec.ValidationError)",
        "contextlib.nullcontext()",
    ),
    Mutant(
        "envelopes need no upload",
        "inspection.py",
        '_was_sent("envelope", job.envelope, job.site, store)',
        "pass",
    ),
    Mutant(
        "expired certificates sign", "inspection.py", "if job.delivered_at <= signer.not_after:", "if True:"
    ),
    Mutant(
        "the first certificate decides",
        "inspection.py",
        "expired.append(signer.not_after)",
        "raise BadInput(pem)",
    ),
    Mutant(
        "another order is answered",
        "inspection.py",
        '"assignment": _order(job),',
        "",
    ),
    Mutant("another base is trained from", "inspection.py", '        "base": base,\n', ""),
    Mutant(
        "tokens are believed",
        "inspection.py",
        "if tokens > steps * work.batch_sequences * work.sequence_tokens:",
        "if False:",
    ),
    Mutant(
        "half the subjects are enough",
        "inspection.py",
        "if set(scores.subjects) != wanted:",
        "if not set(scores.subjects) <= wanted:",
    ),
    Mutant("unequal lengths are scores", "inspection.py", "len(score.nats) != len(score.bytes) or ", ""),
    Mutant(
        "any number is a score",
        "inspection.py",
        "if sum(score.nats) > NATS_MAX or sum(score.bytes) > _COUNT_MAX:",
        "if False:",
    ),
    Mutant("nothing held out is a score", "inspection.py", "if not score.nats:", "if False:"),
    Mutant(
        "versions by digest",
        "core/view.py",
        "sorted(campaign.versions.values(), key=lambda version: version.number)",
        "sorted(campaign.versions.values(), key=lambda version: version.digest)",
    ),
    # machine and access
    Mutant(
        "leases before consequences",
        "core/machine.py",
        "if isinstance(command, cm.SyncSite):",
        "if isinstance(command, cm.Tick):",
    ),
    Mutant(
        "any certificate of the site will do",
        "core/access.py",
        "if fingerprint != site.fingerprint:",
        "if False:",
    ),
    Mutant(
        "sites read everything",
        "core/access.py",
        'if role is not Role.SITE:\n        return Verdict(True, f"{role.value} {name} reads',
        'if True:\n        return Verdict(True, f"{role.value} {name} reads',
    ),
    Mutant(
        "idle sites write",
        "core/access.py",
        "if role is Role.SITE and not state.live(SiteName(name)):",
        "if False:",
    ),
)


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tree / name, ignore=ignored) if source.is_dir() else shutil.copy(
                source, tree
            )
        shutil.copytree(ROOT / "tests" / "core", tree / "tests" / "core")
        assert _passes(tree), "the tests fail without any mutant"
        for mutant in chosen:
            caught = not _passes_with(mutant, tree)
            print(f"{'caught  ' if caught else 'SURVIVED'}  {mutant.name}", flush=True)
            survivors += [] if caught else [mutant.name]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were caught")
    return len(survivors)


def _passes_with(mutant: Mutant, tree: Path) -> bool:
    file = tree / "coordinator" / mutant.file
    text = file.read_text()
    assert text.count(mutant.right) == 1, (
        f"{mutant.name}: {mutant.right!r} is not exactly once in {mutant.file}"
    )
    file.write_text(text.replace(mutant.right, mutant.wrong))
    try:
        return _passes(tree)
    finally:
        file.write_text(text)


def _passes(tree: Path) -> bool:
    """Stories first: they are quick, and most mutants end there."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/core"]
    return subprocess.run(command, cwd=tree, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
