"""What is asked by HTTP: metrics, and whether the daemon is alive and ready. Served by a process of its own."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from maildir_async.daemon.board import Board
from maildir_async.daemon.metrics import Counts, collector

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["serve_metrics"]

#: Seconds that somebody who asks gets, from the connection to the answer.
REQUEST_S: Final = 10.0

#: Connections at once, each with a thread. One more has the oldest closed: who asks gets an answer, whoever is idle.
MAX_REQUESTS: Final = 16


def serve_metrics(listener: socket.socket, counts: Counts, board: Board, life: int) -> None:
    """Answer who asks, until the main process is gone: then *life* is at its end."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import make_wsgi_app  # pyright: ignore[reportUnknownVariableType] not annotated

    registry = CollectorRegistry()
    registry.register(collector(counts))
    server = _Server(listener)
    server.set_app(_application(make_wsgi_app(registry), board))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.suppress(OSError):
        os.read(life, 1)
    server.shutdown()
    server.server_close()


def _application(metrics: "WSGIApplication", board: Board) -> "WSGIApplication":
    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path not in ("/metrics", "/healthz", "/readyz"):
            status, told = "404 Not Found", ["there are /metrics, /healthz and /readyz"]
        elif method not in ("GET", "HEAD"):
            status, told = "405 Method Not Allowed", ["GET and HEAD are allowed"]
        elif path == "/metrics":
            return metrics(environ, start_response)
        elif path == "/healthz":
            told = board.ailing()
            status = "503 Service Unavailable" if told else "200 OK"
        else:
            told = [] if board.is_ready else ["starting or ending"]
            status = "503 Service Unavailable" if told else "200 OK"
        body = ("\n".join(told or ["ok"]) + "\n").encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        if status.startswith("405"):
            headers.append(("Allow", "GET, HEAD"))
        start_response(status, headers)
        return [body]

    def answer_head(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer as for GET, without the body: RFC 9110 §9.3.2."""
        if environ["REQUEST_METHOD"] != "HEAD":
            return answer(environ, start_response)
        told: list[Any] = []
        environ["REQUEST_METHOD"] = "GET"
        body = b"".join(answer(environ, lambda *status_and_headers: told.extend(status_and_headers)))  # type: ignore[arg-type]  # WSGI's type wants a write() that nobody calls
        headers = [(name, value) for name, value in told[1] if name.lower() != "content-length"]
        start_response(told[0], [*headers, ("Content-Length", str(len(body)))])
        return []

    return answer_head


class _Server(ThreadingMixIn, WSGIServer):
    """Serves at a socket that listens already, with a thread for each of at most `MAX_REQUESTS` connections."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(("", 0), _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._since: dict[socket.socket, float] = {}  # connections, the oldest first
        self._lock = threading.Lock()
        name = listener.getsockname()
        # server_bind would ask the DNS.
        self.server_name, self.server_port = ("localhost", 0) if isinstance(name, str | bytes) else name[:2]
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; one by a Unix socket has no address, and is given one."""
        connection, address = super().get_request()
        return connection, address or ("", 0)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a thread answer; if there are too many, the oldest connection ends first."""
        with self._lock:
            self._since[request] = time.monotonic()
            if len(self._since) > MAX_REQUESTS:
                self._end(next(iter(self._since)))
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End what takes too long, however its bytes trickle. Called twice a second."""
        with self._lock:
            late = time.monotonic() - REQUEST_S
            for request in [request for request, since in self._since.items() if since < late]:
                self._end(request)

    def _end(self, request: socket.socket) -> None:
        """Have its thread find its connection at an end. Called with the lock held, under which no socket is closed."""
        del self._since[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about who went before the answer came; the rest is a line of the log."""
        if not isinstance(sys.exception(), OSError):
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


class _Request(WSGIRequestHandler):
    timeout = REQUEST_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name there
        """Say nothing: the log is for mail."""
