"""What stands behind the URL of a remote: a bucket, or a folder of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lrfgraph.errors import StoreError

__all__ = ["import_obstore", "make_folder", "no_folder", "open_url"]

CONNECT, SILENCE, WHOLE, RETRIES = 5.0, 30.0, 600.0, 3
"""Seconds until a connection stands, without a byte, and of a whole request; how often one is tried again."""


def import_obstore() -> None:
    """Raise StoreError in one line where the package is not installed."""
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise StoreError("a remote needs the package obstore; pip install 'lrfgraph[remote]'") from None


def open_url(url: str) -> Any:
    """Return the client of an object store; its credentials and endpoint are those of the environment."""
    import_obstore()
    from datetime import timedelta

    from obstore.store import from_url

    if url.startswith("file:"):
        return from_url(url)
    endpoint = next(
        (os.environ[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if name in os.environ), ""
    )
    options: Any = {
        "connect_timeout": timedelta(seconds=CONNECT),
        "read_timeout": timedelta(seconds=SILENCE),
        "timeout": timedelta(seconds=WHOLE),
        "allow_http": endpoint.startswith("http://"),
    }
    retry: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=SILENCE)}
    return from_url(url, client_options=options, retry_config=retry)


def no_folder(url: str) -> bool:
    """Whether a ``file:`` URL names a folder that is not there."""
    return url.startswith("file:") and not _folder_of(url).is_dir()


def make_folder(url: str) -> None:
    """Make the folder of a ``file:`` URL; raises OSError, and says why in one line. A bucket is never made."""
    if url.startswith("file:"):
        try:
            _folder_of(url).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.strerror) from error


def _folder_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))
