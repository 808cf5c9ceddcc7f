"""docs/protocol.md says what the code does, and enough: a client written from the page alone reads its examples."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from inspect import signature
from typing import Any, get_args

import msgspec
import pytest
import torch
from msgspec import inspect
from torch import nn

from mobillm_kit.channel.checks import ACTIVATION_COPIES
from mobillm_kit.channel.connections import MOST_STRANGERS, STRANGER_BYTES
from mobillm_kit.channel.ends import DeviceSocket
from mobillm_kit.channel.frames import Limits, from_frames, to_frames
from mobillm_kit.channel.keys import LOCK_LIMIT_S, OneTimeCodes
from mobillm_kit.channel.messages import VERSION, ErrorCode, FrameInfo, FromDevice, FromServer, Name, Plan, SessionId
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.common import MIB
from mobillm_kit.quant import BITS, CODECS, FP4, NF4, codec
from mobillm_kit.server import ServiceSettings
from mobillm_kit.server.service import service_limits
from mobillm_kit.side.adapter import SideAdapter
from mobillm_kit.side.description import HeadSpec, SideSpec
from mobillm_kit.training.adamw import Trained
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
SECTIONS = {int(part[0]): part for part in re.split(r"^## (?=\d\.)", TEXT, flags=re.MULTILINE)[1:]}
DEVICE, SERVER = get_args(FromDevice), get_args(FromServer)
MESSAGES = {kind.__struct_config__.tag: kind for kind in (*DEVICE, *SERVER)}
PARTS = {"plan": Plan, "side": SideSpec, "head": HeadSpec, "frame": FrameInfo}

EXAMPLES = re.findall(
    r"^### (.+?)\n\n```json\n(.+?)\n```\n\n```text\n(.+?)\n```", SECTIONS[8], re.DOTALL | re.MULTILINE
)
PAYLOADS = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| `([0-9a-f ]*)` \|$", SECTIONS[7], re.MULTILINE)


# ---------------------------------------------------------------------- tables

TEXTS = {
    None: "text, at most",
    inspect.type_info(Name).pattern: "printable text, 1 …",
    inspect.type_info(SessionId).pattern: "32 of `0-9a-f`",
}
"""What the page says for a pattern."""


def bound(number: float) -> str:
    if number in (2**53, 2**31, 2**20):
        return f"2^{int(math.log2(number))}"
    return "2^63 - 1" if number == 2**63 - 1 else f"{number:g}" if isinstance(number, float) else str(number)


def described(kind: inspect.Type) -> str:
    """A field's type and limits as the page writes them."""
    match kind:
        case inspect.Metadata(type=inner):
            return described(inner)
        case inspect.IntType(ge=low, le=high):
            return f"int {bound(low)} … {bound(high)}"
        case inspect.FloatType(gt=None, ge=low, le=high):
            return f"float {bound(low)} … {bound(high)}"
        case inspect.FloatType(gt=low, le=high):
            return f"float above {bound(low)}, to {bound(high)}"
        case inspect.BoolType():
            return "bool"
        case inspect.StrType(pattern=pattern, max_length=most):
            return TEXTS[pattern] if most is None else f"{TEXTS[pattern]} {most}"
        case inspect.BytesType(min_length=length, max_length=most) if length == most:
            return f"bin {length}"
        case inspect.LiteralType(values=values):
            return ", ".join(f'"{value}"' for value in values) if len(values) < 10 else "a code of section 6"
        case inspect.ListType(item_type=item, min_length=low, max_length=most):
            return f"list of {low or 0} … {most}: {described(item)}"
        case inspect.TupleType(item_types=items):
            assert len(set(map(described, items))) == 1
            return f"{len(items)} of {described(items[0])}"
        case inspect.DictType(key_type=key, value_type=value, max_length=most):
            return f"map of at most {most}: {described(key)} to {described(value)}"
        case inspect.StructType(cls=cls):
            return next(f"map `{name}`" for name, part in PARTS.items() if part is cls)
        case inspect.UnionType(types=types):
            return " or ".join("nil" if isinstance(one, inspect.NoneType) else described(one) for one in types)
    raise AssertionError(kind)


