"""What a process remembers stays within its bytes, is handed out once when it is taken, and can all be forgotten."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from lrfgraph.engine.memory import BoundedCache, array_bytes, forget


def kept(cache: BoundedCache) -> list[object]:
    return [key for key in (*range(10), "large", "new") if cache.get(key) is not None]


def test_the_least_recently_used_goes_first() -> None:
    cache = BoundedCache(100)
    for number in range(10):
        cache.put(number, number, 30)
    assert kept(cache) == [7, 8, 9]
    cache.put("large", 1, 60)
    assert cache.get("large") is None
    cache.get(7)
    cache.put("new", 1, 30)
    assert kept(cache) == [7, 9, "new"]
    assert cache.size == 90


def test_a_new_value_takes_the_old_ones_place_and_bytes() -> None:
    cache = BoundedCache(100)
    cache.put(1, "a", 40)
    cache.put(1, "b", 10)
    assert (cache.get(1), cache.size) == ("b", 10)
    cache.put(1, "too large", 90)
    assert (cache.get(1), cache.size) == (None, 0), "what was put before is not what is there now"


def test_what_is_costly_to_make_is_kept_alone_if_it_must_be() -> None:
    cache = BoundedCache(100, keep_last=True)
    cache.put(1, "small", 60)
    cache.put("large", "large", 500)
    assert kept(cache) == ["large"]
    cache.put(2, "small", 60)
    assert kept(cache) == [2]
    cache.put(3, "small", 40)
    assert kept(cache) == [2, 3]


def test_a_value_is_made_once_and_taken_once() -> None:
    cache, made = BoundedCache(2), []

    def make(value: int) -> int:
        made.append(value)
        return value

    assert [cache.get_or_make(key, lambda key=key: make(key), lambda _: 1) for key in (1, 2, 1, 3, 1, 2)] == [
        1, 2, 1, 3, 1, 2,
    ]  # fmt: skip
    assert made == [1, 2, 3, 2]
    assert cache.take(2) == 2
    assert cache.take(2) is None
    assert cache.size == 1


def test_all_caches_are_forgotten_together() -> None:
    caches = BoundedCache(10), BoundedCache(10, keep_last=True)
    for cache in caches:
        cache.put("a", 1, 1)
    forget()
    assert [(cache.get("a"), cache.size) for cache in caches] == [(None, 0)] * 2


def test_bytes_of_all_arrays_wherever_they_are_held() -> None:
    array = np.zeros(10, np.float32)
    thing = SimpleNamespace(rows=array, parts={"a": (array, [array]), "b": None}, tap=lambda x: x, name="rows")
    assert array_bytes(thing) == 3 * 40
    assert array_bytes((SimpleNamespace(inner=thing), 3)) == 120
