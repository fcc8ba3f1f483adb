"""How an agent stands, in Prometheus' words. Labels are few and known beforehand; no campaign, no data set."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from consortium.jobs import Phase
from site_agent.told import Told

CONTENT_TYPE: str = CONTENT_TYPE_LATEST


def exposition(told: Told) -> bytes:
    """The answer to a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(told))
    text: bytes = generate_latest(registry)
    return text


class _Collector:
    def __init__(self, told: Told) -> None:
        self._told = told

    def collect(self) -> Iterator[Any]:
        now = self._told
        yield InfoMetricFamily(
            "sprachbund_agent",
            "The agent and what its operator wants of it.",
            value={"site": now.site, "release": now.release, "mode": now.mode},
        )
        jobs = GaugeMetricFamily("sprachbund_attempts", "Attempts in the spool, by phase.", labels=["phase"])
        for phase in Phase:
            jobs.add_metric([phase.value], now.phases.get(phase.value, 0))
        yield jobs
        yield _gauge("sprachbund_slots", "Jobs at once.", now.slots)
        yield _gauge("sprachbund_coordinator_connected", "Whether the last Sync succeeded.", now.is_connected)
        if now.synced_at is not None:
            yield _gauge(
                "sprachbund_last_sync_timestamp_seconds", "When the coordinator last answered.", now.synced_at
            )
        moved = CounterMetricFamily("sprachbund_blob_bytes", "Bytes of blobs moved.", labels=["direction"])
        moved.add_metric(["received"], now.received_bytes)
        moved.add_metric(["sent"], now.sent_bytes)
        yield moved
        yield CounterMetricFamily("sprachbund_lives", "Starts of trainers.", value=now.launched)
        yield _gauge("sprachbund_tokens_per_second", "Of all trainers that run.", now.tokens_per_second)
        yield _gauge("sprachbund_gpu_seconds_used", "Of the present allocation.", now.used_gpu_seconds)
        if now.granted_gpu_seconds is not None:
            yield _gauge("sprachbund_gpu_seconds_granted", "By the allocation.", now.granted_gpu_seconds)
        if now.free_bytes is not None:
            yield _gauge("sprachbund_disk_free_bytes", "On the file system of home.", now.free_bytes)


def _gauge(name: str, meaning: str, value: float) -> Any:
    return GaugeMetricFamily(name, meaning, value=value)
