"""TensorFlow's start without its chatter: it writes to the terminal before its own log level takes effect."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["release_stderr", "start_keras"]

CHATTER = re.compile(
    rb"^([IWE]\d{4} |\d{4}-\d\d-\d\d .*: [IWE] |WARNING: All log messages before absl|To enable the following)"
)

_guard = threading.Lock()
_real: list[int] = []


def start_keras() -> None:
    """Import Keras and TensorFlow; whatever else is written to standard error meanwhile comes out afterwards."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _guard:
        if "keras" in sys.modules:
            return
        with _held_back():
            import keras  # noqa: F401
            import tensorflow  # noqa: F401
        # It would warn of functions traced again, which every new network needs.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)


def release_stderr() -> None:
    """Give standard error back at once, though TensorFlow may still be starting in another thread."""
    for real in _real:
        os.dup2(real, 2)


@contextmanager
def _held_back() -> Iterator[None]:
    # The C++ side writes to the file descriptor, so replacing sys.stderr would not do.
    sys.stderr.flush()
    try:
        real = os.dup(2)
    except OSError:  # a process without standard error has nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as captured:
        _real.append(real)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            _real.remove(real)
            os.close(real)
            captured.seek(0)
            for line in captured:
                if not CHATTER.match(line):
                    os.write(2, line)
