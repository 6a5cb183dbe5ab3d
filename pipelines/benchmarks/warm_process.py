"""A process that has imported Keras and nothing of ours, and forks for every program it is given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PROGRAM = """
import contextlib, io, json, os, sys, traceback
import keras
for line in sys.stdin:
    program, *arguments = json.loads(line)
    reader, writer = os.pipe()
    if not os.fork():
        out, code = io.StringIO(), 0
        sys.argv = ["-c", *arguments]
        try:
            with contextlib.redirect_stdout(out):
                exec(program, {"__name__": "__main__"})
        except BaseException:
            code, error = 1, traceback.format_exc()
        os.write(writer, json.dumps([code, out.getvalue(), error if code else ""]).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        print(answer.read(), flush=True)
    os.wait()
"""


class WarmProcess:
    """Runs programs in forks of a process that is started at the first of them."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a program, its text and its arguments."""
        if self._server is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._server = subprocess.Popen([sys.executable, "-I", "-c", PROGRAM], text=True, **pipes)
        assert self._server.stdin
        assert self._server.stdout
        print(json.dumps(list(arguments)), file=self._server.stdin, flush=True)
        code, out, error = json.loads(self._server.stdout.readline())
        return subprocess.CompletedProcess([], code, out, error)

    def close(self) -> None:
        """Let the process end."""
        if self._server is not None:
            self._server.communicate()
            self._server = None


@contextmanager
def warm_reloading() -> Iterator[None]:
    """Within it, written files are reloaded in a process that did not start for it."""
    from lrfgraph.network import exporting

    warm, own = WarmProcess(), exporting._fresh_process
    exporting._fresh_process = warm.run
    try:
        yield
    finally:
        exporting._fresh_process = own
        warm.close()
