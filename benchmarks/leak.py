"""What a server can read back of what is sent: `python benchmarks/leak.py [--part NAME] [--quick | --check]`.

    reviews, turns   the pocket backbone and its two tasks          minilm, smollm2   real ones on sentences of SST-2
    costs            pocket x turns, full width: what noise, fewer bits and fewer tokens cost in accuracy, leave to read

Each attack knows the backbone, the codec, and texts of its own from the dev split; it reads texts of the train split,
which are what a run sends.  Counted are a text's own tokens: what stands in every text, such as a prompt, is not.

    labels     the sign of prediction differences             nearest   the vocabulary's own states, no training
    inverter   trained on 200 texts of its own                search    left to right, among its 16 likeliest
    cheap      what a run's record has (``read_back``): an inverter reads each token sent, the others are guessed
    words      one token per text: a ridge regression names the text's words, as many as it has; chance: the commonest

Parts go to benchmarks/results/leak.json; ``--quick`` runs a minute of it and writes nothing, ``--check`` holds the
record against the bars and exits 1 where one falls short.  Intervals are of 95 %, by bootstrap over texts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import Tensor
from torch.nn import functional as F

from mobillm_kit.backbone.split import Backbone
from mobillm_kit.device.forward import Device
from mobillm_kit.device.inversion import (
    NearestToken,
    TrainedInverter,
    arrived,
    labels_by_sign,
    own_tokens,
    read_back,
    recovery,
    search,
)
from mobillm_kit.files import write_bytes
from mobillm_kit.methods.mobillm import InProcess, MobiLLM
from mobillm_kit.quant import CODECS, Codec, codec
from mobillm_kit.quant.parcels import Upload
from mobillm_kit.record import Provenance, Recovery
from mobillm_kit.runs.prepare import Prepared, build_method, prepare, training_batches
from mobillm_kit.runs.provenance import clean_command, provenance
from mobillm_kit.runs.run import untrained_logits
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.texts.encode import Batch

RECORD = Path(__file__).resolve().parent / "results" / "leak.json"
SHARED = Path(os.path.relpath(Path(__file__).resolve().parent.parent / ".." / "shared"))
GROUP = 64
CONTROL, WITHIN = 0.95, 0.02
"""The positive control reads at least so much; the negative one is so near to chance."""
UNTOUCHED = "as it is"
NOISES, BITS, TOKENS = (1.0, 2.0, 4.0, 8.0), ("int4", "int2", "sign"), (16, 8, 4, 1)
"""Noise in units of a state's root mean square."""


class Cell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One attack on one way of sending."""

    attack: str
    codec: str
    layers: tuple[int, ...]
    """That are read; 0 is the embedding, which no method sends."""
    tokens: str
    texts: int
    read: Recovery


class Attacks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All attacks on one backbone and task."""

    backbone: str
    task: str
    layers: int
    known: int
    """Texts of the attacker."""
    labels: Recovery
    """Of labels, by the sign of prediction differences; chance: guesses dealt out anew."""
    other_text: tuple[Recovery, Recovery]
    """Negative control: the inverter's reading of layer 1 held against the next text, in another order; and the same
    place by place, where a generated text's grammar alone puts the same word at the same place."""
    cells: tuple[Cell, ...]
    provenance: Provenance


class Cost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One setting of a defence."""

    defence: str
    setting: str
    accuracies: tuple[float, ...]
    """Per training seed, on the test split, from the last step.  Of fewer tokens they are those without a defence: this
    side network reads the prediction token alone, and that is always sent."""
    coded: bool
    """Whether the texts to label went through the defence too, at home: chosen on dev."""
    read: Recovery
    """By the cheap attack on all layers that are sent, trained through the same defence."""

    @property
    def accuracy(self) -> float:
        return statistics.fmean(self.accuracies)


class Costs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What defences cost."""

    method: str
    task: str
    steps: int
    train: int
    test: int
    costs: tuple[Cost, ...]
    provenance: Provenance


