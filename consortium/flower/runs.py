"""What a Flower run is to the consortium: which app, which sites, how long anybody may take.

In Flower's own words a *run* is one execution of a ServerApp, a *node* is who executes ClientApps, a *message* goes to
one node and is replied to. Here a node is a site, and a message to it is a job like any other.
"""

import hashlib
import re
from typing import Annotated

from msgspec import Meta

from consortium.canonical import Fact
from consortium.errors import BadInput
from consortium.ids import CampaignId, Digest, SiteName
from consortium.manifests import FileRef

#: What a value of Flower's run and node configs can be.
ConfigValue = bool | int | float | str
Config = dict[str, ConfigValue]

_APP = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_KIND = re.compile(r"(train|evaluate|query)(\.[A-Za-z_]\w{0,60})?")
_BITS = 62  # a node's and a run's number; Flower has unsigned 64, protobuf and msgspec are at ease with fewer
_APP_CHARACTERS_MAX = 200


class FlowerRun(Fact):
    """One Flower app under way. Its name lives in one space with those of campaigns."""

    run: CampaignId
    app: str  #: of the ClientApp, ``module:attribute``; the sites have it installed
    server_app: str = ""  #: of the ServerApp, for the record
    sites: tuple[SiteName, ...] = ()  #: sorted; empty when it is asked for: every enrolled site then
    run_config: Config = {}
    lease_seconds: Annotated[float, Meta(gt=0)] = 900.0
    courier_lease_hours: Annotated[float, Meta(gt=0)] = 336.0
    attempts_max: Annotated[int, Meta(ge=1)] = 3  #: of one message at one site
    reply_hours: Annotated[float, Meta(gt=0)] | None = None  #: then a message is given up; None: never
    #: of one reply, as the ServerApp will have it in memory: a site must not end it by its size
    reply_bytes_max: Annotated[int, Meta(ge=1)] = 16 << 30


class FlowerOrder(Fact):
    """One message that a ServerApp sends to one site."""

    ordinal: int  #: the how manyth sending of this run, from 1
    copy: int = 1  #: the how manyth message of that sending to this site
    site: SiteName
    message_type: str  #: train, evaluate or query, and perhaps an action: ``train.merge``
    group: str  #: Flower's group id: the round, mostly
    letter: FileRef
    inputs: tuple[Digest, ...]  #: the letter and every blob that it names, sorted


def node_of(site: SiteName) -> int:
    """The number by which Flower knows a site: the same in every run, so that apps may split data by it."""
    return _number(f"node {site}")


def run_number(run: CampaignId) -> int:
    return _number(f"run {run}")


def app_reference(text: str) -> str:
    """``module:attribute``. Raises BadInput for anything else."""
    if len(text) > _APP_CHARACTERS_MAX or not _APP.fullmatch(text):
        raise BadInput(
            f"Flower app {text[:80]!r}: expected module:attribute, such as pytorch_quick.client:app"
        )
    return text


def message_type(text: str) -> str:
    """A type that Flower dispatches by. Raises BadInput for anything else."""
    if not _KIND.fullmatch(text):
        raise BadInput(
            f"Flower message type {text[:80]!r}: expected train, evaluate or query, or with an action: train.merge"
        )
    return text


def job_part(order: FlowerOrder) -> str:
    """What of a job's name follows the run: ``m3-train-sofia``, ``m3-train2-sofia`` for a second one."""
    kind = order.message_type.partition(".")[0]
    copy = "" if order.copy == 1 else str(order.copy)
    return f"m{order.ordinal}-{kind}{copy}-{order.site}"


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> (64 - _BITS) or 1
