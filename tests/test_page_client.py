"""Whoever has only docs/protocol.md can train with a real server: `page_client.py` ends in the bytes of one process."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from safetensors.torch import save

from mobillm_kit import quant
from mobillm_kit.channel.join import JoinString
from mobillm_kit.methods import load_method
from mobillm_kit.methods.mobillm import InProcess, MobiLLM
from mobillm_kit.quant.parcels import Upload
from mobillm_kit.server.process import serve
from tests import page_client
from tests.builders import random_batch, tiny_task_model
from tests.conftest import ROOT
from tests.page_client import PageClient, Refused, Sample, Step, differences, gradient

SEED, WIDTH, DECAY = 7, 32, 0.1
ROWS, TOKENS = 10, 9
ORDER = [(0, 1, 2), (3, 4, 5), (6, 7, 0), (1, 8, 9), (2, 2, 5), (9, 0, 4), (7, 3, 6), (8, 1, 5)]
SHAPES = {
    "full-width": {"rank": 4},
    "ladder": {"reduction": 2, "heads": 2},
    "copy": {"reduction": 1, "start": "backbone", "layers": 3},
}

HEADS = {
    "opt": {"norm": "layer", "eps": 1e-5, "tensors": {"norm": "model.decoder.final_layer_norm"}},
    "opt-350m-like": {"norm": "none", "eps": 0.0, "tensors": {"project_out": "model.decoder.project_out"}},
    "llama": {"norm": "rms", "eps": 1e-6, "tensors": {"norm": "model.norm"}},
    "gemma2": {"norm": "rms-plus-one", "eps": 1e-6, "softcap": 30.0, "tensors": {"norm": "model.norm"}},
}
"""What section 3 wants to know of a decoder, and where transformers keeps the tensors."""


@dataclass(frozen=True)
class Scene:
    """A backbone's activations, and what a device would say of them."""

    model: str
    side: str
    pooling: str | None
    samples: list[Sample]
    plan: dict
    head: bytes

    @property
    def steps(self) -> list[Step]:
        return [Step([self.samples[i] for i in rows], 0.01 / (n + 1)) for n, rows in enumerate(ORDER)]

    def planned(self, **changes) -> dict:
        return {**self.plan, **changes}

    def in_process(self) -> MobiLLM:
        """Device and server of the kit, at step 0."""
        task = tiny_task_model(self.model, pooling=self.pooling or "mean")
        name = "full-width" if self.side == "full-width" else "ladder"
        return load_method(f"mobillm-{name}")(task, seed=SEED, weight_decay=DECAY, **SHAPES[self.side])


@cache
def scene(model: str, side: str, pooling: str | None = None) -> Scene:
    made = Scene(model, side, pooling, [], {}, b"")
    method = made.in_process()
    batch = random_batch(rows=ROWS, length=TOKENS, kind="encoder" if pooling else "decoder", seed=3)
    upload = method.device.upload(batch)
    logits = method.server.start_logits(upload).numpy()
    for row in range(ROWS):
        real = upload.mask[row].bool()
        layers = [tap[row][real].numpy() for tap in upload.activations]
        position = int(real[: int(upload.positions[row])].sum())
        made.samples.append(Sample(row, layers, position, int(batch.labels[row]), logits[row]))
    head, tensors = (None, b"") if pooling else described(model)
    made.plan.update(
        fingerprint="any text",
        side={
            "kind": side,
            "width": WIDTH,
            "layers": list(method.device.layers),
            "n_labels": 2,
            **{"rank": 65536, "reduction": 65536, "heads": 1024, **SHAPES[side]},
            "causal": pooling is None,
            "start": "random",
            "feed_forward": 0,
            "norm_eps": 0.0,
            "pooling": pooling,
            "seed": SEED,
        },
        first=None,
        head=head,
        labels="server",
        weight_decay=DECAY,
        steps=len(ORDER),
        checkpoint_every=4,
        max_rows=3,
        max_tokens=max(len(sample.layers[0]) for sample in made.samples),
        n_samples=ROWS,
        cache=False,
    )
    return Scene(model, side, pooling, made.samples, made.plan, tensors)


