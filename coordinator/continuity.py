"""Whether a delta went on from what its order names of the site's last one: its residual, and its optimizer's moments.

Both stay at the site; what is checked are the digests that stand in the manifest.
"""

from msgspec import UNSET

from consortium.codecs.names import is_coded
from consortium.errors import BadInput
from consortium.jobs import Train
from consortium.manifests import Contribution


def feedback(contribution: Contribution, work: Train) -> str:
    """What is to be said of the error feedback; "": nothing. Raises BadInput where its chain is broken."""
    before, after = contribution.residual_before, contribution.residual
    if before not in (None, work.residual):
        raise BadInput(
            f"manifest's residual_before is {before}, the job's is {work.residual}; use that one, or none"
        )
    if is_coded(work.delta_dtype) != (after is not None):
        fault = "is missing" if after is None else f"is {after}"
        raise BadInput(
            f"manifest's residual {fault}, the delta is {work.delta_dtype}; a residual comes with int8, int4 and topk"
        )
    return "; it began without the residual of its last delta" if work.residual != before else ""


def moments(contribution: Contribution, work: Train) -> str:
    """The same of the optimizer's moments. That a site leaves none is told, and no fault of its delta."""
    before, after = contribution.moments_before, contribution.moments
    if before is not UNSET and before != work.moments:
        named = "none" if work.moments is UNSET else work.moments
        raise BadInput(f"manifest's moments_before is {before}, the job's is {named}; use that one, or none")
    if work.optimizer.moments != "keep":
        if after is not UNSET:
            raise BadInput(f"manifest's moments is {after}, the job keeps none; leave it out")
        return ""
    said = (
        "; its optimizer began anew, without the moments of its last delta" if before != work.moments else ""
    )
    return said + ("; it left no moments: its agent's release may not know of them" if after is UNSET else "")
