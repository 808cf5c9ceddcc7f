"""A run of MobiLLM from a device without PyTorch: texts, engine, a session with a server, the trained side network.

    RunSpec + exported folder  ->  plan  ->  a message a step  ->  losses and weights back  ->  side/

The server does not know which engine made the activations.  A device that is killed goes on with the same command: the
session's name lies in the folder, the server has the rest.  Dev and test texts are not scored here, as the side network
is PyTorch's: ``mobillm predict`` labels texts with the folder ``side/`` on any machine that has it.

Knows: exported backbones, texts, the channel.  Knows nothing of: torch, how a server trains.
Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save, save_file

from mobillm_kit.channel.messages import Hello, Plan
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.common import FLOAT_BYTES, installed_version
from mobillm_kit.device.client import ServerClient, route_to
from mobillm_kit.engines import manifest as manifests
from mobillm_kit.engines.engine import Engine
from mobillm_kit.engines.head import word_rows
from mobillm_kit.engines.onnx import OnnxEngine
from mobillm_kit.engines.texts import check_spec, open_texts, usual
from mobillm_kit.engines.uplink import ArrayMessages
from mobillm_kit.errors import BadInput, ServerRefused, first_line, nearest
from mobillm_kit.files import write_bytes, write_with
from mobillm_kit.link.timeline import Timeline
from mobillm_kit.methods import method_row
from mobillm_kit.quant.bitwidth import LADDER, BitWidthController
from mobillm_kit.runs.presets import Preset
from mobillm_kit.runs.progress import Progress
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.side.description import SideSpec, chosen_layers
from mobillm_kit.texts.batches import Batches
from mobillm_kit.texts.encode import Encoded, TextEncoder

SHAPE = ("rank", "reduction", "heads", "start", "normalization", "pooling")
"""Options that go into the side network's description."""
WIRE = ("weight_decay", "averaging", "checkpoint_every", "patience_s", "codec", "group", "cache", "link", "keys")
OPTIONS = (*SHAPE, *WIRE, "server", "labels", "layers", "tokens")
RUN, SESSION = "device.json", "session.json"


class DeviceRun(msgspec.Struct, frozen=True, kw_only=True):
    """What the device knows of a run that is done: ``device.json``."""

    engine: str
    precision: str
    backbone: str
    fingerprint: str
    method: str
    seed: int
    steps: int
    losses: list[float]
    """Of each step, in nats."""
    forwards: int
    """Samples that passed through the backbone, since this process began."""
    bytes_sent: int
    """Since this process began."""
    seconds: float
    """Of training, since this process began."""
    versions: dict[str, str | None]


class _Session(msgspec.Struct, frozen=True):
    name: str
    fingerprint: str
    plan: str
    """Digest of everything that decides what is trained."""
    losses: list[float] = []
    """Of the steps that the device knows to be trained: a server goes back to where the device can follow."""


@dataclass(frozen=True, eq=False)
class Setting:
    """A run, made ready."""

    spec: RunSpec
    engine: OnnxEngine
    runner: Engine
    encoder: TextEncoder
    train: list[Encoded]
    batches: Batches
    plan: Plan
    head: bytes
    options: dict[str, Any]


def train(spec: RunSpec, out: Path, told: Callable[[Progress], object] = id, runner: Engine | None = None) -> DeviceRun:
    """Train a side network on a server; ``runner`` runs the backbone in the exported engine's place.

    Raises:
        BadInput: what an engine cannot do, a folder that is no export, or ``out`` begun with other settings.
    """
    setting = prepare(spec, told, runner)
    session = _session(setting, out)
    timeline, options = Timeline(), setting.options
    codec = options["codec"]
    names = LADDER if codec == "adaptive" else ("fp32" if codec == "none" else codec,)
    side, plan = setting.plan.side, setting.plan
    messages = ArrayMessages(
        setting.runner, setting.batches, setting.train,
        BitWidthController(timeline.average_s, group=options["group"], names=names), timeline,
        layers=side.layers, width=side.width, one_token=plan.max_tokens == 1, cache=plan.cache,
    )  # fmt: skip
    started = time.perf_counter()
    with ExitStack() as stack:
        way = route_to(options["server"], link=options["link"], keys=options["keys"], folder=out / "server")
        connect, code = stack.enter_context(way)
        client = ServerClient(
            connect, Hello(session=session.name, name="device", code=code, position=0, plan=plan, frames=[]),
            [setting.head] if setting.head else [], timeline, messages.of_step,
            position=len(session.losses), patience_s=options["patience_s"],
        )  # fmt: skip
        stack.callback(client.close)
        losses = _steps(client, plan.steps, told, session, out / SESSION)
        weights = _checked(client.fetch(plan.steps, FLOAT_BYTES * side.values()), side)
        found = _described(setting, losses, messages.forwards, client.bytes_sent, time.perf_counter() - started)
    _keep(setting, weights, found, out)
    return found


