"""One base model in a process of its own: torch and transformers are never imported by the coordinator."""

import sys
from pathlib import Path

from consortium.canonical import digest_of_fact
from consortium.errors import Unavailable
from consortium.files import disk_errors
from consortium.ids import digest_of
from consortium.manifests import Initial, VersionManifest
from consortium.models import initialise
from consortium.versions import manifest_of
from coordinator.making_process import BaseOrder, carry_out


def _make(order: BaseOrder, folder: Path) -> VersionManifest:
    base, given = order.work, Path(order.tokenizer_json)
    with disk_errors(given):  # before transformers is there, which takes seconds: blobs come and go
        data = given.read_bytes()
    if digest_of(data) != base.tokenizer:
        raise Unavailable(
            f"{given}: is not {base.tokenizer} any more; put it back from the copy that was kept"
        )
    own = folder.with_name("tokenizer.json")
    with disk_errors(own):
        own.write_bytes(data)
    initialise(base.config, base.seed, own, folder, base.shard_bytes)
    return manifest_of(folder, initial=Initial(config=digest_of_fact(base.config), seed=base.seed))


if __name__ == "__main__":
    sys.exit(carry_out(BaseOrder, _make))
