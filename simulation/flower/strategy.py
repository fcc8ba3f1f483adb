"""Our campaign as a Flower Strategy: the core decides, Flower carries.

A Flower round is a wave: training jobs (tokenizers, seed rounds, specialists, rivals), then evaluations. Weights never
travel in a message: orders name blobs by digest, replies name the envelope of what was handed in, and the merge streams
from the store, tensor by tensor, as ever.
"""

from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from consortium.canonical import decode, encode
from consortium.errors import BadInput
from consortium.ids import AttemptId, CampaignId, Digest, SiteName
from consortium.ids import digest as digest_in
from consortium.jobs import Assignment
from consortium.manifests import DataManifest
from simulation.flower.office import Office

JOIN = "query.join"
ORDER, REPLY = "order", "reply"
REFERENCE = "sprachbund.version"  #: the stype of an Array that only names a version


class CampaignStrategy(Strategy):
    """One campaign; give it to Flower's own ``start``. Sites are let in before, by ``gather``."""

    def __init__(self, office: Office, campaign: CampaignId) -> None:
        self._office = office
        self._campaign = campaign
        self._nodes: dict[SiteName, int] = {}

    def gather(self, grid: Grid) -> None:
        """Ask every node which site it is, and enrol it. Raises BadInput if one does not answer."""
        asked = [Message(RecordDict(), node, JOIN) for node in grid.get_node_ids()]
        told = {}
        for reply in grid.send_and_receive(asked):
            if reply.has_error():
                raise BadInput(f"node {reply.metadata.src_node_id} does not join: {reply.error.reason}")
            said = reply.content.config_records[REPLY]
            told[SiteName(str(said["site"]))] = reply.metadata.src_node_id, said
        for site, (node, said) in sorted(told.items()):
            self._nodes[site] = node
            request, holds = said["request"], said["holds"]
            assert isinstance(request, bytes) and isinstance(holds, bytes)
            manifest = decode(holds, DataManifest, f"holdings of {site}")
            self._office.enrol(site, request, manifest, int(str(said["slots"])))

    def summary(self) -> None:
        """Nothing is to be said that the ledger does not say better."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self._messages(server_round, evaluations=False)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self._take(replies)
        head = self._office.campaign(self._campaign).head
        return (None if head is None else reference(head)), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self._messages(server_round, evaluations=True)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        self._take(replies)
        return None

    # ---- inside

    def _messages(self, wave: int, evaluations: bool) -> list[Message]:
        return [
            self._message(order, wave, "evaluate" if evaluations else "train")
            for order in self._office.give(evaluations)
        ]

    def _message(self, order: Assignment, wave: int, kind: str) -> Message:
        content = RecordDict({ORDER: ConfigRecord({"job": encode(order)})})
        return Message(content, self._nodes[order.site], kind, group_id=str(wave))

    def _take(self, replies: Iterable[Message]) -> None:
        """Hand in what came, in one order whoever came first, and do what follows from it."""
        said = []
        for reply in replies:
            if reply.has_error():  # it names no attempt, and without its reply the campaign would stand still
                raise BadInput(f"node {reply.metadata.src_node_id}: {reply.error.reason}")
            told = reply.content.config_records[REPLY]
            envelope = str(told["envelope"])
            said.append(
                (AttemptId(str(told["attempt"])), SiteName(str(told["site"])), envelope, str(told["reason"]))
            )
        for attempt, site, envelope, reason in sorted(said):
            self._office.take(site, attempt, digest_in(envelope) if envelope else None, reason)
        self._office.work()


def reference(version: Digest) -> ArrayRecord:
    """A version in Flower's words: its name in place of its weights."""
    return ArrayRecord(
        {"version": Array(dtype="reference", shape=(1,), stype=REFERENCE, data=version.encode())}
    )
