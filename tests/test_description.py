"""A description's numbers have bounds and fit together: the smallest, the largest, and what is one beyond."""

from __future__ import annotations

import re

import msgspec
import pytest

from mobillm_kit.errors import BadInput
from mobillm_kit.side.description import USUAL, HeadSpec, SideSpec, check_ladder, check_layers, check_rank

HEAD = HeadSpec(norm="rms", eps=1e-6, project_out=False, bias=False, softcap=None, width=8, rows=2)


def test_the_usual_side_network():
    usual = {"kind": "full-width", "rank": 16, "reduction": 4, "heads": 2, "causal": True, "start": "random", "seed": 0}
    usual |= {"feed_forward": 0, "norm_eps": 1e-12, "pooling": None}
    assert msgspec.to_builtins(USUAL) == {**usual, "width": 1, "layers": [1], "n_labels": 2}
    changed = SideSpec.of(rank=3, layers=[2, 5])
    assert msgspec.to_builtins(changed) == {**msgspec.to_builtins(USUAL), "rank": 3, "layers": [2, 5]}


BOUNDS = [
    (USUAL, "width", 1, 65536),
    (USUAL, "n_labels", 2, 65536),
    (USUAL, "rank", 1, 65536),
    (USUAL, "reduction", 1, 65536),
    (USUAL, "heads", 1, 1024),
    (USUAL, "feed_forward", 0, 1048576),
    (USUAL, "seed", 0, 9223372036854775807),
    (HEAD, "width", 1, 65536),
    (HEAD, "rows", 2, 65536),
]


@pytest.mark.parametrize(("description", "field", "least", "most"), BOUNDS)
def test_a_whole_number_from_a_stranger_lies_between_its_bounds(description, field, least, most):
    for value in (least, most):
        given = msgspec.to_builtins(description) | {field: value}
        assert getattr(msgspec.convert(given, type(description)), field) == value
    for value in (least - 1, most + 1):
        with pytest.raises(msgspec.ValidationError, match=field):
            msgspec.convert(msgspec.to_builtins(description) | {field: value}, type(description))


@pytest.mark.parametrize(
    ("description", "field", "good", "bad"),
    [
        (USUAL, "layers", [[0], [4095], list(range(128))], [[], [-1], [4096], list(range(129))]),
        (USUAL, "norm_eps", [0.0, 1.0], [-1e-9, 1.0001]),
        (USUAL, "gated", [None, (1, 1), (2**53, 2**53)], [(0, 1), (1, 0), (1, 2**53 + 1), (1,), (1, 1.5)]),
        (USUAL, "kind", ["full-width", "ladder"], ["wide"]),
        (USUAL, "start", ["random", "backbone"], ["pruned"]),
        (USUAL, "pooling", ["mean", "first", "attention", None], ["last"]),
        (USUAL, "normalization", ["none", "layer"], ["batch"]),
        (HEAD, "eps", [0.0, 1.0], [-1e-9, 1.0001]),
        (HEAD, "softcap", [None, 1e-9, 1e6], [0.0, -1.0, 1000001.0]),
        (HEAD, "norm", ["none", "layer", "rms", "rms-plus-one"], ["batch"]),
    ],
)
def test_every_other_field_from_a_stranger_is_of_the_values_listed(description, field, good, bad):
    for value in good:
        given = msgspec.to_builtins(description) | {field: value}
        assert getattr(msgspec.convert(given, type(description)), field) == value
    for value in bad:
        with pytest.raises(msgspec.ValidationError, match=field):
            msgspec.convert(msgspec.to_builtins(description) | {field: value}, type(description))


@pytest.mark.parametrize("description", [USUAL, HEAD])
def test_a_description_is_all_of_its_fields_by_name_and_no_other_and_stays_as_it_is(description):
    given = msgspec.to_builtins(description)
    assert msgspec.json.decode(msgspec.json.encode(description), type=type(description)) == description
    with pytest.raises(msgspec.ValidationError, match="unknown field `colour`"):
        msgspec.convert({**given, "colour": 1}, type(description))
    for missing in given:
        with pytest.raises(msgspec.ValidationError, match=f"missing required field `{missing}`"):
            msgspec.convert({key: value for key, value in given.items() if key != missing}, type(description))
    with pytest.raises(TypeError, match="positional"):
        type(description)(*given.values())
    with pytest.raises(AttributeError):
        description.width = 3


def test_what_came_later_is_left_out_where_it_is_as_it_was_so_that_descriptions_keep_their_bytes():
    assert "normalization" not in msgspec.to_builtins(USUAL)
    assert msgspec.to_builtins(SideSpec.of(normalization="layer"))["normalization"] == "layer"


