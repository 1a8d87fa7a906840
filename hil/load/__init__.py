"""Light virtual devices over real MQTT: thousands in one process, each with a connection of its own."""

from hil.load.connection import LightConnection
from hil.load.device import LightDevice
from hil.load.fleet import LightFleet, LoadOptions

__all__ = ["LightConnection", "LightDevice", "LightFleet", "LoadOptions"]
