"""One language's text as tokens, made once for each tokenizer and kept: own, public and held-out documents.

A job finds it made if `sprachbund data prepare` was there before; else it makes it itself, the same bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from consortium.errors import Unavailable
from site_agent.config import Text
from site_agent.data.contents import Plan, Prepared, plan_of, remembered
from site_agent.data.pool import Tell, work_through
from site_agent.data.segments import Encode, Split, Words


def prepare(
    sources: Sequence[Text],
    words: Words,
    encode_texts: Callable[[], Encode],
    heldout_share: float,
    split_seed: int,
    cache: Path,
    beat: Callable[[], None] | None = None,
    tell: Tell | None = None,
) -> Prepared:
    """The prepared text of one language; from the cache if the same text was prepared before.

    sources       all of one language, private and public
    encode_texts  makes the tokenizer, when it is needed at all
    beat          called every few seconds of the work; what it raises ends that, and what is done is kept
    tell          called with how far the language is, after every part that is kept
    Two processes may do this at once: both do the work, one result stays.
    """
    split = Split(heldout_share=heldout_share, seed=split_seed)
    plan = plan_of(sources, words, split, cache)
    (made,) = prepare_all([plan], encode_texts=encode_texts, tell=tell, beat=beat)
    return made


def prepare_all(
    plans: Sequence[Plan],
    processes: int = 1,
    encode_texts: Callable[[], Encode] | None = None,
    tokenizer: Path | None = None,
    tell: Tell | None = None,
    beat: Callable[[], None] | None = None,
) -> tuple[Prepared, ...]:
    """The prepared text of each plan, by ``processes`` at once; arguments as of ``work_through``.

    Raises Corrupt or Unavailable for files that are broken or change; the rest is done by then.
    """
    missing = [plan for plan in plans if remembered(plan) is None]
    if missing:
        try:
            work_through(missing, processes, encode_texts, tokenizer, tell, beat=beat)
        except Unavailable:
            if any(remembered(plan) is None for plan in missing):  # nobody else was faster
                raise
    found = []
    for plan in plans:
        one = remembered(plan)
        if one is None:
            raise Unavailable(
                f"the {plan.language} text changed while it was read; let it come to rest, then start again"
            )
        found.append(one)
    return tuple(found)
