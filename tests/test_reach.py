"""Ways to a server: through a shaped link in a process of its own, which ends with the run."""

from __future__ import annotations

import psutil
import pytest

from mobillm_kit.channel.ends import ServerSocket
from mobillm_kit.channel.frames import Limits
from mobillm_kit.device.client import route_to
from mobillm_kit.errors import BadInput


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_link_stands_between_and_ends_with_the_run():
    before = children()
    with (
        ServerSocket("tcp://127.0.0.1:0", limits=Limits()) as server,
        route_to(server.address, link="80mbit,1ms") as (connect, _),
        connect() as device,
    ):
        (link,) = children() - before
        device.wait_connected()
        assert device.address != server.address
        assert device.send([b"hello"], 5.0)
        _, (frame,) = server.receive(10.0)
        assert bytes(frame) == b"hello"
    assert not psutil.pid_exists(link)


def test_without_a_link_the_way_is_the_servers_own_address():
    before = children()
    with (
        ServerSocket("tcp://127.0.0.1:0", limits=Limits()) as server,
        route_to(server.address) as (connect, _),
        connect() as device,
    ):
        assert device.address == server.address
        assert children() == before


def test_a_link_that_is_none_is_refused_and_leaves_no_process():
    before = children()
    with pytest.raises(BadInput), route_to("tcp://127.0.0.1:5", link="quick,please"):
        pass
    assert children() == before


def test_what_is_no_server_is_refused():
    with pytest.raises(BadInput, match="'nowhere' is no server"), route_to("nowhere"):
        pass
