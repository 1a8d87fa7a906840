"""An agent on a real machine: the supervisor with broker, clock, disk and worker as configured."""

from edge_agent.configuration import AgentConfiguration
from edge_agent.jobs import Deliver, Worker
from edge_agent.presence import Presence
from edge_agent.state_folder import StateFolder
from edge_agent.supervisor import Supervisor
from edge_agent.worker_client import InlineWorker, ProcessWorker
from fl_io.clock import SystemClock
from fl_io.mqtt import MqttTransport
from fl_io.watchdog import Notifier, Watchdog
from fl_protocol.topics import FleetTopics

__all__ = ["build_agent", "build_worker"]


def build_agent(configuration: AgentConfiguration, folder: StateFolder) -> Supervisor:
    """Wire an agent; nothing is started.

    Raises:
        ConfigError: TLS files that cannot be used.
        StorageError: the outbox cannot be opened.
    """
    clock = SystemClock()
    presence = Presence(FleetTopics.of(configuration.fleet), configuration.device)
    transport = MqttTransport(
        configuration.address,
        configuration.device,
        will=presence.will,
        keepalive_s=configuration.keepalive_s,
        tls=configuration.tls,
    )
    outbox = folder.open_outbox(
        max_bytes=configuration.outbox.max_bytes, max_age_s=configuration.outbox.max_age_s, clock=clock
    )
    try:
        return Supervisor(
            configuration,
            transport=transport,
            presence=presence,
            clock=clock,
            folder=folder,
            outbox=outbox,
            make_worker=lambda deliver: build_worker(configuration, deliver),
            watchdog=Watchdog(Notifier(), clock, [transport.fault]),
        )
    except BaseException:
        outbox.close()
        raise


def build_worker(configuration: AgentConfiguration, deliver: Deliver) -> Worker:
    """The worker as configured: a process, or ``inline`` in this one."""
    settings = configuration.worker
    if settings.kind == "inline":
        from edge_agent.job_runner import JobRunner

        return InlineWorker(deliver, JobRunner(clock=SystemClock()))
    return ProcessWorker(
        deliver,
        linger_s=settings.linger_s,
        memory_bytes=settings.memory_mb << 20,
        nice=settings.nice,
        deadline_factor=settings.deadline_factor,
    )