class Leak(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record, part by part."""

    attacks: dict[str, Attacks] = {}
    costs: Costs | None = None


# ---------------------------------------------------------------------- attacks


@dataclass(frozen=True)
class Plan:
    """How much of the grid is made for one backbone and task."""

    spec: RunSpec
    steps: int = 150
    """Of the inverter."""
    known: int = 200
    sent: int = 48
    searched: int = 8
    searched_up_to: int = 99
    """The highest layer that is searched: each candidate goes through all layers below."""
    nearest: Callable[[int], tuple[int, ...]] = lambda n: (0, 1, n // 2, n)
    """Layers, of n, at which the whole vocabulary is forwarded."""
    trained: Callable[[int], tuple[int, ...]] = lambda n: (0, 1, n // 2, n)
    """Layers that inverters are trained for."""
    at_first: tuple[str, ...] = ("fp32", "fp8", "int8", "int4", "nf4", "int2", "sign")
    """Codecs at layer 1, the lowest that a method sends."""
    elsewhere: tuple[str, ...] = ("fp32", "sign")
    top: tuple[int, ...] = (16, 8, 4)
    together: bool = True
    """Whether one inverter reads all layers together."""


def plans() -> dict[str, Plan]:
    minilm = {"backbone": str(SHARED / "models/minilm-l6-h384"), "task": "sst2", "data": str(SHARED / "data/sst2")}
    pocket = {
        task: Plan(spec(task=task, limit_train=48, limit_dev=200, limit_test=10)) for task in ("reviews", "turns")
    }
    real = Plan(
        spec(**minilm, limit_train=48, limit_dev=200, limit_test=10), steps=60, nearest=lambda n: (0, 1),
        trained=lambda n: (1, n // 2, n), at_first=("fp32", "int8", "int4", "sign"), top=(8,), together=False,
    )  # fmt: skip
    smol = {
        **minilm,
        "backbone": str(SHARED / "models/smollm2-135m"),
        "limit_train": 12,
        "limit_dev": 48,
        "limit_test": 10,
    }
    decoder = replace(real, spec=spec(**smol), searched=2, searched_up_to=1)
    return {**pocket, "minilm": real, "smollm2": decoder}


def spec(**settings: Any) -> RunSpec:
    return RunSpec(method="mobillm-ladder", accelerator="cpu", **settings)


class Remembering:
    """A backbone that forwards a batch once; the cells are many, the activations always the same."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._states: dict[tuple[int, ...], list[Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def hidden_states(self, ids: Tensor, *others: Any) -> Iterator[Tensor]:
        key = tuple(ids.flatten().tolist())
        if key not in self._states:
            self._states[key] = list(self._backbone.hidden_states(ids, *others))
        return iter(self._states[key])


def attacks(plan: Plan, command: str) -> Attacks:
    prepared = prepare(plan.spec)
    batches = [prepared.encoder.collate(rows) for rows in (prepared.dev[: plan.known], prepared.train[: plan.sent])]
    remembering = cast(Backbone, Remembering(prepared.backbone))
    made = Reader(plan, remembering, *batches)
    return Attacks(
        backbone=prepared.backbone.name,
        task=prepared.data.task.name,
        layers=prepared.backbone.n_layers,
        known=len(batches[0].labels),
        labels=labels_read(prepared, batches[1]),
        cells=tuple(made.cells()),
        other_text=made.other_text(),
        provenance=provenance(command),
    )


def labels_read(prepared: Prepared, sent: Batch) -> Recovery:
    """The labels of residuals, with the untrained model's own answer as the device's prediction."""
    chance = untrained_logits(prepared, prepared.train[: sent.rows]).softmax(dim=1)
    found = labels_by_sign(F.one_hot(sent.labels, chance.shape[1]) - chance)
    return recovery(found.unsqueeze(1), sent.labels.unsqueeze(1), torch.ones(sent.rows, 1))


class Reader:
    """The attacks on one backbone and task, cell by cell."""

    def __init__(self, plan: Plan, backbone: Backbone, known: Batch, sent: Batch) -> None:
        self.plan, self.backbone, self.known, self.sent = plan, backbone, known, sent
        with torch.no_grad():
            self.states = [
                list(backbone.hidden_states(b.input_ids, b.attention_mask, b.token_type_ids)) for b in (known, sent)
            ]
        self.own = own_tokens(sent)
        self.first: Tensor | None = None
        """What the inverter of layer 1 read, float32."""

    def cells(self) -> Iterator[Cell]:
        plan, n = self.plan, self.backbone.n_layers
        for layer in plan.nearest(n):
            table = NearestToken(self.backbone_once, int(self.sent.input_ids[0, 0]), layer)
            for name in CODECS:
                found = table.read(through(name, self.states[1][layer]), self.sent.attention_mask)
                yield self.cell("nearest", name, (layer,), found)
        for layer in sorted({*plan.trained(n)}):
            for name in plan.at_first if layer == 1 else plan.elsewhere:
                yield from self.trained(name, (layer,))
        for name in plan.elsewhere if plan.together else ():
            yield from self.trained(name, tuple(range(1, n + 1)))
        yield from self.shortcuts()

    def trained(self, name: str, layers: tuple[int, ...]) -> Iterator[Cell]:
        """An inverter, and a search on top of it where one layer of a decoder is read."""
        scores = self.scores(name, layers)
        found = best(scores)
        if (name, layers) == ("fp32", (1,)):
            self.first = found
        yield self.cell("inverter", name, layers, found)
        top = max(layers)
        if len(layers) > 1 or not 0 < top <= self.plan.searched_up_to or self.backbone.kind == "encoder":
            return
        few, layer = self.plan.searched, layers[0]
        state, mask = through(name, self.states[1][layer][:few]), self.sent.attention_mask[:few]
        found = search(
            self.backbone_once, layer, state, mask, torch.stack(scores[:few]), carried=lambda x: through(name, x)
        )
        yield self.cell("search", name, layers, found)

    @property
    def backbone_once(self) -> Backbone:
        """For attacks that never ask twice, and need no layer above the one they read: nothing is worth remembering."""
        return cast(Backbone, self.backbone._backbone)

    def scores(self, name: str, layers: tuple[int, ...]) -> list[Tensor]:
        """An inverter's, trained on the known texts: (T, V) of each text that was sent."""
        real, ids = self.known.attention_mask.bool(), self.known.input_ids
        known, sent = (torch.cat([through(name, each[layer]) for layer in layers], dim=-1) for each in self.states)
        inverter = TrainedInverter(self.backbone, len(layers))
        inverter.fit(known[real], ids[real], steps=self.plan.steps)
        return [inverter.scores(text) for text in sent]

    def shortcuts(self) -> Iterator[Cell]:
        """All layers that a method sends, of one token and of the top k."""
        layers = tuple(range(1, self.backbone.n_layers + 1))
        ways = [("words", "one", Device(self.backbone, layers, one_token=True))]
        for k in self.plan.top:
            ways.append(("cheap", f"top {k}", Device(self.backbone, layers, one_token=False, top_tokens=k)))
        for attack, tokens, device in ways:
            for name in self.plan.elsewhere:
                coder, batches = codec(name, GROUP), (self.known, self.sent)
                if attack == "words":
                    figure = words(device, coder, *batches)
                else:
                    figure = read_back(device, coder, *batches, steps=self.plan.steps)
                yield Cell(attack=attack, codec=name, layers=layers, tokens=tokens, texts=self.sent.rows, read=figure)

    def other_text(self) -> tuple[Recovery, Recovery]:
        """The inverter's reading of layer 1 held against the next text: in another order, and place by place."""
        found = best(self.scores("fp32", (1,))) if self.first is None else self.first
        ids, n = self.sent.input_ids, len(self.own)
        generator, dealt = torch.Generator().manual_seed(0), torch.zeros_like(ids)
        for row in range(n):
            guesses = found[row - 1][self.own[row - 1]]
            places = torch.arange(int(self.own[row].sum())) % len(guesses)
            dealt[row, self.own[row]] = guesses[torch.randperm(len(guesses), generator=generator)][places]
        both = self.own & self.own.roll(1, dims=0)
        return recovery(dealt, ids, self.own), recovery(found.roll(1, dims=0), ids, both)

    def cell(self, attack: str, name: str, layers: tuple[int, ...], found: Tensor) -> Cell:
        n = len(found)
        read = recovery(found, self.sent.input_ids[:n], self.own[:n])
        return Cell(attack=attack, codec=name, layers=layers, tokens="all", texts=n, read=read)


def best(scores: Sequence[Tensor]) -> Tensor:
    """Per text (T, V) to (B, T)."""
    return torch.stack([text.argmax(dim=-1) for text in scores])


def words(device: Device, coder: Codec, known: Batch, sent: Batch, ridge: float = 0.3) -> Recovery:
    """Which words a text has, from its one token: ridge regression from all layers onto what known texts have."""
    (taps, _), (theirs, _) = (arrived(device, coder, batch) for batch in (known, sent))
    own, counted = own_tokens(known), own_tokens(sent)
    has = torch.zeros(known.rows, device.backbone.n_tokens).scatter_add_(1, known.input_ids, own.float()).clamp(max=1)
    x, z = torch.cat(taps, dim=1), torch.cat(theirs, dim=1)
    mean, deviation, usual = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6) * x.shape[1] ** 0.5, has.mean(dim=0)
    x, z = (x - mean) / deviation, (z - mean) / deviation
    likely = usual + z @ x.T @ torch.linalg.solve(x @ x.T + ridge * torch.eye(len(x)), has - usual)
    blind = among_likeliest(usual.expand(sent.rows, -1), sent.input_ids, counted)
    read = among_likeliest(likely, sent.input_ids, counted)
    found = recovery(torch.where(read, sent.input_ids, sent.input_ids + 1), sent.input_ids, counted)
    return msgspec.structs.replace(found, chance=float(blind[counted].float().mean()))


