"""Rights on the broker's topics, written out line by line in mosquitto's language.

Not by pattern: a device that is not named here has no rights at all, and one that is revoked loses them
when the broker reads this again, even on a connection that stands.
"""

from collections.abc import Iterable

from fl_protocol.topics import FleetTopics

__all__ = ["COORDINATOR_NAME", "topic_rights"]

COORDINATOR_NAME = "@coordinator"
"""Its certificate's name; no device can have it, as @ is in no device's name."""


def topic_rights(fleet: str, devices: Iterable[str]) -> str:
    """mosquitto's ``acl_file`` of a fleet with these devices."""
    prefix = FleetTopics(fleet).prefix
    lines = [
        f"# Rights of fleet {fleet}, written by lichen fleet: the next enrolment replaces all of it.",
        f"user {COORDINATOR_NAME}",
        f"topic readwrite {prefix}task/#",
        f"topic readwrite {prefix}blob/#",
        f"topic readwrite {prefix}coordinator",
        f"topic write {prefix}down/#",
        f"topic read {prefix}up/#",
        f"topic read {prefix}state/+",
    ]
    for device in devices:
        lines += [
            "",
            f"user {device}",
            f"topic write {prefix}up/{device}/#",
            f"topic write {prefix}state/{device}",
            f"topic read {prefix}down/{device}/#",
            f"topic read {prefix}task/#",
            f"topic read {prefix}blob/#",
            f"topic read {prefix}coordinator",
        ]
    return "\n".join(lines) + "\n"
