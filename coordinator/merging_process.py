"""One merge in a process of its own, so that gigabytes never touch the coordinator's memory or its event loop."""

import sys
from pathlib import Path

from consortium.manifests import VersionManifest
from consortium.merging.job import make_version
from coordinator.making_process import MergeOrder, carry_out


def _merge(order: MergeOrder, folder: Path) -> VersionManifest:
    return make_version(order.work, Path(order.base_dir), lambda digest: Path(order.blobs[digest]), folder)


if __name__ == "__main__":
    sys.exit(carry_out(MergeOrder, _merge))
