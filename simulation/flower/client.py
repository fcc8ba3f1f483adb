"""A site of the campaign as a Flower ClientApp: the agent's staging, launcher, trainer and seal, without the agent.

A node is the site that its ``node_config`` names, or, in Flower's own simulation, the one at its partition's place
among the sorted site files. Blobs go to and come from the store that all share.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from consortium.canonical import decode, encode
from consortium.errors import BadInput
from consortium.identity import signing_request
from consortium.ids import Digest, SiteName
from consortium.jobs import Assignment
from consortium.manifests import FileRef
from consortium.store import BlobStore
from simulation.flower.places import Places
from simulation.flower.strategy import ORDER, REPLY
from site_agent.carry import ARTIFACTS, sealed, stage
from site_agent.config import SiteConfig, load_site_config
from site_agent.core.facts import Seen
from site_agent.deeds import site_of
from site_agent.describing import Describing
from site_agent.identity import next_key
from site_agent.launching import make_launcher
from site_agent.residuals import Residuals
from site_agent.spool import Spool
from site_agent.trainer.folder import Failure

_CHUNK_BYTES = 1 << 20
_LOOK_SECONDS = 0.2


def make_client_app(places: Places) -> ClientApp:
    """The ClientApp of every site of the campaign at ``places``."""
    app = ClientApp()

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        config = _site(places, context)
        holds = Describing(config).run()
        said: dict[str, str | int | bytes] = {
            "site": str(config.site),
            "request": signing_request(config.site, next_key(Path(config.home))),
            "holds": encode(holds),
            "slots": config.slots,
        }
        return _reply(message, said)

    @app.train()
    @app.evaluate()
    def work(message: Message, context: Context) -> Message:
        config = _site(places, context)
        job = message.content.config_records[ORDER]["job"]
        assert isinstance(job, bytes)
        order = decode(job, Assignment, "order")
        envelope, reason = carry_out(config, job, order, BlobStore(places.store))
        told = {
            "site": str(config.site),
            "attempt": str(order.attempt),
            "envelope": envelope,
            "reason": reason,
        }
        return _reply(message, told)

    return app


def _reply(message: Message, said: Mapping[str, str | int | bytes]) -> Message:
    return Message(RecordDict({REPLY: ConfigRecord(dict(said))}), reply_to=message)


def _site(places: Places, context: Context) -> SiteConfig:
    files = places.site_files()
    if "site" in context.node_config:
        name = str(context.node_config["site"])
    elif "partition-id" in context.node_config:
        name = sorted(files)[int(str(context.node_config["partition-id"]))]
    else:
        raise BadInput("this node is not told which site it is; set `site` in its node_config")
    if name not in files:
        raise BadInput(f"there is no site file for {name!r}; known: {', '.join(sorted(files))}")
    return load_site_config(files[name])


def carry_out(config: SiteConfig, job: bytes, order: Assignment, store: BlobStore) -> tuple[str, str]:
    """Run an order's job to its end; the digest of the envelope that is in the store, or "" and why there is none."""
    home = Path(config.home)
    spool, residuals = Spool(home / "spool"), Residuals(home / "residuals")
    directory = spool.create(order.attempt, job, b"")
    asyncio.run(stage(order.attempt, spool, store, residuals, None, encode(site_of(config))))
    launcher = make_launcher(config)
    spool.begin_life(order.attempt, 1)
    launcher.submit(directory, 1)
    while (sighting := launcher.poll([directory])[directory]).seen is not Seen.GONE:
        time.sleep(_LOOK_SECONDS)
    result = directory / "result"
    if not result.is_dir():
        failure = directory / "failure.json"
        told = decode(failure.read_bytes(), Failure).sentence if failure.is_file() else sighting.detail
        return "", told or "it left nothing"
    contribution, envelope = sealed(result, order.attempt, next_key(home))
    for kind, ref in sorted(contribution.artifacts.items()):
        _hand_in(store, result / ARTIFACTS.get(kind, kind), ref, config.site)
    residuals.keep(contribution, result)
    path = directory / "envelope"
    path.write_bytes(envelope)
    ref = store.put_file(path)
    _hand_in(store, path, ref, config.site)
    spool.drop(order.attempt)
    return ref.digest, ""


def _hand_in(store: BlobStore, path: Path, ref: FileRef, site: SiteName) -> Digest:
    """As an upload does: what a site has sent itself counts as its own."""
    if not store.delivered(ref.digest, site):
        offset = store.received(ref.digest, site)
        with open(path, "rb") as file:
            file.seek(offset)
            while data := file.read(_CHUNK_BYTES):
                offset = store.append(ref.digest, site, offset, data)
        store.finish(ref.digest, site, os.path.getsize(path))
    return ref.digest