def among_likeliest(scores: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T) bool: whether a token is among its text's n likeliest by ``scores`` (B, V), n as many as it has."""
    rows = zip(scores, ids, mask, strict=True)
    return torch.stack([torch.isin(row, score.topk(len(row[own].unique())).indices) for score, row, own in rows])


def through(name: str, x: Tensor) -> Tensor:
    """What arrives of activations (…, d)."""
    coder = codec(name, GROUP)
    return coder.decode(coder.encode(x.float()), tuple(x.shape))


# ---------------------------------------------------------------------- what defences cost


def noised(taps: Sequence[Tensor], times: float, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Normal noise on each token's state, ``times`` its root mean square; nothing is drawn for none."""
    if not times:
        return tuple(taps)
    sizes = [times * tap.float().square().mean(dim=-1, keepdim=True).sqrt() for tap in taps]
    pairs = zip(taps, sizes, strict=True)
    return tuple(tap + size * torch.randn(tap.shape, generator=generator) for tap, size in pairs)


class NoisyDevice(Device):
    """What the attack sees of a device that adds noise."""

    noise = 0.0

    def upload_and_places(self, batch: Batch) -> tuple[Upload, Tensor]:
        upload, places = super().upload_and_places(batch)
        generator = torch.Generator().manual_seed(batch.rows)
        return replace(upload, activations=noised(upload.activations, self.noise, generator)), places


def some(upload: Upload, rows: Sequence[int]) -> Upload:
    """Of these texts."""
    taps = tuple(tap[list(rows)] for tap in upload.activations)
    others = {name: getattr(upload, name)[list(rows)] for name in ("mask", "positions", "labels")}
    return Upload(activations=taps, **others)


def trained(
    prepared: Prepared, train: Upload, noise: float, coder: Codec
) -> tuple[MobiLLM, Callable[[Upload], Upload]]:
    """A full-width side network trained on what arrives of the prediction tokens; and how an upload arrives."""
    method, batches = cast(MobiLLM, build_method(prepared)), training_batches(prepared)
    uplink, generator = (
        InProcess(method.device, method.server, coder),
        torch.Generator().manual_seed(prepared.spec.seed),
    )

    def arrives(upload: Upload) -> Upload:
        taps = noised(upload.activations, noise, generator)
        return replace(uplink.carried(replace(upload, activations=taps))[0], labels=upload.labels)

    for step in range(batches.settings.steps):
        method.server.train(arrives(some(train, batches.samples(step))), batches.lr(step))
    return method, arrives


def accuracies(
    prepared: Prepared, splits: Mapping[str, Upload], noise: float, coder: Codec
) -> dict[str, tuple[float, float]]:
    """On dev and on test: of texts as they are, and of texts through the defence."""
    method, arrives = trained(prepared, splits["train"], noise, coder)

    def right(upload: Upload) -> float:
        return float((method.server.logits(upload).argmax(dim=1) == upload.labels).float().mean())

    return {name: (right(splits[name]), right(arrives(splits[name]))) for name in ("dev", "test")}


def costs(command: str, steps: int | None = None, few: bool = False) -> Costs:
    told = [
        RunSpec(
            method="mobillm-full-width", task="turns", accelerator="cpu", steps=steps, seed=seed, limit_train=2000,
            limit_dev=200, limit_test=1000,
        )
        for seed in range(1 if few else 3)
    ]  # fmt: skip
    runs = [prepare(each) for each in told]
    backbone, rows = runs[0].backbone, runs[0].encoder.collate
    layers = tuple(range(1, backbone.n_layers + 1))
    device = Device(backbone, layers, one_token=True)
    splits = {name: device.upload(rows(getattr(runs[0], name))) for name in ("train", "dev", "test")}
    settings = [("none", UNTOUCHED), *(("noise", f"{each:g}") for each in NOISES)]
    settings += [*(("bits", name) for name in BITS), *(("tokens", str(k)) for k in TOKENS)]
    made: list[Cost] = []
    for defence, setting in settings[:2] if few else settings:
        noise, coder = (
            float(setting) if defence == "noise" else 0.0,
            codec(setting if defence == "bits" else "fp32", GROUP),
        )
        k = int(setting) if defence == "tokens" else None
        seen = NoisyDevice(backbone, layers, one_token=k == 1, top_tokens=None if k == 1 else k)
        seen.noise = noise
        read = read_back(seen, coder, rows(runs[0].dev[:200]), rows(runs[0].train[:48]))
        found = [accuracies(prepared, splits, noise, coder) for prepared in runs]
        coded = statistics.fmean(each["dev"][1] for each in found) > statistics.fmean(each["dev"][0] for each in found)
        reached = tuple(each["test"][coded] for each in found)
        made.append(Cost(defence=defence, setting=setting, accuracies=reached, coded=coded, read=read))
        print(f"  {defence} {setting}: accuracy {made[-1].accuracy:.1%}, read {read.share:.1%}", flush=True)
    return Costs(
        method=told[0].method, task="turns", steps=training_batches(runs[0]).settings.steps, train=len(runs[0].train),
        test=len(runs[0].test), costs=tuple(made), provenance=provenance(command),
    )  # fmt: skip


# ---------------------------------------------------------------------- reading


def read(path: Path = RECORD) -> Leak:
    return msgspec.json.decode(path.read_bytes(), type=Leak) if path.exists() else Leak()


def shown(read: Recovery) -> str:
    """The share with its interval, in percent."""
    return f"{100 * read.share:.0f} ({100 * read.low:.0f} to {100 * read.high:.0f})"


def find(part: Attacks, attack: str, codec: str, layers: Sequence[int], tokens: str = "all") -> Recovery | None:
    """The figure of one cell; None where it was not measured."""
    wanted = (attack, codec, tuple(layers), tokens)
    return next((c.read for c in part.cells if (c.attack, c.codec, c.layers, c.tokens) == wanted), None)


def named(name: str) -> str:
    """A part's backbone and task in words."""
    real = {"minilm": "MiniLM × SST-2", "smollm2": "SmolLM2 × SST-2"}
    return real.get(name, f"pocket × {name}")


def table(leak: Leak) -> str:
    """What the strongest attack reads, in percent of the tokens."""
    lines = ["| strongest attack, % | codec | layer 0 | layer 1 | middle | last | all layers | top 8 | one token |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, part in leak.attacks.items():
        n = part.layers
        every = tuple(range(1, n + 1))
        for each in ("fp32", "sign"):
            cells = [strongest(part, each, layers) for layers in ((0,), (1,), (n // 2,), (n,), every)]
            cells += [find(part, "cheap", each, every, "top 8"), find(part, "words", each, every, "one")]
            written = [shown(cell) if cell else "–" for cell in cells]
            written[-1] += f", chance {100 * cells[-1].chance:.0f}" if cells[-1] else ""
            lines.append(f"| {named(name)} | {each} | {' | '.join(written)} |")
    return "\n".join(lines)


def strongest(part: Attacks, name: str, layers: Sequence[int]) -> Recovery | None:
    """What the attack that reads most reads: of one layer, or of the layers that a method sends and any one of them."""
    sets = {tuple(layers), *((layer,) for layer in layers)}
    found = [c.read for c in part.cells if c.codec == name and c.layers in sets and c.tokens == "all"]
    return max(found, key=lambda read: read.share, default=None)


def by_attack(leak: Leak) -> str:
    """Each attack on layer 1, by codec."""
    lines = ["| layer 1, % | codec | nearest | inverter | search |", "|---|---|--:|--:|--:|"]
    for name, part in leak.attacks.items():
        for each in CODECS:
            cells = [find(part, attack, each, (1,)) for attack in ("nearest", "inverter", "search")]
            if any(cells):
                lines.append(f"| {named(name)} | {each} | {' | '.join(shown(c) if c else '–' for c in cells)} |")
    return "\n".join(lines)


def bars(leak: Leak) -> list[tuple[str, float, str, bool]]:
    """What, figure, bar, held."""
    found = []
    for name, part in leak.attacks.items():
        control = strongest(part, "fp32", (0,))
        share = control.share if control else 0.0
        found.append((f"{named(name)}: layer 0, fp32, is read", share, f"≥ {CONTROL:g}", share >= CONTROL))
        off = abs(part.other_text[0].share - part.other_text[0].chance)
        found.append((f"{named(name)}: other texts' activations, off chance by", off, f"≤ {WITHIN:g}", off <= WITHIN))
        labels = part.labels.share
        found.append((f"{named(name)}: labels by their sign", labels, f"≥ {CONTROL:g}", labels >= CONTROL))
    return found


def report(leak: Leak) -> bool:
    """Print everything; whether every bar holds."""
    print(table(leak) + "\n\n" + by_attack(leak) + "\n")
    for each in leak.costs.costs if leak.costs else ():
        print(f"  {each.defence:7}{each.setting:9} test accuracy {each.accuracy:.1%}, read back {shown(each.read)} %")
    for what, figure, bar, held in bars(leak):
        print(f"  {'ok  ' if held else 'FAIL'}  {what}: {figure:.3g} (bar {bar})")
    return bool(leak.attacks) and all(held for *_, held in bars(leak))


def complete(leak: Leak) -> bool:
    """Whether every part is there."""
    missing = [
        name for name in (*plans(), "costs") if name not in leak.attacks and not (name == "costs" and leak.costs)
    ]
    for name in missing:
        print(f"  FAIL  benchmarks/results/leak.json: no part '{name}'")
    return not missing


def quick(command: str) -> bool:
    plan = replace(plans()["reviews"], at_first=("fp32", "sign"), steps=60, searched=4, top=(8,), together=False)
    return report(Leak({"reviews": attacks(plan, command)}, costs(command, steps=20, few=True)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*plans(), "costs"], action="append", help="all parts if none is named")
    parser.add_argument("--quick", action="store_true", help="a minute of it; nothing is written")
    parser.add_argument("--check", action="store_true", help="hold the committed record against the bars")
    given = parser.parse_args()
    torch.set_num_threads(1)
    command = clean_command(sys.argv)
    if given.check:
        return 0 if report(read()) & complete(read()) else 1
    if given.quick:
        return 0 if quick(command) else 1
    for name in given.part or [*plans(), "costs"]:
        leak = read()
        if name == "costs":
            leak = msgspec.structs.replace(leak, costs=costs(command))
        else:
            leak = msgspec.structs.replace(leak, attacks={**leak.attacks, name: attacks(plans()[name], command)})
        write_bytes(RECORD, msgspec.json.format(msgspec.json.encode(leak), indent=1) + b"\n")
    return 0 if report(read()) else 1


if __name__ == "__main__":
    sys.exit(main())
