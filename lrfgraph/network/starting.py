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

__all__ = ["start_keras"]

CHATTER = re.compile(
    rb"^([IWE]\d{4} |\d{4}-\d\d-\d\d .*: [IWE] |WARNING: All log messages before absl|To enable the following)"
)

_guard = threading.Lock()


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


@contextmanager
def _held_back() -> Iterator[None]:
    # The C++ side writes to the file descriptor, so replacing sys.stderr would not do.
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # a process without standard error has nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            for line in written:
                if not CHATTER.match(line):
                    os.write(2, line)
