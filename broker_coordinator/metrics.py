"""The coordinator's figures: one snapshot, shown as ``run/status.json`` and as Prometheus metrics."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from broker_coordinator.storage.records import RuntimeCounts

__all__ = ["Figures", "metric_families"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How things stand. Counts of updates are since the first start, the others since this one.

    ``runtimes`` are updates by the runtime that trained them, empty text where a device does not say.
    ``refused`` are updates by reason; ``rejected`` other messages that could not be used. ``accuracy``
    belongs to ``accuracy_version``; ``accuracy_source`` is ``coordinator`` (its held-out file) or
    ``devices``, with how many devices and examples stand behind it; ``metrics`` are the means of all that
    was measured then, for models that have no accuracy. Where the coordinator measures another model than
    devices use, ``accuracy_caveat`` says so and ``reported`` holds what devices say: ``version``,
    ``devices``, ``examples`` and ``means``. ``tls_date_error`` is what was found wrong with the dates of the
    broker's certificate, and forgiven. ``insecure`` says that the broker's connections are plain. Where
    there is a registry, ``devices_enrolled`` may take part; ``registry_fault`` is why it cannot be read now;
    ``certificates_expiring`` are the days left, by name, of certificates that end soon or have ended.
    ``doubled`` counts, by identity, how often one of two live devices that share it took the other's place.
    ``bytes_*`` are None where the system does not count them.
    """

    fleet: str
    task: str
    epoch: int = 0
    term: int = 0
    version: int = 0
    published: int | None = None
    state: str = "connecting"
    accuracy: float | None = None
    accuracy_version: int | None = None
    accuracy_source: str = ""
    accuracy_examples: int = 0
    accuracy_devices: int = 0
    accuracy_caveat: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    reported: Mapping[str, Any] = field(default_factory=dict)
    devices_online: int = 0
    updates_accepted: int = 0
    updates_folded: int = 0
    waiting: int = 0
    quarantined: int = 0
    aggregator_fault: str = ""
    unweighed_share: float = 0.0
    runtimes: Mapping[str, RuntimeCounts] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    device_events: Mapping[str, int] = field(default_factory=dict)
    leases: int = 0
    credit_bytes: int = 0
    inbox: int = 0
    inbox_highest: int = 0
    inbox_dropped: int = 0
    outgoing: int = 0
    outgoing_dropped: int = 0
    status_failures: int = 0
    connections: int = 0
    tls_date_error: str = ""
    insecure: bool = False
    devices_enrolled: int | None = None
    registry_fault: str = ""
    certificates_expiring: Mapping[str, int] = field(default_factory=dict)
    doubled: Mapping[str, int] = field(default_factory=dict)
    bytes_sent: int | None = None
    bytes_received: int | None = None
    broker: str = ""
    http: str = ""
    pid: int = 0

    def to_body(self) -> dict[str, Any]:
        """What ``status.json`` holds; ``bytes`` is what went through our socket in both directions."""
        body = asdict(self)
        known = self.bytes_sent is not None and self.bytes_received is not None
        body["bytes"] = (self.bytes_sent or 0) + (self.bytes_received or 0) if known else None
        return body


_GAUGES = {
    "epoch": "Epoch of this fleet",
    "term": "Starts of the coordinator",
    "version": "Number of the newest committed version",
    "published": "Number of the newest published version",
    "accuracy": "Accuracy of the newest evaluated version",
    "devices_online": "Devices on line",
    "devices_enrolled": "Devices that are enrolled and not revoked",
    "unweighed_share": "Share of the devices heard last whose newest update the aggregator failed on",
    "waiting": "Accepted updates that wait to be folded",
    "leases": "Leases held",
    "credit_bytes": "Bytes that devices were told they may send",
    "inbox": "Messages that wait to be taken in",
    "inbox_highest": "Most messages that have waited to be taken in at once",
    "outgoing": "Messages that wait to be sent",
}
_COUNTERS = {
    "updates_accepted": "Updates accepted",
    "updates_folded": "Updates folded into a version",
    "quarantined": "Accepted updates that could not be folded",
    "inbox_dropped": "Messages dropped because the inbox was full",
    "outgoing_dropped": "Messages dropped because the outgoing queue was full",
    "status_failures": "Times that run/status.json could not be written",
    "connections": "Connections to the broker",
    "bytes_sent": "Bytes sent to the broker",
    "bytes_received": "Bytes received from the broker",
}
_LABELLED = {
    "refused": ("updates_refused", "Updates refused, by reason", "reason"),
    "rejected": ("messages_rejected", "Messages that could not be used, by reason", "reason"),
    "device_events": ("device_events", "Events that devices reported, by kind", "kind"),
}


def metric_families(figures: Callable[[], Figures]) -> Iterator[Any]:
    """Every figure as a Prometheus metric family, ``lichen_`` before its name."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    now = figures()
    for name, text in _GAUGES.items():
        value = getattr(now, name)
        if value is not None:
            yield GaugeMetricFamily(f"lichen_{name}", text, value=value)
    for name, text in _COUNTERS.items():
        value = getattr(now, name)
        if value is not None:
            yield CounterMetricFamily(f"lichen_{name}", text, value=value)
    for name, (shown, text, label) in _LABELLED.items():
        family = CounterMetricFamily(f"lichen_{shown}", text, labels=[label])
        for reason, count in sorted(getattr(now, name).items()):
            family.add_metric([reason], count)
        yield family
    for shown in ("accepted", "folded"):
        family = CounterMetricFamily(
            f"lichen_runtime_updates_{shown}",
            f"Updates {shown}, by the runtime that trained",
            labels=["runtime"],
        )
        for runtime, counts in now.runtimes.items():
            family.add_metric([runtime], getattr(counts, shown))
        yield family
    yield GaugeMetricFamily(
        "lichen_devices_doubled",
        "Identities that two live devices share: copied cards or credentials",
        value=len(now.doubled),
    )
    yield CounterMetricFamily(
        "lichen_device_doublings",
        "Times that one of two live devices under one identity took the other's place",
        value=sum(now.doubled.values()),
    )
    yield GaugeMetricFamily(
        "lichen_insecure", "Whether the broker's connections are plain", value=int(now.insecure)
    )
    yield GaugeMetricFamily(
        "lichen_registry_unreadable",
        "Whether the registry of devices cannot be read: the last one holds on",
        value=int(bool(now.registry_fault)),
    )
    yield GaugeMetricFamily(
        "lichen_certificates_expiring",
        "Certificates that end within 30 days, or have ended",
        value=len(now.certificates_expiring),
    )
    yield GaugeMetricFamily(
        "lichen_aggregator_faulty",
        "Whether the aggregator fails: on a version, or on the updates of most devices",
        value=int(bool(now.aggregator_fault)),
    )
    yield GaugeMetricFamily(
        "lichen_up", "Whether the broker connection stands", value=int(now.state != "connecting")
    )
    yield GaugeMetricFamily(
        "lichen_rolled_back",
        "Whether the store is older than the world: recover it",
        value=int(now.state == "rolled_back"),
    )
