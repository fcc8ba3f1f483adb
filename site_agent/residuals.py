"""What a site keeps of a job for its next one of the same campaign.

    residuals/<campaign>/<digest>.safetensors   what its delta left unsaid, until the next one says it; float32
    residuals/<campaign>/<digest>.moments       its optimizer's moments, where the campaign keeps them; float32
    residuals/<run>/<digest>.bin                what a Flower app keeps here between its messages (``Context.state``)

The coordinator's order names those to begin with, by digest: those of the site's last delta in the base's
lineage. So an attempt that failed, was refused, or was merged into a version nobody promoted changes nothing,
and the same order gives the same bits. They never leave the site; their digests do, in its contributions.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from msgspec import UNSET

from consortium.files import (
    disk_errors,
    make_folder,
    move_into_place,
    sync_file,
    sync_folder,
    temporary_beside,
)
from consortium.flower.letters import LETTER
from consortium.ids import CampaignId, Digest
from consortium.jobs import Assignment, FlowerMessage, Train
from consortium.manifests import Contribution
from site_agent.trainer.folder import MOMENTS, RESIDUAL, STATE

_SUFFIXES = {RESIDUAL: ".safetensors", MOMENTS: ".moments", STATE: ".bin"}  # by the name in a job directory


class Residuals:
    """What is kept below ``root``. Raises DiskFull or Unavailable."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def lay_out(self, assignment: Assignment, directory: Path) -> None:
        """Put what the order names into a job directory. What is not here is left out: the job begins without."""
        for name, digest in _named(assignment):
            source, target = self._place(assignment.campaign, digest, name), directory / name
            if source.is_file() and not target.exists():
                _link_or_copy(source, target)

    def keep(self, contribution: Contribution, result: Path) -> None:
        """Take in what a delivered contribution left in ``result``; forget all but that and what it began with.

        An order names one of these two: the new one if its delta is merged and promoted, else the old one.
        """
        campaign = contribution.campaign
        for name, before, after in _of(contribution):
            place = self._place(campaign, after, name)
            if not place.is_file():
                _link_or_copy(result / name, place)
            kept = {place, self._place(campaign, before, name) if before else place}
            with disk_errors(place.parent):
                for old in place.parent.glob(f"*{place.suffix}"):
                    if old not in kept:
                        old.unlink(missing_ok=True)

    def _place(self, campaign: CampaignId, digest: Digest, name: str) -> Path:
        return self.root / campaign / f"{digest}{_SUFFIXES[name]}"


def _named(assignment: Assignment) -> Iterator[tuple[str, Digest]]:
    """What an order names of what is kept here, by the name in the job directory."""
    work = assignment.work
    if isinstance(work, Train):
        if work.residual is not None:
            yield RESIDUAL, work.residual
        if work.moments is not UNSET:
            yield MOMENTS, work.moments
    if isinstance(work, FlowerMessage) and work.state is not None:
        yield STATE, work.state


def _of(contribution: Contribution) -> Iterator[tuple[str, Digest | None, Digest]]:
    """Of each thing that a contribution left: its name in the result, what it was begun with, and what it is now."""
    if contribution.residual is not None:
        name = STATE if LETTER in contribution.artifacts else RESIDUAL
        yield name, contribution.residual_before, contribution.residual
    if contribution.moments is not UNSET:
        before = contribution.moments_before
        yield MOMENTS, None if before is UNSET else before, contribution.moments


def _link_or_copy(source: Path, target: Path) -> None:
    with disk_errors(target):
        make_folder(target.parent)
        with contextlib.suppress(OSError):  # another file system, or one without hard links: copy
            os.link(source, target)
            sync_folder(target.parent)
            return
        temporary = temporary_beside(target)
        try:
            shutil.copyfile(source, temporary)
            sync_file(temporary)
            move_into_place(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
