"""The table of factorization methods: one file each, the same interface, chains of pieces for any layer kind."""

from __future__ import annotations

from lrfgraph.methods.base import Method
from lrfgraph.methods.cp import Cp
from lrfgraph.methods.qr import Qr
from lrfgraph.methods.svd import Svd
from lrfgraph.methods.svd_channel import SvdChannel
from lrfgraph.methods.svd_spatial import SvdSpatial
from lrfgraph.methods.tt import Tt
from lrfgraph.methods.ttm import Ttm
from lrfgraph.methods.tucker import Tucker

__all__ = ["METHODS"]

_ALL: tuple[Method, ...] = (SvdChannel(), SvdSpatial(), Tucker(), Cp(), Tt(), Svd(), Qr(), Ttm())
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
