"""The activation cache keeps samples byte for byte, within its quotas, and notices what is damaged."""

from __future__ import annotations

import torch

from mobillm_kit.quant.parcels import Parcel
from mobillm_kit.server.cache import ActivationCache, ranges


def parcel(number: int, n_bytes: int = 100) -> Parcel:
    generator = torch.Generator().manual_seed(number)
    payload = torch.randint(0, 255, (n_bytes,), generator=generator, dtype=torch.uint8)
    return Parcel(codec="int8", group=32, layers=(1,), width=32, lengths=(3,), positions=(2,), payloads=(payload,))


def same(a: Parcel | None, b: Parcel) -> bool:
    return a is not None and (a.codec, a.lengths) == (b.codec, b.lengths) and torch.equal(a.payloads[0], b.payloads[0])


def test_memory_first_then_disk_then_no_more(tmp_path):
    """Two fit into memory to the byte, three on disk to the byte, and the sixth nowhere."""
    probe = ActivationCache(tmp_path / "probe", memory_bytes=0, disk_bytes=10_000)
    probe.put(0, parcel(0))
    file_bytes = (tmp_path / "probe" / "0.parcel").stat().st_size
    cache = ActivationCache(tmp_path, memory_bytes=200, disk_bytes=3 * file_bytes)
    assert [cache.put(number, parcel(number)) for number in range(7)] == [True] * 5 + [False] * 2
    assert sorted(file.name for file in tmp_path.glob("*.parcel")) == ["2.parcel", "3.parcel", "4.parcel"]
    assert all(same(cache.get(number), parcel(number)) for number in range(5))
    assert cache.get(5) is None
    again = ActivationCache(tmp_path, memory_bytes=0, disk_bytes=3 * file_bytes)
    assert not again.put(5, parcel(5))  # what the last server left counts too


def test_what_is_on_disk_outlives_the_server(tmp_path):
    first = ActivationCache(tmp_path, memory_bytes=0, disk_bytes=10_000)
    for number in (3, 4, 9):
        first.put(number, parcel(number))
    again = ActivationCache(tmp_path, memory_bytes=0, disk_bytes=10_000)
    assert again.held() == [(3, 4), (9, 9)]
    assert same(again.get(9), parcel(9))


def test_a_damaged_file_counts_as_not_held(tmp_path):
    cache = ActivationCache(tmp_path, memory_bytes=0, disk_bytes=10_000)
    cache.put(1, parcel(1))
    file = tmp_path / "1.parcel"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert cache.get(1) is None
    assert cache.held() == []
    assert cache.put(1, parcel(1))
    assert same(cache.get(1), parcel(1))


def test_a_truncated_file_counts_as_not_held(tmp_path):
    cache = ActivationCache(tmp_path, memory_bytes=0, disk_bytes=10_000)
    cache.put(1, parcel(1))
    file = tmp_path / "1.parcel"
    file.write_bytes(file.read_bytes()[:20])
    assert cache.get(1) is None


def test_without_room_on_disk_only_memory_is_used(tmp_path):
    cache = ActivationCache(tmp_path, memory_bytes=299, disk_bytes=0)
    assert [cache.put(number, parcel(number)) for number in range(4)] == [True, True, False, False]


def test_numbers_are_told_as_ranges():
    assert ranges([5, 1, 2, 3, 9]) == [(1, 3), (5, 5), (9, 9)]
    assert ranges([]) == []
