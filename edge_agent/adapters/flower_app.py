"""A Flower ``ClientApp``, driven without Flower's network: one message in, one reply out.

An app takes messages by name (``@app.train()``) or wraps a ``client_fn``, which reads the same content under
names of its own: a message carries both, so that either finds what it looks for.
"""

import inspect
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ConfigError

__all__ = ["AppClient", "app_client", "is_app", "is_client"]

_HOMES_OF_CLIENT_APP = ("flwr.clientapp", "flwr.client")
"""It moved from the second to the first."""
_LASTS_S = 43_200.0
"""A message of Flower's lasts so long, unless it says otherwise; it is answered at once here."""
_COUNTS = ("num-examples", "num_examples")
_NODE = 1
"""Node, run and task are one here, and nobody asks for their numbers."""
_LOSSES = ("loss", "eval_loss")


def is_app(client: object) -> bool:
    """Whether this is a ``ClientApp``; without importing Flower."""
    return any(_is(client, module, "ClientApp") for module in _HOMES_OF_CLIENT_APP)


def is_client(client: object) -> bool:
    """Whether this is a ``Client``, which takes messages of its own instead of arrays."""
    return _is(client, "flwr.client", "Client")


def _is(value: object, module: str, name: str) -> bool:
    package = sys.modules.get(module)  # whoever has such a value has imported Flower
    kind = getattr(package, name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def app_client(
    client: Any, names: Sequence[str], *, node_config: Mapping[str, Any], run_config: Mapping[str, Any]
) -> "AppClient":
    """A ``ClientApp`` or a ``Client`` as something with the methods of a ``NumPyClient``."""
    if is_client(client):
        from flwr.client import ClientApp

        return AppClient(ClientApp(lambda context: client), names, node_config, run_config)
    return AppClient(client, names, node_config, run_config)


class AppClient:
    """Calls an app as Flower's node does; its context, and the state in it, last as long as this object."""

    def __init__(
        self, app: Any, names: Sequence[str], node_config: Mapping[str, Any], run_config: Mapping[str, Any]
    ) -> None:
        from flwr.app import Context, RecordDict

        self._app = app
        self._names = list(names)
        self._context = Context(
            run_id=_NODE,
            node_id=_NODE,
            node_config=dict(node_config),
            state=RecordDict(),
            run_config=dict(run_config),
        )

    def fit(
        self, parameters: list[NDArray[Any]], config: dict[str, Any]
    ) -> tuple[list[NDArray[Any]], int, Mapping[str, Any]]:
        """Send the app a ``train`` message.

        Raises:
            ConfigError: a reply without arrays, or without the number of examples.
        """
        content = self._sent("train", "fitins", parameters, config)
        records = list(content.array_records.values())
        if len(records) != 1:
            raise ConfigError(
                f"the app's reply to train has {len(records)} array records",
                hint="reply with one ArrayRecord, of the trained weights",
            )
        metrics = _metrics(content)
        return self._arrays(records[0]), _count(metrics, "train"), metrics

    def evaluate(
        self, parameters: list[NDArray[Any]], config: dict[str, Any]
    ) -> tuple[float, int, Mapping[str, Any]]:
        """Send the app an ``evaluate`` message; NaN for a loss that the reply does not name.

        Raises:
            ConfigError: a reply without the number of examples.
        """
        metrics = _metrics(self._sent("evaluate", "evaluateins", parameters, config))
        count = _count(metrics, "evaluate")
        loss = next((metrics.pop(name) for name in _LOSSES if name in metrics), float("nan"))
        return float(loss), count, metrics

    def _sent(self, kind: str, older: str, parameters: list[NDArray[Any]], config: dict[str, Any]) -> Any:
        from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

        arrays = ArrayRecord(
            OrderedDict((name, Array(array)) for name, array in zip(self._names, parameters, strict=True))
        )
        # Apps name their settings with hyphens, clients with underscores.
        settings = ConfigRecord({**config, **{key.replace("_", "-"): value for key, value in config.items()}})
        content = RecordDict({"arrays": arrays, "config": settings})
        content[f"{older}.parameters"] = arrays
        content[f"{older}.config"] = settings
        reply = self._app(_message(kind, content), self._context)
        if reply.has_error():
            raise ConfigError(f"the app answers {kind} with an error: {reply.error.reason}")
        return reply.content

    def _arrays(self, record: Any) -> list[NDArray[Any]]:
        """By name where the reply has our names, else in its own order."""
        if set(record) == set(self._names):
            return [record[name].numpy() for name in self._names]
        return [np.asarray(array) for array in record.to_numpy_ndarrays()]


def _message(kind: str, content: Any) -> Any:
    """An instruction as a node takes it from its server. Flower makes one only in a task of its own, so its
    metadata is written out here; newer versions also number tasks."""
    from flwr.app import Message, Metadata

    fields: dict[str, Any] = {
        "run_id": _NODE,
        "message_id": "",
        "src_node_id": _NODE,
        "dst_node_id": _NODE,
        "reply_to_message_id": "",
        "group_id": "",
        "created_at": time.time(),
        "ttl": _LASTS_S,
        "message_type": kind,
        "src_task_id": _NODE,
        "dst_task_id": _NODE,
    }
    known = inspect.signature(Metadata).parameters
    metadata = Metadata(**{name: value for name, value in fields.items() if name in known})
    return Message(content=content, metadata=metadata)


def _metrics(content: Any) -> dict[str, Any]:
    """The numbers of a reply, in one map: an app's metrics, or a client's, which travel as settings."""
    of_clients = [record for name, record in content.config_records.items() if name.endswith("res.metrics")]
    found: dict[str, Any] = {}
    for record in (*of_clients, *content.metric_records.values()):
        found |= {name: value for name, value in record.items() if isinstance(value, bool | int | float)}
    return found


def _count(metrics: dict[str, Any], kind: str) -> int:
    counts = [int(metrics.pop(name)) for name in _COUNTS if name in metrics]
    if not counts:
        raise ConfigError(
            f"the app's reply to {kind} does not say how many examples there were",
            hint="put num-examples into its MetricRecord",
        )
    return counts[0]