def described(model: str) -> tuple[dict, bytes]:
    """A decoder's head in the page's words."""
    task, about = tiny_task_model(model), HEADS[model]
    state = task.backbone.model.state_dict()
    words = task.backbone.model.get_output_embeddings().weight.detach()[task.head.word_ids]
    tensors = {"words.weight": words.contiguous()}
    for ours, theirs in about["tensors"].items():
        parts = [name for name in state if name.startswith(theirs + ".")]
        assert parts, theirs
        tensors |= {f"{ours}.{name.rsplit('.', 1)[1]}": state[name] for name in parts}
    head = {
        "norm": about["norm"],
        "eps": about["eps"],
        "project_out": "project_out.weight" in tensors,
        "bias": False,
        "softcap": about.get("softcap"),
        "width": WIDTH,
        "rows": len(words),
    }
    return head, save(tensors)


class Handed:
    """Stands for the kit's device: the activations are there already."""

    def __init__(self, layers) -> None:
        self.layers = layers

    def upload(self, batch: Upload) -> Upload:
        return batch


def uploaded(samples: list[Sample]) -> Upload:
    lengths = torch.tensor([len(sample.layers[0]) for sample in samples])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    taps = []
    for layer in zip(*(sample.layers for sample in samples), strict=True):
        taps.append(torch.zeros(*mask.shape, WIDTH))
        taps[-1][mask] = torch.from_numpy(np.concatenate(layer))
    return Upload(
        activations=tuple(taps),
        mask=mask.to(torch.uint8),
        positions=torch.tensor([sample.position for sample in samples], dtype=torch.int32),
        labels=torch.tensor([sample.label for sample in samples], dtype=torch.int32),
    )


def one_process(scene: Scene, labels: str = "server", codec: str = "fp32", group: int = 0) -> bytes:
    """The side network that the kit trains in this process, as bytes."""
    method = scene.in_process()
    server = method.server
    uplink = InProcess(Handed(method.device.layers), server, quant.codec(codec, group))
    for step in scene.steps:
        upload = uploaded(step.samples)
        arrived, _ = uplink.carried(upload)
        if labels == "server":
            uplink.step(upload, step.lr)
        elif labels == "residual":
            server.train_residual(arrived, torch.from_numpy(differences(step.samples)), step.lr)
        else:
            logits = server.propose(arrived).numpy()
            server.accept(torch.from_numpy(gradient(step.samples, logits)), step.lr)
    return save({name: tensor.contiguous() for name, tensor in method.trained().items()})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """One that encrypts, and knows nobody yet."""
    with serve(tmp_path_factory.mktemp("guarded"), keys=tmp_path_factory.mktemp("keys")) as process:
        yield process


def client(server, scene: Scene, codec: str = "fp32", group: int = 0, **plan) -> PageClient:
    return PageClient(server.join, scene.planned(**plan), scene.head, codec=codec, group=group)


OPT = ("opt", "full-width")
SCENES = [OPT, ("opt", "ladder"), ("bert", "full-width", "mean"), ("bert", "ladder", "first")]


