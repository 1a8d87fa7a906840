"""Belonging: whether the fleet that ``agent.toml`` names is the one whose authority this device trusts."""

from edge_agent.configuration import AgentConfiguration
from fl_io.tls import fleets_of

__all__ = ["foreign_authority", "nobody_there"]


def foreign_authority(configuration: AgentConfiguration) -> str:
    """What is wrong where ``[tls] ca`` is another fleet's authority, in a sentence; empty where it is this
    one's, or no fleet's at all.

    Raises:
        ConfigError: the file cannot be read.
    """
    ca = configuration.tls.ca
    fleets = fleets_of(ca) if ca is not None else ()
    if ca is None or not fleets or configuration.fleet in fleets:
        return ""
    others = " and ".join(repr(fleet) for fleet in fleets)
    return f"{ca.name} is the authority of fleet {others}, but fleet in agent.toml is {configuration.fleet!r}"


def nobody_there(fleet: str) -> str:
    """That neither task nor coordinator was heard of."""
    return f"nobody is there under fleet {fleet!r}: is that its name, and was its coordinator ever started?"
