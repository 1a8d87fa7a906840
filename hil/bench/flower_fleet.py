"""The same work in Flower's simulation engine: its own ClientApp, ServerApp and FedAvg, on Ray.

As Flower's guide has it for small clients: one CPU for each, so that there are as many actors as cores;
client code keeps its data between messages; no federated evaluation, as the others have none.
"""

import functools
import os
from typing import Any

import psutil
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from hil.bench.peers import Marks
from hil.bench.plain_sgd import SAMPLES, fleet_of, score, trained
from models.runtime import split_flat
from models.zoo.catalogue import find

__all__ = ["run"]

_SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # actors would run at 15: behind whatever else the machine does
}
client = ClientApp()


@functools.cache
def _shares(devices: int) -> list[tuple[Any, Any]]:
    return [(share.x, share.y) for share in fleet_of(devices, 0)]


@client.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Two steps on the samples of this node."""
    number, devices = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    arrays, config = message.content["arrays"], message.content["config"]
    assert isinstance(arrays, ArrayRecord)
    assert isinstance(config, ConfigRecord)
    x, y = _shares(devices)[number]
    seed = (int(config["server-round"]) - 1) * devices + number  # the loop's own
    own = trained(arrays.to_numpy_ndarrays(), x, y, seed=seed)
    reply = {"arrays": ArrayRecord(own), "metrics": MetricRecord({"num-examples": SAMPLES})}
    return Message(content=RecordDict(reply), reply_to=message)


def run(devices: int, versions: int) -> dict[str, Any]:
    """Rounds of all clients; its telemetry and Ray's are off, and Ray listens on loopback alone."""
    os.environ |= _SETTINGS
    artifact = find("digits-mlp").open()
    first = list(split_flat(artifact.initial_weights(), artifact.layout).values())
    marks = Marks(_cpu_of_all)
    found: dict[str, float] = {}
    server = ServerApp()

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number:
            marks.note()
        found["accuracy"] = score(arrays.to_numpy_ndarrays())
        return MetricRecord(dict(found))

    @server.main()  # type: ignore[untyped-decorator]
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=devices)
        strategy.start(
            grid=grid, initial_arrays=ArrayRecord(first), num_rounds=versions, evaluate_fn=evaluate
        )

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=devices,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"_node_ip_address": "127.0.0.1", "log_to_driver": False},
        },
    )
    return {**marks.figures(devices), "accuracy": round(found["accuracy"], 4)}


def _cpu_of_all() -> float:
    """CPU seconds of this process and of all of Ray's."""
    here = psutil.Process()
    total = 0.0
    for process in (here, *here.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
