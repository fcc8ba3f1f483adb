"""Flower's Grid over the consortium's jobs: what lets an unmodified ServerApp and Strategy run here.

Each sending of the ServerApp is counted, and a message is known by that count and its site. So a ServerApp that is
started again from its beginning, because its process was killed, runs into the replies that are there already, and goes
on from where it was; its optimizer's state comes back the same way. Replies come in the order of the sites' names,
whoever answered first, so sums of floats come out the same each time.

A Strategy's own ``timeout`` is not looked at: a queue may hold a job for days. ``reply_hours`` of the run gives up.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from consortium.canonical import encode
from consortium.errors import BadInput
from consortium.flower import carrying, compat
from consortium.flower.letters import LETTER_BYTES_MAX, inputs_of, read_letter
from consortium.flower.runs import FlowerOrder, FlowerRun, job_part, node_of, run_number
from consortium.ids import JobId, SiteName, job_named
from coordinator.flower.post import Post, Reply

_log = logging.getLogger(__name__)

#: Flower's ErrorCode for a ClientApp that raised; its Strategies count such replies and leave them out.
NO_REPLY = 2

Tell = Callable[[str], None]


class JobGrid(compat.Grid):  # type: ignore[misc, unused-ignore]
    """One run's Grid. Not for several threads, as Flower's own are not either."""

    def __init__(self, run: FlowerRun, post: Post, tell: Tell = lambda text: None) -> None:
        self._spec = run
        self._post = post
        self._tell = tell
        self._run = compat.empty_run(run_number(run.run))
        self._sites = {node_of(site): site for site in run.sites}
        self._sent = 0
        self._messages: dict[JobId, compat.Message] = {}  #: sent, and not pulled yet
        compat.be(self._run.run_id, compat.SERVER_NODE)

    @property
    def run(self) -> compat.Run:
        return self._run

    def set_run(self, run: compat.Run) -> None:
        """For Flower's own engines; a run of ours is opened with its name."""
        if run.run_id != self._run.run_id:
            raise BadInput(f"this Grid belongs to run {self._spec.run}; it cannot be given to another")

    def create_message(
        self,
        content: compat.RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> compat.Message:
        return compat.Message(content, dst_node_id, message_type, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """By the names of their sites."""
        return list(self._sites)

    def push_messages(self, messages: Iterable[compat.Message]) -> list[str]:
        """Make jobs of the messages; returns their names, in the order of the sites'."""
        self._sent += 1
        copies: dict[SiteName, int] = {}
        orders = []
        for message in sorted(messages, key=lambda message: self._site_of(message)):
            site = self._site_of(message)
            copies[site] = copies.get(site, 0) + 1
            order = self._order(message, site, copies[site])
            job = job_named(self._spec.run, job_part(order))
            compat.name_message(message, job)
            self._messages[job] = message
            orders.append(order)
        self._post.push(self._spec.run, orders)
        self._tell(f"sending {self._sent}: {len(orders)} message(s)")
        return [job_named(self._spec.run, job_part(order)) for order in orders]

    def pull_messages(self, message_ids: Iterable[str]) -> list[compat.Message]:
        """The replies that are there by now, in the order of the sites' names; each is given once."""
        asked = sorted(JobId(name) for name in message_ids if name in self._messages)
        return self._opened(self._post.replies(self._spec.run, asked, None)) if asked else []

    def send_and_receive(
        self, messages: Iterable[compat.Message], *, timeout: float | None = None
    ) -> list[compat.Message]:
        """Send, and wait until each message has its reply or is given up; ``timeout`` is not looked at."""
        jobs = [JobId(name) for name in self.push_messages(messages)]
        replies: list[Reply] = []
        while len(replies) < len(jobs):
            before = len(replies)
            replies = self._post.replies(self._spec.run, jobs, before)
            if len(replies) != before:
                self._tell(f"sending {self._sent}: {len(replies)} of {len(jobs)} replies")
        return self._opened(replies)

    # ---- inside

    def _site_of(self, message: compat.Message) -> SiteName:
        node = message.metadata.dst_node_id
        if node not in self._sites:
            raise BadInput(f"node {node} is no site of run {self._spec.run}; ask the Grid for its nodes")
        return self._sites[node]

    def _order(self, message: compat.Message, site: SiteName, copy: int) -> FlowerOrder:
        with tempfile.TemporaryDirectory(prefix="sprachbund-flower-") as folder:
            letter = carrying.pack(message.content, Path(folder) / "parcel", self._post.keep)
        ref = self._post.keep_bytes(encode(letter))
        return FlowerOrder(
            ordinal=self._sent,
            copy=copy,
            site=site,
            message_type=message.metadata.message_type,
            group=message.metadata.group_id,
            letter=ref,
            inputs=inputs_of(ref, letter),
        )

    def _opened(self, replies: list[Reply]) -> list[compat.Message]:
        """Flower's messages; by site, and by copy where one has several."""
        return [self._open(reply) for reply in sorted(replies, key=self._place)]

    def _place(self, reply: Reply) -> tuple[SiteName, JobId]:
        return self._site_of(self._messages[reply.job]), reply.job

    def _open(self, reply: Reply) -> compat.Message:
        message = self._messages.pop(reply.job)
        if reply.letter is None:
            _log.warning("%s has no reply: %s", reply.job, reply.reason)
            return compat.reply_to(message, compat.Error(NO_REPLY, reply.reason))
        path = self._post.find(reply.letter)
        if path.stat().st_size > LETTER_BYTES_MAX:
            raise BadInput(f"letter {reply.letter.digest}: has more than {LETTER_BYTES_MAX} bytes")
        letter = read_letter(path.read_bytes(), f"reply to {reply.job}")
        parcels = {ref: self._post.find(ref) for ref in letter.parcels}
        try:
            content = carrying.unpack(letter, parcels.__getitem__)
            carrying.check_arrays(content)
        except BadInput as error:
            # Admission cannot tell, it knows nothing of flwr. To raise would end the ServerApp, each time it is started
            _log.warning("%s has a reply that is none: %s", reply.job, error)
            return compat.reply_to(message, compat.Error(NO_REPLY, f"its reply is none: {error}"))
        return compat.reply_to(message, content)
