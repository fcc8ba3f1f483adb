"""A post without a coordinator: a ClientApp answers in this process, in whatever order a test wants."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from consortium.canonical import encode
from consortium.flower import carrying, compat
from consortium.flower.letters import read_letter
from consortium.flower.runs import FlowerOrder, FlowerRun, job_part, node_of, run_number
from consortium.ids import CampaignId, JobId, SiteName, digest_of, job_named
from consortium.manifests import FileRef
from coordinator.flower.post import Reply

SITES = tuple(SiteName(name) for name in ("north", "south", "west"))


def a_run(name: str = "try", **changes: Any) -> FlowerRun:
    return FlowerRun(
        **{"run": CampaignId(name), "app": "quickstart.client_app:app", "sites": SITES, **changes}
    )


class PostHere:
    """Satisfies ``coordinator.flower.post.Post``; keeps all it ever did, as the consortium does.

    failing  sites that never give a reply
    dice     in which order replies are told, and how many at a time
    """

    def __init__(
        self, folder: Path, app: Any, *, failing: Sequence[str] = (), dice: random.Random | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder  # plain files: the store's fsync of each would be most of the test
        self._scratch = folder / "parcel"
        self._app = app
        self._failing = failing
        self._dice = dice or random.Random(0)
        self._contexts: dict[SiteName, Any] = {}
        self._replies: dict[JobId, Reply] = {}
        self.pushed: list[FlowerOrder] = []
        self.executions = 0
        self.ended = ""
        self.interrupt: Callable[[], None] = lambda: None

    def open_run(self, run: FlowerRun) -> FlowerRun:
        self._run = run
        return run

    def push(self, run: CampaignId, orders: Sequence[FlowerOrder]) -> None:
        for order in orders:
            job = job_named(run, job_part(order))
            if job not in self._replies:
                self.pushed.append(order)
                self._replies[job] = self._answer(job, order)

    def replies(self, run: CampaignId, jobs: Sequence[JobId], known: int | None) -> list[Reply]:
        self.interrupt()
        found = [self._replies[job] for job in jobs]
        self._dice.shuffle(found)
        return found if known is None else found[: self._dice.randint(known + 1, len(found))]

    def complete_run(self, run: CampaignId, reason: str) -> None:
        self.ended = reason

    def keep(self, path: Path) -> FileRef:
        return self.keep_bytes(path.read_bytes())

    def keep_bytes(self, data: bytes) -> FileRef:
        ref = FileRef(digest=digest_of(data), size=len(data))
        self.find(ref).write_bytes(data)
        return ref

    def find(self, ref: FileRef) -> Path:
        return self._folder / ref.digest

    def _answer(self, job: JobId, order: FlowerOrder) -> Reply:
        if order.site in self._failing:
            return Reply(job=job, letter=None, reason=f"{order.site} is away")
        self.executions += 1
        run, node = run_number(self._run.run), node_of(order.site)
        letter = read_letter(self.find(order.letter).read_bytes())
        message = compat.instruction(
            carrying.unpack(letter, self.find),
            run=run,
            node=node,
            message_id=job,
            message_type=order.message_type,
            group=order.group,
        )
        context = self._contexts.setdefault(
            order.site, compat.Context(run, node, {}, compat.RecordDict(), dict(self._run.run_config))
        )
        reply = self._app(message, context)
        context.state = compat.records_from_bytes(compat.records_to_bytes(context.state), "state")
        packed = carrying.pack(reply.content, self._scratch, self.keep)
        return Reply(job=job, letter=self.keep_bytes(encode(packed)))
