"""What the operator's commands say in words: of a status, of an opinion on a version, of a recovery."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker_coordinator.books.recovery import Recovery
    from broker_coordinator.evaluation import Evaluation

__all__ = ["opinion_of", "recovery_lines", "status_lines"]


def status_lines(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What ``run/status.json`` says: a name and a sentence each."""
    running = f"process {body['pid']}, {body['state']}" if body["running"] else "not running"
    yield "fleet", f"{body['fleet']} ({running})"
    yield "version", f"{body['epoch']}.{body['version']}, published {body['published']}, term {body['term']}"
    yield from _quality_lines(body)
    yield "devices on line", str(body["devices_online"])
    yield "updates", f"{body['updates_accepted']:,} accepted, {body['waiting']} waiting"
    for name, counts in body.get("runtimes", {}).items():
        yield f"trained by {name or 'others'}", _counted(counts)
    for what in ("refused", "rejected"):
        if body[what]:
            yield what, ", ".join(f"{reason} {count:,}" for reason, count in sorted(body[what].items()))
    if body["quarantined"]:
        yield "quarantined", str(body["quarantined"])
    if body.get("aggregator_fault"):
        yield "aggregator", body["aggregator_fault"]
    yield "broker", body["broker"]
    yield from _identity_lines(body)
    if body.get("tls_date_error"):
        yield "certificate", f"taken in spite of its dates: {body['tls_date_error']}"
    if body["http"] and body["running"]:
        yield "http", body["http"]


def _identity_lines(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if body.get("insecure"):
        yield "insecure", "no TLS: whoever reaches the broker can read, and speak for any device"
    if body.get("devices_enrolled") is not None:
        yield "enrolled", f"{body['devices_enrolled']:,} devices"
    if body.get("registry_fault"):
        yield "registry", f"{body['registry_fault']}; the one read last holds on"
    for name, days in body.get("certificates_expiring", {}).items():
        ends = f"ends in {days} days" if days >= 0 else "has ended"
        yield "certificate", f"{name}'s {ends}: lichen fleet renew {name}"
    if body.get("doubled"):
        shown = ", ".join(f"{name} ({count:,} times)" for name, count in body["doubled"].items())
        yield "two live devices", f"share one identity: {shown}; see lichen devices"


def _quality_lines(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """How good the newest version is, who says so, and with what."""
    by = _devices(body["accuracy_devices"]) if body["accuracy_devices"] else "the coordinator"
    caveat = f", {body['accuracy_caveat']}" if body.get("accuracy_caveat") else ""
    source = (
        f"at version {body['accuracy_version']}, by {by} on {body['accuracy_examples']:,} examples{caveat}"
    )
    if body["accuracy"] is not None:
        yield "accuracy", f"{body['accuracy']:.4f} {source}"
    else:
        for name, mean in body.get("metrics", {}).items():
            yield name, f"{mean:.5g} {source}"
    if reported := body.get("reported"):
        said = ", ".join(f"{name} {mean:.4g}" for name, mean in reported["means"].items())
        yield (
            "devices say",
            f"{said} at version {reported['version']}, {_devices(reported['devices'])} on"
            f" {reported['examples']:,} examples",
        )


def opinion_of(evaluation: "Evaluation | None") -> str:
    """How accurate a version is, and who says so; empty where nobody does."""
    if evaluation is None or evaluation.accuracy is None:
        return ""
    by = f", {_devices(evaluation.devices)}" if evaluation.devices else ""
    return f"{evaluation.accuracy:.4f} on {evaluation.examples:,}{by}"


def recovery_lines(done: "Recovery") -> Iterator[str]:
    """What a recovery kept and gave up."""
    kept = "no version" if done.kept is None else f"version {done.kept[0]}.{done.kept[1]} and all before it"
    yield f"kept: {kept}, {done.accepted:,} accepted updates ({done.waiting:,} not folded yet)"
    if done.seen is not None:
        reached = f"{done.seen[0]}.{done.seen[1]}"
        yield f"given up: {done.versions_given_up:,} versions that devices have had since, up to {reached}"
    yield "updates that devices still hold come again by themselves; made from a version given up: refused"
    yield "updates that were counted since, and dropped by their devices, are not known here:"
    yield "  lichen audit --agents DIR counts them as given up, for the devices whose folders you name"


def _counted(counts: dict[str, int]) -> str:
    return f"{counts['accepted']:,} accepted, {counts['folded']:,} folded"


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count:,} devices"