def fields_of(struct_type: type) -> dict[str, str]:
    info = inspect.type_info(struct_type)
    assert isinstance(info, inspect.StructType)
    return {field.name: described(field.type) for field in info.fields}


def table(name: str) -> dict[str, str]:
    """Fields and types of the table under the heading ``name``."""
    found = re.search(rf"^#### `{name}`[^\n]*\n(.*?)(?=^###|\Z)", SECTIONS[3], re.MULTILINE | re.DOTALL)
    assert found, f"no table of {name}"
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \| [^|]* \|$", found.group(1), re.MULTILINE))


@pytest.mark.parametrize("name", [*MESSAGES, *PARTS])
def test_each_table_names_exactly_the_fields_with_their_types_and_limits(name):
    assert table(name) == fields_of((MESSAGES | PARTS)[name])


def test_the_page_has_no_message_that_the_code_has_not():
    headings = re.findall(r"^#### `(\w+)`", SECTIONS[3], re.MULTILINE)
    assert sorted(set(headings)) == sorted({*MESSAGES, *PARTS})


def test_the_error_codes_are_exactly_those_of_the_table():
    assert len(get_args(ErrorCode)) <= 20
    assert re.findall(r"^\| `([a-z-]+)` \|", SECTIONS[6], flags=re.MULTILINE) == list(get_args(ErrorCode))


def test_the_limits_are_those_of_the_code():
    assert f"at most {Limits().header_bytes:,}".replace(",", " ") in SECTIONS[2]
    assert f"at most {Limits().frames} " in SECTIONS[2]
    assert f"protocol between device and server, version {VERSION}" in TEXT.splitlines()[0]
    copies = ", ".join(f"c = {copies} for {kind}" for kind, copies in ACTIVATION_COPIES.items())
    assert copies in SECTIONS[4]
    assert f"{STRANGER_BYTES // MIB} MiB" in SECTIONS[1]
    assert f"{TIMINGS.stranger_s:g} s" in SECTIONS[1]
    assert f"{MOST_STRANGERS} such" in SECTIONS[1]
    assert f"at most {ServiceSettings().per_device} sessions" in SECTIONS[4]


def test_the_seconds_are_those_of_the_code():
    about = dict(re.findall(r"^\| (\d+) \| (.+) \|$", SECTIONS[4].split("**Seconds.**")[1], re.MULTILINE))
    life_s = signature(OneTimeCodes.new_code).parameters["lifetime_s"].default
    for value, words in (
        (TIMINGS.ping_s, "pings"),
        (TIMINGS.silence_s, "counts a connection as lost"),
        (LOCK_LIMIT_S, "code is looked up"),
        (TIMINGS.left_s, "another of its key"),
        (TIMINGS.stranger_s, "without a session"),
        (TIMINGS.gone_s, "does not take"),
        (TIMINGS.silent_s, "room for anybody's"),
        (life_s, "one-time code"),
        (TIMINGS.idle_s, "put to sleep"),
    ):
        assert words in about.get(f"{value:g}", ""), words
    assert f"for {ServiceSettings().keep_days:g} days" in SECTIONS[4]
    assert f"once, for {life_s:g} s" in " ".join(SECTIONS[1].split())
    assert f"| `HANDSHAKE_IVL` | {TIMINGS.handshake_limit_s:g} s |" in SECTIONS[1]


def test_what_a_server_takes_in_is_what_its_welcome_says():
    settings = ServiceSettings()
    limits = service_limits(settings)
    assert limits.frame_bytes == limits.total_bytes == settings.share_bytes  # and that is `budget_bytes`
    assert "`budget_bytes` of its `welcome`" in SECTIONS[1]
    queue = signature(DeviceSocket).parameters["high_water"].default
    assert f"| `SNDHWM` on the device | {queue} |" in SECTIONS[1]
    assert f"| `version` | int 0 … 2^53 | {VERSION} |" in SECTIONS[3]