def _steps(
    client: ServerClient, steps: int, told: Callable[[Progress], object], session: _Session, noted: Path
) -> list[float]:
    losses = session.losses
    for step in range(len(losses), steps):
        client.send(step + 1)
        if new := client.take_losses():
            losses += new
            write_bytes(noted, msgspec.json.encode(session))
        told(Progress(step=step + 1, steps=steps, loss=losses[-1] if losses else None))
    client.drain(steps)
    return losses + client.take_losses()


def prepare(spec: RunSpec, told: Callable[[Progress], object] = id, runner: Engine | None = None) -> Setting:
    """Engine, texts, batches and plan of a run."""
    check_spec(spec)
    engine = OnnxEngine(Path(spec.backbone).expanduser())
    about = engine.manifest
    manifests.check_use(about, None)
    found = usual(spec, engine)
    options = _options(spec, found, about.kind)
    texts = open_texts(spec, engine, found, told)
    encoder, batches = texts.encoder, texts.batches
    side = _side(spec, engine, options, len(encoder.task.labels))
    head = b"" if about.head is None else _head(engine, encoder.label_ids())
    plan = Plan(
        fingerprint=about.fingerprint,
        side=side,
        first=None,
        head=about.head and replace(about.head, rows=side.n_labels),
        labels="server",
        weight_decay=options["weight_decay"],
        averaging=options["averaging"],
        steps=batches.settings.steps,
        checkpoint_every=options["checkpoint_every"],
        max_rows=batches.settings.batch_size,
        max_tokens=1 if _one_token(options["tokens"], side) else batches.longest,
        n_samples=batches.n_samples,
        cache=options["cache"],
    )
    return Setting(spec, engine, runner or engine, encoder, texts.train, batches, plan, head, options)


def _options(spec: RunSpec, found: Preset, kind: str) -> dict[str, Any]:
    """The method's options over the preset's, over the usual ones."""
    default: dict[str, Any] = {
        "weight_decay": 0.0,
        "averaging": 0.0,
        "checkpoint_every": 25,
        "patience_s": TIMINGS.patience_s,
    }
    default |= {"codec": "none", "group": 64, "cache": False, "link": "", "keys": "", "server": "spawn"}
    default |= {"labels": "server", "layers": None, "tokens": "auto"}
    pools = kind == "encoder" and spec.pooling == "mean"  # as `chosen_preset` has it
    own = {name: value for name, value in found.options.items() if pools or name != "pooling"}
    options = {**default, **method_row(spec.method).options, **own, **spec.options}
    options["kind"] = options.pop("side")
    for name in options:
        if name not in (*OPTIONS, "kind"):
            raise BadInput(f"A device with an engine has no option '{name}'.", nearest(name, OPTIONS))
    if options["labels"] != "server":
        problem = f"labels={options['labels']} needs the head's logits, which the device has with PyTorch only."
        raise BadInput(problem, "Give --labels server, or take --engine torch.")
    if options.get("start", "random") != "random":
        problem = "A side network that starts from the backbone's blocks needs their weights, and an engine has none."
        raise BadInput(problem, "Give --option start=random (and reduction=4), or --side full-width.")
    return options


def _side(spec: RunSpec, engine: OnnxEngine, options: dict[str, Any], n_labels: int) -> SideSpec:
    about = engine.manifest
    shape = {name: options[name] for name in ("kind", *SHAPE) if name in options}
    decoder = about.kind == "decoder"
    if decoder and shape.get("pooling"):
        raise BadInput("Label words are read at one token; there is no pooling.", "Leave pooling out.")
    shape["pooling"] = None if decoder else shape.get("pooling") or spec.pooling
    layers = chosen_layers(about.layers, options["layers"])
    sizes = {"width": about.width, "layers": layers, "n_labels": n_labels, "causal": decoder, "seed": spec.seed}
    side = SideSpec.of(**shape, **sizes)
    side.check()
    if layers[-1] != about.layers:
        problem = f"The last tapped layer is {layers[-1]}, the backbone's last is {about.layers}."
        raise BadInput(problem, "Tap the last layer too: its state is what the side network adds to.")
    return side


