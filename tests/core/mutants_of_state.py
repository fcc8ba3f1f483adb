"""What is kept, shown and inspected: mistakes in it."""

from mutant import in_file

MUTANTS = (
    *in_file(
        "core/fold.py",
        ("token is never used up", "state.tokens.pop(event.token_hash)", "state.tokens[event.token_hash]"),
        (
            "merge: whoever sends garbage is a liar",
            "if job.purpose is Purpose.MERGE and job.site is not None:",
            "if job.site is not None:",
        ),
        (
            "merge: a lost try leaves no time",
            "job.outcome, job.free_since = event.outcome, at",
            "job.outcome = event.outcome",
        ),
        ("merge: nobody made it", "        event.merged_by,\n", "        None,\n"),
        (
            "account: usage is charged again and again",
            "more = event.gpu_seconds - known.gpu_seconds",
            "more = event.gpu_seconds",
        ),
        (
            "account: what is cancelled is no longer held back",
            '    _move(state, event.job, "cancel", event.reason)',
            '    job = _move(state, event.job, "cancel", event.reason)\n    _let_go(state, job, job.attempt or "")',
        ),
        (
            "corrupt contributions do not count",
            '"refuse", event.reason)\n    job.failures += 1',
            '"refuse", event.reason)',
        ),
        (
            "bad luck counts",
            "if event.outcome in (Outcome.FAILED, Outcome.CORRUPT):",
            "if event.outcome is not Outcome.REFUSED:",
        ),
        (
            "resumed leases are old",
            "job.leased_at, job.outcome = at, None\n    if event.attempt in",
            "job.outcome = None\n    if event.attempt in",
        ),
        (
            "older certificates are forgotten",
            "{**site.certificates, fingerprint: certificate}",
            "{fingerprint: certificate}",
        ),
        (
            "roll back is not applied",
            "head = event.version\n\n\n@apply.register\ndef _(event: ev.VersionRejected",
            "head\n\n\n@apply.register\ndef _(event: ev.VersionRejected",
        ),
    ),
    *in_file(
        "core/index.py",
        ("index: final jobs stay open", "if job.is_final == is_known:", "if not is_known:"),
        (
            "index: the oldest measurements",
            "reversed(self._admitted.get(key, []))",
            "iter(self._admitted.get(key, []))",
        ),
    ),
    *in_file(
        "core/view.py",
        (
            "versions by digest",
            "sorted(campaign.versions.values(), key=lambda version: version.number)",
            "sorted(campaign.versions.values(), key=lambda version: version.digest)",
        ),
    ),
    *in_file(
        "inspection.py",
        ("envelopes need no upload", '_was_sent("envelope", job.envelope, job.site, store)', "pass"),
        ("expired certificates sign", "if job.delivered_at <= signer.not_after:", "if True:"),
        ("the first certificate decides", "expired.append(signer.not_after)", "raise BadInput(pem)"),
        ("another order is answered", '"assignment": _order(job),', ""),
        ("another base is trained from", '        "base": base,\n', ""),
        (
            "tokens are believed",
            "if tokens > steps * work.batch_sequences * work.sequence_tokens:",
            "if False:",
        ),
        (
            "half the subjects are enough",
            "if set(scores.subjects) != wanted:",
            "if not set(scores.subjects) <= wanted:",
        ),
        ("unequal lengths are scores", "len(score.nats) != len(score.bytes) or ", ""),
        (
            "any number is a score",
            "if sum(score.nats) > NATS_MAX or sum(score.bytes) > _COUNT_MAX:",
            "if False:",
        ),
        ("nothing held out is a score", "if not score.nats:", "if False:"),
    ),
    *in_file(
        "workshop.py",
        ("two lay out one model at once", "with self._laying_out:", "if True:"),
        (
            "an impossible base is tried for ever",
            '        except BadInput as error:\n            reason = f"no model can',
            '        except ZeroDivisionError as error:\n            reason = f"no model can',
        ),
    ),
)