def test_adamw_has_the_constants_of_the_page():
    group = Trained({"w": nn.Parameter(torch.ones(1))}).optimizer.param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
    assert "0.999 v" in SECTIONS[4]
    assert "1e-8" in SECTIONS[4]


START_TABLE = re.compile(r"^\| ([^|\n]+) \| weight \| at the start \| bias \|\n(.+?)\n\n", re.MULTILINE | re.DOTALL)
START_ROW = re.compile(r"^\| `(\S+)` \| (.+?) \| (.+?) \|(?: (\w+))? \|$", re.MULTILINE)


def first_weights(spec: SideSpec) -> dict[str, torch.Tensor]:
    """Names, shapes and values by the tables and the rule of section 4."""
    tables = {title: START_ROW.findall(rows) for title, rows in START_TABLE.findall(SECTIONS[4])}
    d, m, count = spec.width, spec.width // spec.reduction, len(spec.layers)
    sizes = {"C": spec.n_labels, "d": d, "r": spec.rank, "m": m, "2m": 2 * m, "3m": 3 * m}
    variances = {"N(0, 1/d)": 1 / d, "N(0, 1/m)": 1 / m, "N(0, 1/2m)": 1 / (2 * m), "N(0, 0.02²)": 0.02**2}
    side = [
        (name.replace(".i", f".{i}"), *row)
        for in_blocks in (False, True)  # `down` of every i, then the blocks
        for i in range(count)
        for name, *row in tables[spec.kind]
        if (".i" in name or i == 0) and (".blocks." in name) == in_blocks
    ]
    made = {"adapter.side.gates": torch.zeros(count - 1)}
    if spec.normalization == "layer":
        side += [
            (f"adapter.side.norms.{i}", *row) for i in range(count) for n, *row in tables["ladder"] if ".norms." in n
        ]
    if spec.pooling == "attention":
        assert '"attention", `adapter.head.query` is (`heads`, d / `heads`), 0.' in SECTIONS[4]
        made["adapter.head.query"] = torch.zeros(spec.heads, d // spec.heads)
    for rows in (side, tables["with a pooling"] if spec.pooling else []):
        generator = torch.Generator().manual_seed(spec.seed)
        for name, shape, start, bias in rows:
            weight = made[f"{name}.weight"] = torch.zeros([sizes[size] for size in shape.split(", ")])
            if start in variances:
                weight.normal_(std=variances[start] ** 0.5, generator=generator)
            else:
                weight += int(start)
            if bias:
                made[f"{name}.bias"] = torch.zeros(sizes[bias])
    return made


@pytest.mark.parametrize("pooling", [None, "mean"])
@pytest.mark.parametrize("kind", ["full-width", "ladder"])
def test_names_shapes_and_first_weights_are_those_of_the_page(kind, pooling):
    spec = SideSpec.of(kind=kind, width=32, layers=[1, 2, 3], n_labels=3, rank=4, reduction=2, pooling=pooling, seed=11)
    ours = {f"adapter.{name}": tensor.detach() for name, tensor in SideAdapter(spec).named_parameters()}
    theirs = first_weights(spec)
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(theirs[name], tensor), name


def test_so_are_those_of_norms_and_a_pooling_by_attention():
    shape = {"width": 32, "layers": [1, 2], "rank": 4, "heads": 8, "seed": 5}
    spec = SideSpec.of(**shape, normalization="layer", pooling="attention")
    ours = {f"adapter.{name}": tensor.detach() for name, tensor in SideAdapter(spec).named_parameters()}
    theirs = first_weights(spec)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def test_names_and_shapes_of_a_copy_of_the_backbones_blocks_are_those_of_the_page():
    tables = dict(START_TABLE.findall(SECTIONS[4]))
    spec = SideSpec.of(kind="ladder", start="backbone", width=32, layers=[1, 2, 3], reduction=2, feed_forward=24)
    sizes = {"d": 32, "m": 16, "F": 24}
    theirs = {"adapter.side.gates": (1,)}
    for names, shape, _, bias in START_ROW.findall(tables["a ladder that starts from the backbone"]):
        for i in range(2):
            name = names.replace(".i", f".{i}")
            theirs[f"{name}.weight"] = tuple(sizes[size] for size in shape.split(", "))
            theirs |= {f"{name}.bias": (sizes[bias],)} if bias else {}
    assert theirs == {f"adapter.{name}": tuple(tensor.shape) for name, tensor in SideAdapter(spec).named_parameters()}
    assert "one block less than it has layers" in SECTIONS[4]


def test_so_are_those_of_a_copy_of_llamas_blocks():
    tables = dict(START_TABLE.findall(SECTIONS[4]))
    shape = {"width": 32, "layers": [1, 2, 3], "reduction": 1, "feed_forward": 24, "heads": 4}
    spec = SideSpec.of(kind="ladder", start="backbone", **shape, gated=(2, 10_000))
    sizes = {"d": 32, "F": 24, "e": 16}
    theirs = {"adapter.side.gates": (1,), "adapter.side.up.weight": (32, 32)}
    theirs |= {
        f"adapter.side.down.{i}.{name}": (32,) * (2 - (name == "bias")) for i in range(2) for name in ("weight", "bias")
    }
    for names, shape, _, bias in START_ROW.findall(tables["its blocks where it is `gated`"]):
        for i in range(2):
            theirs[f"{names.replace('.i.', f'.{i}.')}.weight"] = tuple(sizes[size] for size in shape.split(", "))
        assert not bias
    assert theirs == {f"adapter.{name}": tuple(tensor.shape) for name, tensor in SideAdapter(spec).named_parameters()}


# ---------------------------------------------------------------------- a client written from the page alone


class Reader:
    """msgpack and the frames of section 2, with nothing but the standard library."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        self.at += n
        assert self.at <= len(self.data)
        return self.data[self.at - n : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(">" + form, self.take(struct.calcsize(form)))[0]

    def value(self) -> Any:
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 256
        if first < 0x90:
            return {self.value(): self.value() for _ in range(first & 15)}
        if first < 0xA0:
            return [self.value() for _ in range(first & 15)]
        if first < 0xC0:
            return self.take(first & 31).decode()
        if first in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        numbers = {0xCB: "d", 0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q"}
        if first in numbers:
            return self.number(numbers[first])
        if first in (0xC4, 0xD9):
            raw = self.take(self.number("B"))
            return raw if first == 0xC4 else raw.decode()
        assert first in (0xDA, 0xDC, 0xDE), hex(first)
        n = self.number("H")
        if first == 0xDA:
            return self.take(n).decode()
        return [self.value() for _ in range(n)] if first == 0xDC else {self.value(): self.value() for _ in range(n)}


def blake(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def example_frames(text: str) -> list[bytes]:
    return [bytes.fromhex(line.split(": ")[1]) for line in text.splitlines()]


TITLES = [title for title, _, _ in EXAMPLES]


@pytest.mark.parametrize(("title", "message", "frames"), EXAMPLES, ids=TITLES)
def test_a_client_written_from_the_page_reads_the_example(title, message, frames):
    preamble, header, *payloads = example_frames(frames)
    assert preamble == b"MBLM" + bytes([VERSION, 0, 0, 0]) + blake(header)
    reader = Reader(header)
    values = reader.value()
    assert reader.at == len(header)
    described = values.pop("frames", [])
    assert described == [{"n_bytes": len(payload), "digest": blake(payload)} for payload in payloads]
    assert values == json.loads(message)


@pytest.mark.parametrize(("title", "message", "frames"), EXAMPLES, ids=TITLES)
def test_an_example_is_what_the_code_reads_and_writes(title, message, frames):
    raw = example_frames(frames)
    kind = MESSAGES[json.loads(message)["type"]]
    value = msgspec.json.decode(message, type=kind)
    sender = "device" if kind in DEVICE else "server"
    assert [bytes(frame) for frame in to_frames(value, raw[2:])] == raw
    back, payloads = from_frames(raw, sender=sender, limits=Limits())
    assert msgspec.structs.replace(back, **({"frames": []} if raw[2:] else {})) == value
    assert [bytes(payload) for payload in payloads] == raw[2:]


def test_there_is_an_example_of_every_message():
    assert {json.loads(message)["type"] for _, message, _ in EXAMPLES} == set(MESSAGES)


# ---------------------------------------------------------------------- payloads

VALUES = [[1.0, -0.5, 0.25, 0.0], [-2.0, 0.0, 2.0, 1.0]]
SHAPE = (2, 4)


def read_value(name: str, code: int) -> float:
    """What one code stands for, before its scale."""
    bits = BITS[name]
    if name.startswith("int"):
        return float(code - (1 << bits) if code >> (bits - 1) else code)
    if name == "sign":
        return -1.0 if code else 1.0
    if name in ("nf4", "fp4"):
        return (NF4 if name == "nf4" else FP4)[code]
    if name == "bf16":
        return struct.unpack(">f", struct.pack(">I", code << 16))[0]
    if name == "fp8":
        sign, exponent, mantissa = (-1.0 if code >> 7 else 1.0), (code >> 3) & 15, code & 7
        return sign * (mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    form = {"fp16": ("e", "H"), "fp32": ("f", "I")}[name]
    return struct.unpack(">" + form[0], struct.pack(">" + form[1], code))[0]


def read_payload(name: str, group: int, payload: bytes) -> list[list[float]]:
    """Section 7, without the library."""
    tokens, width = SHAPE
    per_token = 0 if name in ("fp32", "fp16", "bf16") else width // (group or width)
    scales = struct.unpack(f"<{tokens * per_token}f", payload[: 4 * tokens * per_token])
    codes, bits = payload[4 * tokens * per_token :], BITS[name]
    row_bytes = -(-width * bits // 8)
    rows = []
    for token in range(tokens):
        row = codes[token * row_bytes : (token + 1) * row_bytes]
        if bits > 8:
            size = bits // 8
            found = [int.from_bytes(row[i * size : (i + 1) * size], "little") for i in range(width)]
        else:
            whole = int.from_bytes(row, "big")
            found = [(whole >> (8 * row_bytes - bits * (i + 1))) & ((1 << bits) - 1) for i in range(width)]
        factors = [scales[token * per_token + i // (width // per_token)] if per_token else 1.0 for i in range(width)]
        rows.append([factor * read_value(name, code) for factor, code in zip(factors, found, strict=True)])
    return rows


def test_there_is_a_payload_of_every_codec_and_one_with_groups():
    assert {name for name, _, _, _ in PAYLOADS} == set(CODECS)
    assert any(group != "0" for _, group, _, _ in PAYLOADS)


@pytest.mark.parametrize(("name", "group", "n_bytes", "text"), PAYLOADS, ids=[f"{n}-{g}" for n, g, _, _ in PAYLOADS])
def test_a_payload_is_what_the_codec_writes_and_a_client_reads(name, group, n_bytes, text):
    raw, coder = bytes.fromhex(text), codec(name, int(group))
    assert len(raw) == int(n_bytes) == coder.wire_bytes(SHAPE)
    assert bytes(coder.encode(torch.tensor(VALUES)).tolist()) == raw
    decoded = coder.decode(torch.tensor(list(raw), dtype=torch.uint8), SHAPE)
    torch.testing.assert_close(torch.tensor(read_payload(name, int(group), raw)), decoded, rtol=1e-6, atol=0)


def test_the_codebooks_on_the_page_are_the_codes():
    for name, book in (("NF4", NF4), ("FP4", FP4)):
        line = re.search(rf"^{name}: ([^\n]+)$", SECTIONS[7], re.MULTILINE)
        assert line
        numbers = [float(struct.unpack("<f", struct.pack("<f", float(text)))[0]) for text in line.group(1).split()]
        assert numbers == [struct.unpack("<f", struct.pack("<f", value))[0] for value in book]
