"""What the coordinator's operator decides: where it listens, where its state lies, how long things hold."""

import os
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from consortium.canonical import Fact, replace
from consortium.ids import consortium_name
from consortium.loading import Problems, read
from policies.ranges import Count, Port, Positive


class CoordinatorConfig(Fact):
    """The coordinator's file, resolved: paths absolute, defaults filled in."""

    consortium: Annotated[str, Meta(min_length=1, max_length=80)]  #: its name, for people and certificates
    home: str  #: ledger, store and keys lie below it
    ledger: str | None = (
        None  #: SQLite file; always set once loaded, to ledger.sqlite in ``home`` if left out
    )
    listen: str = "0.0.0.0"  #: address of both ports
    port: Port = 7443  #: for enrolled sites, admins and auditors (mTLS)
    enrolment_port: Port = 7444  #: for those who hold a one-time token
    names: tuple[str, ...] = ("localhost", "127.0.0.1")  #: host names and addresses in its certificate
    tick_seconds: Positive = 1.0  #: between looks at leases and deadlines
    token_hours: Positive = 72.0  #: an enrolment token's life
    calls_per_second: Positive = (
        50.0  #: of one certificate's holder, on average; ten times as many in a burst
    )
    certificate_days: Count = 30  #: a site's; it renews in time by itself
    upload_bytes_max: Count = 64 << 30  #: of one blob
    membership: str | None = None  #: a file that replaces policies/membership.yaml
    languages: str | None = None  #: a file that replaces policies/languages.yaml


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
    problems.raise_if_any()
    home = document.beside(config.home)
    return replace(
        config,
        home=home,
        ledger=document.beside(config.ledger or os.path.join(home, "ledger.sqlite")),
        membership=config.membership and document.beside(config.membership),
        languages=config.languages and document.beside(config.languages),
    )
