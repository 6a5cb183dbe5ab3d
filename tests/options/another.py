from __future__ import annotations

from typing import Any

from lrfgraph.options.option import Option
from lrfgraph.options.values import BYTES, FUNCTION, IMAGE_SIZE, INTEGER, NAMES, NUMBER, NUMBERS, SWITCH

FROM_NONE: dict[str, Any] = {
    INTEGER.name: 3,
    BYTES.name: 10**9,
    NUMBER.name: 0.5,
    NUMBERS.name: (0.5,),
    NAMES.name: ("name",),
    IMAGE_SIZE.name: (14, 14),
    FUNCTION.name: "package.module:function",
}


def another_value(option: Option) -> Any:
    """Return a value of an option that is not its default."""
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    if option.kind is SWITCH:
        return not option.default
    if option.default in (None, ()):
        return FROM_NONE.get(option.kind.name, "text")
    if option.kind in (INTEGER, BYTES):
        return option.default + 1 if option.high is None or option.default < option.high else option.default - 1
    if option.kind is NUMBER:
        return option.default / 2 or 0.5
    return "other"
