"""A server on loopback that speaks S3, for tests: it can be slow, damage what it sends, refuse, and be stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
}


class S3Server:
    """delay : seconds before each answer.  damages : paths whose content is sent with one bit turned.
    refuses : methods that are forbidden.  asked : method and path of every request."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.damages: Callable[[str], bool] = lambda path: False
        self.refuses: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self._guard = threading.Lock()
        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self._server: Any = None
        self.port = 0
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, at the port of before; what was put is still there."""
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        self.delay, self.damages = 0.0, lambda path: False
        self.refuses.clear()
        self.asked.clear()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        time.sleep(self.delay)
        if method in self.refuses:
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        with self._guard:  # what answers is not made for threads
            content = b"".join(self._app(environ, start_response))
        if method == "GET" and content and self.damages(path):
            content = bytes([content[0] ^ 1]) + content[1:]
        return [content]
