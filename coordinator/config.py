"""What the coordinator's operator decides: where it listens, where its state lies, how long things hold."""

import os
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from consortium.canonical import Fact, replace
from consortium.ids import consortium_name
from consortium.loading import Problems, read
from policies.keeping import Keep
from policies.ranges import Address, Count, Port, Positive

_POSTGRES = ("postgresql://", "postgres://", "service=")
_BUCKET = "s3://"


def is_postgres(ledger: object) -> bool:
    """Whether a ledger's place is an address of PostgreSQL rather than a file."""
    return isinstance(ledger, str) and ledger.startswith(_POSTGRES)


def is_bucket(store: object) -> bool:
    """Whether a store's place is a bucket rather than a folder."""
    return isinstance(store, str) and store.startswith(_BUCKET)


class CoordinatorConfig(Fact):
    """The coordinator's file, resolved: paths absolute, defaults filled in."""

    consortium: Annotated[str, Meta(min_length=1, max_length=80)]  #: its name, for people and certificates
    home: str  #: ledger, store and keys lie below it
    #: SQLite file, postgresql://user@host/name or service=name; ledger.sqlite in ``home`` if left out
    ledger: str | None = None
    #: folder of all artifacts, or s3://bucket/prefix; ``store`` in ``home`` if left out
    store: str | None = None
    s3_endpoint: str | None = None  #: of a bucket that is not Amazon's, such as https://lumidata.eu
    s3_region: str | None = None  #: of the bucket, where the storage has regions
    s3_cache_bytes: Count = 200 << 30  #: of blobs kept on this machine's disk while they lie in a bucket
    listen: str = "0.0.0.0"  #: address of both ports
    port: Port = 7443  #: for enrolled sites, admins and auditors (mTLS)
    enrolment_port: Port = 7444  #: for those who hold a one-time token
    names: tuple[str, ...] = ("localhost", "127.0.0.1")  #: host names and addresses in its certificate
    addresses: tuple[
        Address, ...
    ] = ()  #: host:port of all coordinators on one ledger, as sites dial them; left out: the first name and ``port``
    enrolment_addresses: tuple[Address, ...] = ()  #: the same, for those who hold a token
    tick_seconds: Positive = 1.0  #: between looks at leases and deadlines
    token_hours: Positive = 72.0  #: an enrolment token's life
    #: of one certificate's holder, on average; ten times as many in a burst
    calls_per_second: Positive = 50.0
    certificate_days: Count = 30  #: a site's; it renews in time by itself
    upload_bytes_max: Count = 64 << 30  #: of one blob
    membership: str | None = None  #: a file that replaces policies/membership.yaml
    languages: str | None = None  #: a file that replaces policies/languages.yaml
    keep: Keep = Keep()  #: how long deltas and other large things stay; left out: for ever


def load_coordinator_config(path: str | Path) -> CoordinatorConfig:
    """The coordinator config in ``path``; relative paths in it are relative to its folder.

    Raises BadInput with every ``file:line`` that is wrong.
    """
    document = read(path)
    config = document.convert(CoordinatorConfig)
    problems = Problems(document)
    problems.attempt(("consortium",), consortium_name, config.consortium)
    if config.port == config.enrolment_port != 0:
        problems.add(("enrolment_port",), f"{config.port} is also 'port'; the two services need one each")
    if not config.names:
        problems.add(
            ("names",), "no name is given; write those that sites dial, such as coordinator.example.eu"
        )
    if len(config.addresses) != len(config.enrolment_addresses):
        problems.add(
            ("addresses",),
            f"{len(config.addresses)} addresses, {len(config.enrolment_addresses)} enrolment_addresses; "
            "each coordinator has one of both",
        )
    problems.raise_if_any()
    home = document.beside(config.home)
    return replace(
        config,
        home=home,
        ledger=config.ledger
        if is_postgres(config.ledger)
        else document.beside(config.ledger or os.path.join(home, "ledger.sqlite")),
        store=config.store
        if is_bucket(config.store)
        else document.beside(config.store or os.path.join(home, "store")),
        membership=config.membership and document.beside(config.membership),
        languages=config.languages and document.beside(config.languages),
    )
