"""HTTP: ``/metrics`` for Prometheus, ``/healthz`` for whoever restarts things. On loopback, unless asked."""

import socket
import threading
from collections.abc import Callable

from broker_coordinator.metrics import Figures, metric_families
from fl_protocol.errors import ConfigError, StorageError

__all__ = ["HttpServer"]

START_S = 10.0
STOP_S = 5.0


class HttpServer:
    """Serves from a thread of its own; ``figures`` and ``fault`` are called there, and only read.

    ``fault`` says why the coordinator is not well; empty if it is. ``host`` is an IPv4 address or a name of
    one; ``port`` 0 takes a free one.

    Raises:
        ConfigError: an extra is not installed.
        StorageError: the address is not this machine's, or the port is taken.
    """

    def __init__(
        self, host: str, port: int, *, figures: Callable[[], Figures], fault: Callable[[], str]
    ) -> None:
        try:
            import uvicorn
            from prometheus_client import CollectorRegistry, generate_latest
            from prometheus_client.registry import Collector
            from starlette.applications import Starlette
            from starlette.requests import Request
            from starlette.responses import PlainTextResponse, Response
            from starlette.routing import Route
        except ImportError as error:
            raise ConfigError(
                f"HTTP needs {error.name}",
                hint="pip install 'lichen[coordinator]', or set http.enabled = false",
            ) from None

        class Figured(Collector):
            def collect(self):  # type: ignore[no-untyped-def]  # the library's own type is not exported
                return metric_families(figures)

        registry = CollectorRegistry()
        registry.register(Figured())

        async def metrics(request: Request) -> Response:
            return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

        async def healthz(request: Request) -> Response:
            reason = fault()
            return PlainTextResponse(f"{reason or 'ok'}\n", status_code=503 if reason else 200)

        self._socket = _bound(host, port)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        application = Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz)])
        self._server = uvicorn.Server(
            uvicorn.Config(application, log_level="warning", lifespan="off", access_log=False, loop="asyncio")
        )
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, within 5 s."""
        self._server.should_exit = True
        self._thread.join(STOP_S)
        self._socket.close()

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])


def _bound(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise StorageError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="set http.host, http.port to others, or http.port to 0",
        ) from None
    return listener
