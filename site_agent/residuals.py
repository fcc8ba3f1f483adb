"""What a site's deltas left unsaid, kept until the next delta of the same campaign says it.

    residuals/<campaign>/<digest>.safetensors   float32, the model's shapes
    residuals/<run>/<digest>.bin                what a Flower app keeps here between its messages (``Context.state``)

The coordinator's order names the one to begin with, by digest: that of the site's last delta in the base's
lineage. So an attempt that failed, was refused, or was merged into a version nobody promoted changes nothing,
and the same order gives the same bits. Residuals never leave the site; their digests do, in its contributions.
"""

import contextlib
import os
import shutil
from pathlib import Path

from consortium.files import (
    disk_errors,
    make_folder,
    move_into_place,
    sync_file,
    sync_folder,
    temporary_beside,
)
from consortium.ids import CampaignId, Digest
from consortium.manifests import Contribution


class Residuals:
    """The residuals below ``root``. Raises DiskFull or Unavailable."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def lay_out(self, campaign: CampaignId, digest: Digest, target: Path) -> None:
        """Put a residual into a job directory. One that is not here is left out: the delta begins without."""
        source = self._place(campaign, digest, target.suffix)
        if source.is_file() and not target.exists():
            _link_or_copy(source, target)

    def keep(self, contribution: Contribution, path: Path) -> None:
        """Take in the residual of a delivered contribution; forget all but it and the one it was made with.

        An order names one of these two: the new one if its delta is merged and promoted, else the old one.
        """
        if contribution.residual is None:
            return
        place = self._place(contribution.campaign, contribution.residual, path.suffix)
        if not place.is_file():
            _link_or_copy(path, place)
        before = contribution.residual_before
        kept = {place, self._place(contribution.campaign, before, path.suffix) if before else place}
        with disk_errors(place.parent):
            for old in place.parent.glob(f"*{path.suffix}"):
                if old not in kept:
                    old.unlink(missing_ok=True)

    def _place(self, campaign: CampaignId, digest: Digest, suffix: str) -> Path:
        return self.root / campaign / f"{digest}{suffix}"


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
