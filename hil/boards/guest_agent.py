"""A way into an emulated machine that nobody ships: QEMU's own guest agent, over a virtual serial port.

It runs programs as root, whatever the state of network and broker. The protocol is lines of JSON:
https://www.qemu.org/docs/master/interop/qemu-ga-ref.html
"""

import base64
import json
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hil.boards.board import BoardFailure

__all__ = ["PORT_NAME", "GuestAgent"]

PORT_NAME = "org.qemu.guest_agent.0"
ANSWER_S = 60.0
"""For one answer; an emulated machine that trains at the same time is slow."""
_PIECE = 512 << 10
_POLL_S = 0.2


class GuestAgent:
    """One at a time may be connected. Every method raises BoardFailure where the machine does not answer."""

    def __init__(self, port: Path) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._unread = b""

    def close(self) -> None:
        """Hang up; the next call connects anew."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._unread = None, b""

    def answers(self, within_s: float = 2.0) -> bool:
        """Whether it is there."""
        try:
            self._ask("guest-ping", within_s=within_s)
        except BoardFailure:
            return False
        return True

    def run(
        self, words: Sequence[str], *, stdin: bytes = b"", within_s: float = ANSWER_S, check: bool = True
    ) -> str:
        """Run a program as root; what it printed.

        Raises:
            BoardFailure: it ended with another code than 0 (unless ``check`` is off), or not in time.
        """
        arguments: dict[str, Any] = {"path": words[0], "arg": list(words[1:]), "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        pid = self._ask("guest-exec", arguments)["pid"]
        ends = time.monotonic() + within_s
        while not (state := self._ask("guest-exec-status", {"pid": pid}))["exited"]:
            if time.monotonic() > ends:
                raise BoardFailure(f"on the board, {' '.join(words)} takes longer than {within_s:.0f} s")
            time.sleep(_POLL_S)
        out, err = (
            base64.b64decode(state.get(name, "")).decode(errors="replace")
            for name in ("out-data", "err-data")
        )
        if check and state.get("exitcode") != 0:
            raise BoardFailure(
                f"on the board, {' '.join(words)} ended with {state.get('exitcode', state.get('signal'))}",
                hint=f"{out}{err}".strip(),
            )
        return out

    def read(self, path: str) -> bytes | None:
        """A file's content; None where there is none."""
        try:
            handle = self._ask("guest-file-open", {"path": path, "mode": "r"})
        except BoardFailure as error:
            if "No such file" in str(error):
                return None
            raise
        content = b""
        try:
            while True:
                piece = self._ask("guest-file-read", {"handle": handle, "count": _PIECE})
                content += base64.b64decode(piece["buf-b64"])
                if piece["eof"]:
                    return content
        finally:
            self._ask("guest-file-close", {"handle": handle})

    def power_off(self) -> None:
        """Ask for an orderly shutdown; there is no answer.

        Raises:
            BoardFailure: it cannot be asked.
        """
        try:
            self._send(self._connected(ANSWER_S), "guest-shutdown", {"mode": "powerdown"})
        except OSError as error:
            raise BoardFailure(f"the board cannot be asked to shut down: {error}") from None
        finally:
            self.close()

    def _ask(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, within_s: float = ANSWER_S
    ) -> Any:
        try:
            port = self._connected(within_s)
            port.settimeout(within_s)
            self._send(port, command, arguments)
            answer = self._line(port)
        except OSError as error:
            self.close()
            raise BoardFailure(f"the board does not answer ({command}): {error}") from None
        if "error" in answer:
            raise BoardFailure(f"the board refuses {command}: {answer['error'].get('desc', answer['error'])}")
        return answer.get("return")

    def _connected(self, within_s: float) -> socket.socket:
        if self._socket is None:
            port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket = port
            port.settimeout(within_s)
            port.connect(str(self._port))
            # Who was connected before may have left half a question, and answers that nobody read.
            number = secrets.randbelow(1 << 30)
            port.sendall(b"\xff")
            self._send(port, "guest-sync-delimited", {"id": number})
            while True:
                answer = self._line(port)
                if answer.get("return") == number:
                    break
        return self._socket

    def _send(self, port: socket.socket, command: str, arguments: Mapping[str, Any] | None) -> None:
        question = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
        port.sendall(json.dumps(question).encode() + b"\n")

    def _line(self, port: socket.socket) -> dict[str, Any]:
        while b"\n" not in self._unread:
            piece = port.recv(64 << 10)
            if not piece:
                raise OSError("the port was closed")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            answer: dict[str, Any] = json.loads(line.replace(b"\xff", b"") or b"{}")
        except ValueError:
            return {}
        return answer