def test_the_client_imports_nothing_of_the_kit():
    tree = ast.parse((ROOT / "tests" / "page_client.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add((node.module or "").split(".")[0])
    assert found - sys.stdlib_module_names <= {"msgspec", "zmq", "numpy"}
    assert "importlib" not in found


@pytest.mark.parametrize("cached", [False, True], ids=["sent-each-time", "cache"])
@pytest.mark.parametrize("labels", ["server", "residual", "device"])
@pytest.mark.parametrize("where", SCENES, ids="-".join)
def test_training_from_the_page_ends_in_the_bytes_of_one_process(server, where, labels, cached):
    here = scene(*where)
    with client(server, here, labels=labels, cache=cached) as device:
        device.train(here.steps)
        assert device.fetch() == one_process(here, labels)
    carried = sum(map(len, ORDER))
    assert device.carried < carried if cached else device.carried == carried


def test_a_copy_of_the_backbones_blocks_is_sent_by_the_pages_words_and_trains_as_in_one_process(server):
    here = scene("bert", "copy", "mean")
    task = tiny_task_model("bert", pooling="mean")
    layers = list(task.backbone.blocks)
    taken = first_by_the_page(layers[1:], here.in_process())
    side = {**here.plan["side"], "kind": "ladder", "start": "backbone", "feed_forward": 64, "norm_eps": 1e-12}
    side |= {"reduction": 1, "heads": 4, "layers": [1, 2, 3]}
    first = {"n_bytes": len(taken), "digest": page_client.digest(taken)}
    device = PageClient(server.join, here.planned(side=side, first=first), first=taken)
    with device:
        device.train(here.steps)
        assert device.fetch() == one_process(here)


def first_by_the_page(blocks: list, method: MobiLLM) -> bytes:
    """Section 4's table of a ladder that starts from the backbone, nothing pruned, from transformers' own names."""
    eye, zero = torch.eye(WIDTH), torch.zeros(WIDTH)
    made = {"adapter.side.gates": torch.full((len(blocks) - 1,), 0.2), "adapter.side.up.weight": 0 * eye}
    theirs = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "wide": "intermediate.dense",
        "narrow": "output.dense",
        "mlp_norm": "output.LayerNorm",
    }
    for i, block in enumerate(blocks):
        made |= {f"adapter.side.down.{i}.weight": eye.clone(), f"adapter.side.down.{i}.bias": zero.clone()}
        for ours, name in theirs.items():
            for kind, tensor in block.get_submodule(name).named_parameters():
                made[f"adapter.side.blocks.{i}.{ours}.{kind}"] = tensor.detach().clone()
    classifier = {name: tensor for name, tensor in method.trained().items() if "classifier" in name}
    return save(made | {name: tensor.clone() for name, tensor in classifier.items()})


@pytest.mark.parametrize("model", HEADS)
def test_heads_of_every_kind_come_from_the_pages_words(server, model):
    here = scene(model, "full-width")
    with client(server, here) as device:
        device.train(here.steps)
        assert device.fetch() == one_process(here)


@pytest.mark.parametrize("group", [0, 8])
def test_activations_in_8_bits_train_as_in_one_process(server, group):
    here = scene("opt", "ladder")
    with client(server, here, "int8", group, cache=True) as device:
        device.train(here.steps)
        assert device.fetch() == one_process(here, codec="int8", group=group)


def test_a_join_string_is_all_that_a_stranger_needs_and_the_code_only_once(guarded):
    here = scene(*OPT)
    with client(guarded, here) as device:
        device.train(here.steps)
        assert device.fetch() == one_process(here)
    known = str(JoinString(guarded.address, JoinString.parse(guarded.join).server_key))
    with PageClient(known, here.plan, here.head, keys=device.keys) as again:
        assert again.fetch(0) == save(here.in_process().trained())


# ---------------------------------------------------------------------- what goes wrong


def test_a_lost_connection_and_a_server_that_was_killed_change_no_byte(server):
    here = scene(*OPT)
    with client(server, here, cache=True) as device:
        device.train(here.steps, upto=3)
        message, payloads = device.batch(3, here.steps[3])
        device.send("batch", payloads, **message)
        assert device.connect()["resume"] in (3, 4)  # before its ack nothing may be relied on
        device.train(here.steps, upto=6)
        server.kill()
        server.restart()
        assert device.connect()["resume"] == 4
        device.train(here.steps)
        assert device.fetch() == one_process(here)


def test_a_question_about_another_step_is_a_sentence_and_the_session_goes_on(server):
    here = scene(*OPT)
    with client(server, here) as device:
        device.train(here.steps, upto=2)
        for ask in (device.fetch, lambda step: device.send("checkpoint", sequence=step) or device.receive()):
            with pytest.raises(Refused, match="Step 1 was asked about, training stands at 2") as caught:
                ask(1)
            assert (caught.value.code, caught.value.sequence, caught.value.fatal) == ("bad-sequence", 1, False)
        assert device.checkpoint() == 2
        device.train(here.steps)
        assert device.fetch() == one_process(here)


def test_a_step_that_jumps_ahead_is_asked_for_and_nothing_is_lost(server):
    here = scene(*OPT)
    with client(server, here) as device:
        message, payloads = device.batch(3, here.steps[3])
        device.send("batch", payloads, **message)
        assert device.expect("need")[0]["sequence"] == 0
        device.train(here.steps)
        assert device.fetch() == one_process(here)


def test_samples_believed_held_are_asked_for_once_and_come(server):
    here = scene(*OPT)
    with client(server, here, cache=True) as device:
        device.held = {0, 4}
        device.train(here.steps)
        assert device.fetch() == one_process(here)


def test_the_second_batch_without_what_was_asked_for_is_refused(server):
    here = scene(*OPT)
    with client(server, here, cache=True) as device:
        device.held = {0, 1, 2}
        message, payloads = device.batch(0, here.steps[0])
        device.send("batch", payloads, **message)
        assert device.expect("need")[0]["sequence"] == 0
        device.send("batch", payloads, **message)
        with pytest.raises(Refused) as caught:
            device.receive()
        assert (caught.value.code, caught.value.fatal) == ("bad-values", True)
        with pytest.raises(Refused, match="session-over"):
            device.fetch(0)


def test_a_damaged_payload_is_said_and_asked_for_again(server):
    here = scene(*OPT)
    with client(server, here) as device:
        message, payloads = device.batch(0, here.steps[0])
        frames = page_client.to_frames({"type": "batch", **message}, payloads)
        device.send_frames([*frames[:-1], bytes(len(frames[-1]))])
        with pytest.raises(Refused, match="bad-digest") as caught:
            device.receive()
        assert not caught.value.fatal
        assert device.expect("need")[0]["sequence"] == 0
        device.train(here.steps)
        assert device.fetch() == one_process(here)


# ---------------------------------------------------------------------- what training is


@pytest.mark.parametrize(
    "where", [*SCENES, *((model, "full-width") for model in HEADS if model != "opt")], ids="-".join
)
def test_the_result_computes_what_section_4_says(server, where):
    """The page's formulas in numpy give the server's own logits, after steps that moved every tensor."""
    here = scene(*where)
    head = load(here.head) if here.head else {}
    with client(server, here, labels="device") as device:
        device.train(here.steps, upto=6)
        trained = load(device.fetch())
        message, payloads = device.batch(6, here.steps[6])
        device.send("batch", payloads, **message)
        _, (raw,) = device.expect("logits")
    logits = np.frombuffer(raw, "<f4").reshape(3, 2)
    start = np.stack([sample.backbone_logits for sample in here.steps[6].samples])
    assert np.abs(logits - start).max() > 1e-3
    assert np.allclose(page_client.predict(here.plan, head, trained, here.steps[6].samples), logits, atol=1e-5)


def test_the_weights_move_as_section_4_says(server):
    """A step with a gradient that dwarfs eps, then one with none: decay and both moments by the page's constants."""
    here = scene(*OPT)
    lr, weights = 0.5, []
    with client(server, here, labels="device") as device:
        weights.append(load(device.fetch()))
        for sequence, factor in enumerate((1e5, 0.0)):
            message, payloads = device.batch(sequence, Step(here.samples[:3], lr))
            device.send("batch", payloads, **message)
            asked, (raw,) = device.expect("logits")
            logits = np.frombuffer(raw, "<f4").reshape(asked["rows"], asked["columns"])
            answer = gradient(here.samples[:3], logits) * np.float32(factor)
            device.send("gradient", [answer.astype("<f4").tobytes()], sequence=sequence)
            device.expect("ack")
            weights.append(load(device.fetch(sequence + 1)))
    up = "adapter.side.up.0.weight"
    start, one, two = (at[up].astype(np.float64) for at in weights)
    assert not start.any()
    assert np.allclose(np.abs(one), lr, rtol=1e-4)  # g / |g|
    second = (0.9 * 0.1 / (1 - 0.9**2)) / np.sqrt(0.999 * 0.001 / (1 - 0.999**2))
    assert np.allclose(two, one - lr * (second * -np.sign(one) + DECAY * one), rtol=1e-4)  # g had the other sign
