"""Where the files of a campaign lie that runs as a Flower app: the folder that an admin and operators prepared.

campaign.yaml    coordinator.yaml    sites/<name>.yaml    coordinator/store/
"""

import os
from dataclasses import dataclass
from pathlib import Path

from consortium.errors import BadInput

ENVIRONMENT = "SPRACHBUND_CAMPAIGN"  #: the folder, where nothing else says it


@dataclass(frozen=True, slots=True)
class Places:
    """``root`` as a text: Flower's engine copies it to its workers."""

    root: str

    @property
    def campaign(self) -> Path:
        return Path(self.root) / "campaign.yaml"

    @property
    def coordinator(self) -> Path:
        return Path(self.root) / "coordinator.yaml"

    @property
    def store(self) -> Path:
        return Path(self.root) / "coordinator" / "store"

    def site_files(self) -> dict[str, Path]:
        """By site. Raises BadInput if there are none."""
        found = {path.stem: path for path in sorted((Path(self.root) / "sites").glob("*.yaml"))}
        if not found:
            raise BadInput(
                f"{self.root}/sites: no site files; one YAML file a site, as `sprachbund site run` reads"
            )
        return found


def told() -> Places:
    """The places that the environment names."""
    root = os.environ.get(ENVIRONMENT)
    if not root:
        raise BadInput(
            f"which campaign? set {ENVIRONMENT} to its folder, with campaign.yaml and sites/ in it"
        )
    return Places(str(Path(root).resolve()))
