"""Where a coordinator keeps ledger and artifacts: what its config says, or what lies below a home without one."""

from pathlib import Path

from consortium.blobs import Blobs
from consortium.canonical import Fact
from consortium.store import BlobStore
from coordinator.config import CoordinatorConfig, is_bucket, load_coordinator_config
from policies.keeping import Keep


class Places(Fact):
    """Everything needed to open a coordinator's ledger and store."""

    home: str
    ledger: str  #: file, or address of PostgreSQL
    store: str  #: folder, or bucket
    s3_endpoint: str | None = None
    s3_region: str | None = None
    s3_cache_bytes: int = 0
    keep: Keep = Keep()  #: what may be let go; a home without its config lets nothing go


def places_of(where: Path) -> Places:
    """Of a coordinator's home, or of its config. Raises BadInput for a config that is none."""
    if where.is_file():
        return places_in(load_coordinator_config(where))
    return Places(home=str(where), ledger=str(where / "ledger.sqlite"), store=str(where / "store"))


def places_in(config: CoordinatorConfig) -> Places:
    """Of a config, loaded or made."""
    home = Path(config.home)
    return Places(
        home=config.home,
        ledger=config.ledger or str(home / "ledger.sqlite"),
        store=config.store or str(home / "store"),
        s3_endpoint=config.s3_endpoint,
        s3_region=config.s3_region,
        s3_cache_bytes=config.s3_cache_bytes,
        keep=config.keep,
    )


def open_store(places: Places) -> Blobs:
    """The store; of a bucket, ``store`` in the home is spool and cache. Raises BadInput if boto3 is missing."""
    if not is_bucket(places.store):
        return BlobStore(Path(places.store))
    from consortium.bucket import Bucket  # boto3 is an extra
    from consortium.store_s3 import S3BlobStore

    bucket = Bucket(places.store, places.s3_endpoint, places.s3_region)
    return S3BlobStore(bucket, Path(places.home) / "store", places.s3_cache_bytes)