def _one_token(tokens: str, side: SideSpec) -> bool:
    """Whether the prediction token is enough, and wanted; as the torch device decides it."""
    exact = side.kind == "full-width" and side.pooling in (None, "first")
    if tokens not in ("auto", "all", "prediction") or (tokens == "prediction" and not exact):
        problem = f"tokens='{tokens}' is not possible here."
        raise BadInput(problem, f"Choose 'auto' or 'all'{', or prediction' * exact}.")
    return exact and tokens != "all"


def _head(engine: OnnxEngine, word_ids: tuple[int, ...]) -> bytes:
    """The label words' head as it travels: the norm's tensors, and one row of the projection per word."""
    return save({**load_file(engine.folder / manifests.HEAD), "words.weight": word_rows(engine, word_ids)})


def _session(setting: Setting, out: Path) -> _Session:
    """The session: a new one, or the one that this folder was begun with."""
    about = setting.engine.manifest
    decisive = msgspec.json.encode(setting.plan) + setting.head
    chosen = (setting.batches.settings, setting.options["codec"], setting.options["group"], setting.runner.precision)
    decisive += repr(chosen).encode()
    new = _Session(secrets.token_hex(16), about.fingerprint, hashlib.sha256(decisive).hexdigest())
    if (out / RUN).exists():
        raise BadInput(f"{out}: holds a run that is done.", "Name another folder, or remove this one.")
    path = out / SESSION
    if not path.exists():
        write_bytes(path, msgspec.json.encode(new))
        return new
    try:
        old = msgspec.json.decode(path.read_bytes(), type=_Session)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({first_line(error)}).", "Remove it to begin again.") from error
    manifests.check_fingerprint(about, old.fingerprint)
    if old.plan != new.plan:
        raise BadInput(f"{out}: was begun with other settings.", "Give the same ones, or name another folder.")
    return old


def _checked(data: bytes, side: SideSpec) -> dict[str, np.ndarray]:
    """The side network that came back, safe to keep."""
    try:
        tensors = load(data)
        bad = [name for name, each in tensors.items() if each.dtype != np.float32 or not np.isfinite(each).all()]
        misfit = f"'{bad[0]}' is not of finite float32" if bad else ""
    except (SafetensorError, KeyError, ValueError) as error:
        tensors, misfit = {}, f"no safetensors ({first_line(error)})"
    if not misfit and sum(each.size for each in tensors.values()) < side.values():
        misfit = "weights are missing"
    if not misfit and not all(name.startswith("adapter.") for name in tensors):
        misfit = "it has other tensors"
    if misfit:
        problem = f"The side network that came back is not ours: {misfit}."
        raise ServerRefused(problem, "Look at the server; the same command asks it again.")
    return {name.removeprefix("adapter."): tensor for name, tensor in tensors.items()}


def _described(setting: Setting, losses: list[float], forwards: int, n_bytes: int, seconds: float) -> DeviceRun:
    about = setting.engine.manifest
    return DeviceRun(
        engine=setting.runner.name,
        precision=setting.runner.precision,
        backbone=about.name,
        fingerprint=about.fingerprint,
        method=setting.spec.method,
        seed=setting.spec.seed,
        steps=setting.plan.steps,
        losses=losses,
        forwards=forwards,
        bytes_sent=n_bytes,
        seconds=seconds,
        versions={name: installed_version(name) for name in ("mobillm-kit", "onnxruntime", "numpy", "tokenizers")},
    )


def _keep(setting: Setting, weights: dict[str, np.ndarray], found: DeviceRun, out: Path) -> None:
    """``side/``, as every side network is kept, and ``device.json``."""
    about, task, folder = setting.engine.manifest, setting.encoder.task, out / "side"
    config = {
        "side": setting.plan.side,
        "backbone": about.name,
        "backbone_revision": about.revision,
        "fingerprint": about.fingerprint,
        "task": task.name,
        "prompt": task.prompt,
        "labels": task.labels,
        "label_words": task.label_words,
        "paired": task.pair_column is not None,
        "max_length": setting.encoder.max_length,
        "trained_beside": f"{found.engine}, {found.precision}",
    }
    write_with(folder / "model.safetensors", lambda target: save_file(weights, target, {"format": "pt"}))
    write_bytes(folder / "config.json", msgspec.json.format(msgspec.json.encode(config)))
    write_bytes(out / RUN, msgspec.json.format(msgspec.json.encode(found)))
    (out / SESSION).unlink()