@pytest.mark.parametrize("layers", [(0,), (3,), (0, 1, 7)])
def test_ascending_layers_are_taken_as_they_are(layers):
    assert check_layers(list(layers)) == layers


@pytest.mark.parametrize("layers", [(), (2, 1), (1, 1), (-1,), (-1, 2), (-2, -1)])
def test_other_layers_are_refused(layers):
    shown = f"[{', '.join(map(str, layers))}]"
    with pytest.raises(
        BadInput, match=re.escape(f"layers are {shown}; they must be ascending, without repeats, and at")
    ):
        check_layers(layers)


def test_a_rank_lies_between_1_and_the_width():
    for rank in (1, 7, 8):
        check_rank(8, rank)
    for rank in (-1, 0, 9):
        with pytest.raises(BadInput, match=re.escape(f"rank is {rank}; it must lie in 1 .. 8, the backbone's width.")):
            check_rank(8, rank)


@pytest.mark.parametrize(("reduction", "heads"), [(1, 1), (1, 24), (2, 12), (4, 1), (4, 6), (24, 1)])
def test_a_ladders_sizes_that_come_out_whole_are_taken(reduction, heads):
    check_ladder(24, reduction, heads)


@pytest.mark.parametrize(
    ("reduction", "heads"), [(0, 1), (-1, 1), (-2, 2), (1, 0), (1, -1), (0, 0), (5, 1), (4, 4), (2, 24), (25, 1)]
)
def test_others_are_refused(reduction, heads):
    sentence = f"reduction {reduction} and {heads} heads do not divide the backbone's width 24. width / reduction must"
    with pytest.raises(BadInput, match=re.escape(sentence)):
        check_ladder(24, reduction, heads)


WHOLE = SideSpec.of(width=24, layers=[1, 2, 3], n_labels=3, rank=5, reduction=4, heads=3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "full-width", "start": "backbone"}, "start is 'backbone' for side 'full-width'"),
        ({"kind": "ladder", "start": "other"}, "start is 'other' for side 'ladder'"),
        ({"kind": "wide"}, "Unknown side network 'wide'"),
        ({"layers": [2, 1]}, "layers are [2, 1]"),
        ({"rank": 25}, "rank is 25"),
        ({"kind": "ladder", "heads": 4}, "reduction 4 and 4 heads"),
        ({"kind": "ladder", "normalization": "layer"}, "normalization is 'layer' for side 'ladder'"),
        ({"normalization": "batch"}, "normalization is 'batch' for side 'full-width'"),
        ({"pooling": "last"}, "pooling is 'last'"),
        ({"pooling": "attention", "heads": 5}, "5 heads of a pooling by attention do not divide the width 24."),
        ({"pooling": "attention", "heads": 0}, "0 heads of a pooling by attention"),
    ],
)
def test_a_whole_description_is_refused_for_the_part_that_does_not_fit(changes, sentence):
    with pytest.raises(BadInput, match=re.escape(sentence)):
        msgspec.structs.replace(WHOLE, **changes).check()


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "full-width", "heads": 7, "reduction": 5},  # a ladder's sizes are not asked of the other
        {"kind": "ladder", "rank": 99},
        {"kind": "ladder", "start": "backbone"},
    ],
)
def test_a_whole_description_whose_own_part_fits_is_taken(changes):
    msgspec.structs.replace(WHOLE, **changes).check()


def test_the_weights_of_a_description_by_hand():
    assert WHOLE.values() == 2 * 3 * 24 * 5  # two matrices of 24 x 5 for each of three layers
    assert msgspec.structs.replace(WHOLE, pooling="mean").values() == 720 + 3 * 24
    # n = 6: per layer 6·18 + 6·6 of attention, 6·12 + 12·6 of feed-forward, 24·6 downwards; 6·24 upwards
    ladder = msgspec.structs.replace(WHOLE, kind="ladder")
    assert ladder.values() == 3 * (108 + 36 + 72 + 72 + 144) + 144
    assert msgspec.structs.replace(ladder, pooling="first").values() == ladder.values() + 72
    # two blocks between three layers: 4·36 of attention, 2·6·20 of feed-forward, 24·6 downwards; 6·24 upwards
    copied = msgspec.structs.replace(ladder, start="backbone", feed_forward=20)
    assert copied.values() == 2 * (144 + 240 + 144) + 144
    # of Llama's, unpruned, with one head of keys and values for two: 24·24 of query and of output, 12·24 of key and
    # of value, 3·20·24 of feed-forward, 24·24 downwards and, once, upwards
    gated = msgspec.structs.replace(copied, reduction=1, heads=2, gated=(1, 10_000))
    assert gated.values() == 2 * (2 * 576 + 2 * 288 + 1440 + 576) + 576
