"""A run across two processes ends in the bytes of a run in one."""

from __future__ import annotations

import shutil

import pytest

from mobillm_kit.server.process import serve
from tests.uplink import trained


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("uplink")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.mark.parametrize("side", ["full-width", "ladder"])
@pytest.mark.parametrize("model", ["opt", "bert"])
def test_two_processes_end_in_the_bytes_of_one(place, server, side, model):
    apart, there = trained(place, server.address, side=side, model=model, codec="int8", group=8)
    together, here = trained(place, "in-process", side=side, model=model, codec="int8", group=8)
    assert apart == together
    assert [point.train_loss for point in there.curve] == [point.train_loss for point in here.curve]
    assert [point.dev_loss for point in there.curve] == [point.dev_loss for point in here.curve]


@pytest.mark.parametrize("side", ["full-width", "ladder"])
def test_a_side_network_beside_one_layer_has_no_gate_and_ends_in_the_same_bytes(place, server, side):
    apart, _ = trained(place, server.address, side=side, layers=1, codec="fp32")
    together, _ = trained(place, "in-process", side=side, layers=1, codec="fp32")
    assert apart == together


COPY = {"model": "bert", "start": "backbone", "codec": "fp32"}


@pytest.mark.parametrize(("reduction", "layers"), [(1, 3), (2, 2)])
@pytest.mark.parametrize("options", [{}, {"codec": "int8", "group": 8, "labels": "device"}], ids=str)
def test_a_copy_of_the_backbones_blocks_ends_in_the_bytes_of_one_process(place, server, reduction, layers, options):
    shape = {**COPY, "reduction": reduction, "layers": layers, **options}
    apart, there = trained(place, server.address, **shape)
    shape.pop("labels", None)
    together, here = trained(place, "in-process", **shape)
    assert apart == together
    assert [point.dev_loss for point in there.curve] == [point.dev_loss for point in here.curve]


WIDE = {"model": "bert", "side": "full-width", "rank": 4, "normalization": "layer", "pooling": "attention", "heads": 4}


@pytest.mark.parametrize("options", [WIDE, {**COPY, "reduction": 2, "layers": 2}], ids=["full-width", "copy"])
@pytest.mark.parametrize("labels", ["server", "device"])
def test_with_norms_attention_and_an_average_of_the_weights_two_processes_end_in_the_bytes_of_one(
    place, server, options, labels
):
    options = {**options, "codec": "fp32", "averaging": 0.9, "weight_decay": 0.1}
    apart, there = trained(place, server.address, labels=labels, **options)
    together, here = trained(place, "in-process", **options)
    assert apart == together
    assert [point.dev_loss for point in there.curve] == [point.dev_loss for point in here.curve]
    last, _ = trained(place, "in-process", **{**options, "averaging": 0.0})
    assert last != together  # the average is really another


def test_an_average_goes_on_after_its_server_is_killed_to_the_same_bytes(place, server, tmp_path):
    options = {**WIDE, "codec": "fp32", "averaging": 0.9}
    undisturbed, _ = trained(place, server.address, **options)

    def kill(step: int) -> None:
        if step == 7:
            other.kill()
            other.restart()

    with serve(tmp_path) as other:
        disturbed, _ = trained(place, other.address, after_step=kill, checkpoint_every=3, **options)
    assert disturbed == undisturbed


def test_its_first_weights_are_among_the_bytes_sent_once(place, server):
    shape = {**COPY, "reduction": 1, "layers": 3}
    side, there = trained(place, server.address, **shape)
    _, here = trained(place, "in-process", **shape)
    assert len(side) < there.bytes_sent - here.bytes_sent < len(side) + 12 * 500 + 3000  # headers, hello, questions


def test_a_run_that_goes_on_after_its_server_lost_everything_sends_them_again(place, server, tmp_path):
    shape = {**COPY, "reduction": 1, "layers": 3}
    undisturbed, _ = trained(place, server.address, **shape)

    def lose(step: int) -> None:
        if step == 9:
            other.kill()
            shutil.rmtree(other.folder / "sessions")
            other.restart()

    with serve(tmp_path) as other:
        disturbed, there = trained(place, other.address, after_step=lose, **shape)
    assert disturbed == undisturbed
    assert there.bytes_sent > 2 * len(undisturbed)


def test_every_byte_of_every_step_is_counted_however_late_it_leaves(place, server):
    _, there = trained(place, server.address, codec="int8", group=8, link="0.2mbit")
    _, here = trained(place, "in-process", codec="int8", group=8)
    payloads = [point.bytes_sent for point in here.curve]
    assert all(sent >= least for sent, least in zip([point.bytes_sent for point in there.curve], payloads, strict=True))
    assert there.bytes_sent > here.bytes_sent


def test_with_a_cache_each_sample_is_forwarded_and_sent_once(place, server):
    _plain, without = trained(place, server.address, steps=30, codec="int8", group=8)
    _again, with_cache = trained(place, server.address, steps=30, codec="int8", group=8, cache=True)
    assert with_cache.forwards < without.forwards
    assert with_cache.forwards == 40  # the texts of the training split
    assert with_cache.bytes_sent < 0.6 * without.bytes_sent


def test_the_cache_changes_no_result_beyond_rounding(place, server):
    from safetensors.torch import load

    plain, _ = trained(place, server.address, steps=24, codec="int8", group=8)
    cached, _ = trained(place, server.address, steps=24, codec="int8", group=8, cache=True)
    for name, tensor in load(plain).items():
        assert (tensor - load(cached)[name]).abs().max() < 1e-3, name


@pytest.mark.parametrize("labels", ["server", "device"])
def test_labels_that_stay_on_the_device_train_the_same_side_network(place, server, labels):
    here, _ = trained(place, "in-process", codec="fp32")
    there, _result = trained(place, server.address, codec="fp32", labels=labels)
    assert here == there


def test_prediction_differences_train_too(place, server):
    _, result = trained(place, server.address, codec="fp32", labels="residual", steps=48)
    assert result.curve[-1].dev_accuracy > result.curve[0].dev_accuracy or result.curve[-1].dev_accuracy == 1.0


@pytest.mark.parametrize("cache", [False, True])
def test_a_server_killed_in_the_middle_and_started_again_changes_no_byte(place, tmp_path, cache):
    with serve(tmp_path / "a") as server:
        undisturbed, _ = trained(
            place, server.address, codec="int8", group=8, cache=cache, checkpoint_every=4, steps=24
        )
    with serve(tmp_path / "b") as server:

        def kill(step: int) -> None:
            if step == 15:
                server.kill()
                server.restart()

        disturbed, _ = trained(
            place, server.address, codec="int8", group=8, cache=cache, checkpoint_every=4, steps=24, after_step=kill
        )
    assert disturbed == undisturbed
