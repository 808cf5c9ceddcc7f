"""A backbone as an engine's files: what PyTorch computes, and a sentence for every folder that is not whole."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobillm_kit.backbone.pretrained import load_backbone
from mobillm_kit.cli import main
from mobillm_kit.engines import export, manifest
from mobillm_kit.engines.engine import Eager
from mobillm_kit.engines.export import check_equal, export_backbone
from mobillm_kit.engines.fewer_bits import WITHIN, shrink
from mobillm_kit.engines.onnx import OnnxEngine
from mobillm_kit.errors import BackboneMismatch, BadInput, KitError, MissingExtra, NotEnoughMemory
from tests.builders import save_tiny_model
from tests.families import tiny_backbone

pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'mobillm-kit[onnx]'")
onnx = pytest.importorskip("onnx", reason="needs the extra: pip install 'mobillm-kit[onnx]'")
pytest.importorskip("onnxscript", reason="needs the extra: pip install 'mobillm-kit[onnx]'")

TINY = ("opt", "opt-350m-like", "llama", "bert")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Per family a model folder and its export."""
    place = tmp_path_factory.mktemp("exported")
    made = {}
    for name in TINY:
        model = save_tiny_model(place / f"model-{name}", name)
        made[name] = model, export_backbone(model, place / name)
    return made


@pytest.fixture
def folder(models, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(models["opt"][1], tmp_path / "copy")


def off(backbone, engine, ids, mask, types=None) -> float:
    """Largest difference of any layer at real tokens, relative to the layer's largest value."""
    pairs = list(zip(Eager(backbone).taps(ids, mask, types), engine.taps(ids, mask, types), strict=True))
    assert [layer for (layer, _), _ in pairs] == list(range(backbone.n_layers + 1))
    real = mask.astype(bool)
    return max(np.abs(b - a)[real].max() / np.abs(a[real]).max() for (_, a), (_, b) in pairs)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("name", TINY)
def test_every_batch_and_length_comes_out_as_in_pytorch(models, name, pad):
    backbone, engine = load_backbone(models[name][0]), OnnxEngine(models[name][1])
    for rows, length in ((1, 1), (1, 7), (3, 2), (5, 64)):
        ids = np.random.RandomState(rows).randint(0, 100, (rows, length))
        mask = np.ones_like(ids)
        for row in range(rows):
            short = row % min(3, length)
            mask[row, slice(0, short) if pad == "left" else slice(length - short, length)] = 0
        assert off(backbone, engine, ids, mask) <= WITHIN["float32"]


def test_the_program_on_the_page_about_phones_says_the_same_and_the_page_names_every_file(models):
    page = (Path(__file__).parents[1] / "docs" / "phones.md").read_text(encoding="utf-8")
    program: dict[str, Any] = {}
    exec(page.split("```python")[1].split("```")[0], program)
    ids = np.arange(12).reshape(2, 6)
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    for name, (_, folder) in models.items():
        engine = [state for _, state in OnnxEngine(folder).taps(ids, mask)]
        for by_page, by_kit in zip(program["taps"](folder, ids, mask), engine, strict=True):
            assert np.array_equal(by_page[mask > 0], by_kit[mask > 0]), name
        for file in folder.iterdir():
            assert f"`{re.sub('-[0-9]+', '-0', file.name)}`" in page, file.name


def test_a_second_text_has_its_segment(models):
    backbone, engine = load_backbone(models["bert"][0]), OnnxEngine(models["bert"][1])
    ids, types = np.arange(10).reshape(2, 5), np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    assert off(backbone, engine, ids, np.ones_like(ids), types) <= WITHIN["float32"]
    plain = list(engine.taps(ids, np.ones_like(ids)))[-1][1]
    assert np.abs(plain - list(engine.taps(ids, np.ones_like(ids), types))[-1][1]).max() > 1e-3


def test_each_block_has_its_own_weights_and_no_graph_holds_the_embedding(models):
    """Trap: an embedding as a node is read into memory whole."""
    sizes = set()
    for name in TINY:
        files = sorted(models[name][1].glob("block-*.onnx"))
        assert len(files) == 3
        assert len({path.read_bytes() for path in files}) == 3
        for path in files:
            graph = onnx.load(path).graph
            assert (
                "Gather" not in {node.op_type for node in graph.node}
                or max(np.prod(each.dims, dtype=int) for each in graph.initializer) < 100 * 32
            )
            sizes |= {each.dims[0] for each in graph.initializer if len(each.dims) == 2}
    assert 100 not in sizes  # the vocabulary's
    assert isinstance(OnnxEngine(models["opt"][1]).tables["tokens"], np.memmap)


def products(path: Path) -> list[str]:
    """Products of a graph whose weights are float32 matrices."""
    graph = onnx.load(path).graph
    weights = {each.name for each in graph.initializer if len(each.dims) == 2}
    return [node.op_type for node in graph.node if node.op_type in ("MatMul", "Gemm") and weights & set(node.input)]


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", TINY)
def test_in_few_bits_no_product_keeps_its_weights_in_float32(models, tmp_path, name, precision):
    """Trap: a product that the exporter writes as Gemm is passed over in silence."""
    path = Path(shutil.copy(models[name][1] / "block-0.onnx", tmp_path))
    assert len(products(path)) >= 6
    shrink(path, precision)
    assert not products(path)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_an_export_in_few_bits_is_smaller_near_and_says_what_it_is(models, tmp_path, precision, capsys):
    model, plain = models["llama"]
    out = tmp_path / "small"
    assert main(["export", str(model), str(out), "--precision", precision]) == 0
    sizes = [(folder / "block-1.onnx").stat().st_size for folder in (out, plain)]
    assert sizes[0] < 0.75 * sizes[1]  # of a block of 32 wide, names and scales are the larger part
    backbone, engine = load_backbone(model), OnnxEngine(out)
    assert engine.precision == manifest.read(out).precision == precision
    ids = np.arange(12).reshape(2, 6)
    assert 1e-4 < off(backbone, engine, ids, np.ones_like(ids)) <= WITHIN[precision]
    alone, together = (list(engine.taps(rows, np.ones_like(rows)))[-1][1] for rows in (ids[:1], ids))
    assert np.abs(alone - together[:1]).max() < 1e-5  # the neighbours have no say in a row's result


def test_blocks_for_p_rge_stay_in_float32(models, tmp_path, capsys):
    given = ["export", str(models["opt"][0]), str(tmp_path / "x"), "--method", "p-rge", "--precision", "int8"]
    assert main(given) == 2
    assert "exported in float32, not in int8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_blocks_above_the_limit_are_forgotten_after_each_run_and_say_the_same(models, monkeypatch):
    ids = np.arange(12).reshape(2, 6)
    kept = OnnxEngine(models["llama"][1])
    whole = [state for _, state in kept.taps(ids, np.ones_like(ids))]
    assert len(kept._kept) == 3
    monkeypatch.setattr("mobillm_kit.engines.onnx.KEPT_BYTES", 0)
    streamed = OnnxEngine(models["llama"][1])
    again = [state for _, state in streamed.taps(ids, np.ones_like(ids))]
    assert not streamed._kept
    assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))


def test_the_manifest_says_what_was_exported(models):
    model, folder = models["llama"]
    backbone, found = load_backbone(model), manifest.read(folder)
    assert (found.fingerprint, found.family, found.kind) == (backbone.fingerprint, "llama", "decoder")
    assert (found.width, found.layers, found.context, found.rows) == (32, 3, 64, 100)
    assert found.versions["torch"] == torch.__version__.split("+")[0] or found.versions["torch"] == torch.__version__
    assert set(found.files) == {path.name for path in folder.iterdir()} - {manifest.FILE}
    manifest.check_fingerprint(found, backbone.fingerprint)
    with pytest.raises(BackboneMismatch, match=r"export of 'model-llama' \(\w{12}\), not of 000000000000\. Name"):
        manifest.check_fingerprint(found, 64 * "0")


def test_the_packaged_model_from_the_command_line(tmp_path, capsys):
    assert main(["export", "pocket", str(tmp_path / "pocket")]) == 0
    assert "Kept in" in capsys.readouterr().out
    assert check_equal(load_backbone("pocket"), OnnxEngine(tmp_path / "pocket")) <= WITHIN["float32"]
    assert main(["export", "pocket", str(tmp_path / "pocket")]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["minilm-l6-h384", "llama-stories260K", "smollm2-135m"])
def test_real_models(shared, tmp_path, name):
    place = shared / "models" / name
    if not place.is_dir():
        pytest.skip(f"needs ../shared/models/{name}, which this machine has not")
    engine = OnnxEngine(export_backbone(place, tmp_path / name))  # which refuses what is not within 1e-5 of PyTorch
    ids = np.array([[5, 6, 7, 8]])
    states = [state for _, state in engine.taps(ids, np.ones_like(ids))]
    assert len(states) == engine.manifest.layers + 1
    assert all(np.isfinite(state).all() and state.std() > 0 for state in states)


# --- bad input --------------------------------------------------------------------------------------------------


def test_a_file_that_is_missing_cut_or_altered_is_named(folder):
    block = folder / "block-1.onnx"
    whole = block.read_bytes()
    block.write_bytes(whole[:-100])
    with pytest.raises(BadInput, match=rf"block-1\.onnx: has {len(whole) - 100} bytes, {len(whole)} were written"):
        OnnxEngine(folder)
    block.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    with pytest.raises(BadInput, match=r"block-1\.onnx: its bytes are not those that were written \(SHA-256 differs\)"):
        OnnxEngine(folder)
    block.unlink()
    with pytest.raises(BadInput, match=r"block-1\.onnx: the file is missing\. Export the backbone again"):
        OnnxEngine(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"version": 2}', b"[]"])
def test_a_manifest_that_cannot_be_read(folder, content):
    (folder / manifest.FILE).write_bytes(content)
    with pytest.raises(BadInput, match=r"manifest\.json: cannot be read"):
        OnnxEngine(folder)


def test_a_folder_that_is_no_export(tmp_path):
    with pytest.raises(BadInput, match=r"no exported backbone \(it has no manifest\.json\)\. Export"):
        OnnxEngine(tmp_path)


def test_a_batch_beyond_the_models_positions_or_tokens(models):
    engine = OnnxEngine(models["opt"][1])
    long = np.zeros((1, 65), np.int64)
    with pytest.raises(BadInput, match=r"of 65 tokens; 'model-opt' has positions for 64\. Cut .* --max-length 64"):
        next(engine.taps(long, np.ones_like(long)))
    for ids in (np.array([[100]]), np.array([[-1]])):
        with pytest.raises(BadInput, match=r"Token ids from .* the embedding has 100 rows"):
            next(engine.taps(ids, np.ones_like(ids)))
    with pytest.raises(BadInput, match=r"A batch of shape \(0, 4\)"):
        next(engine.taps(np.zeros((0, 4), np.int64), np.ones((0, 4), np.int64)))


def test_a_block_that_the_runtime_cannot_load(folder):
    block = folder / "block-0.onnx"
    block.write_bytes(b"not a graph")
    written = manifest.read.__globals__["msgspec"].json.decode((folder / manifest.FILE).read_bytes())
    info = manifest.described(block)
    written["files"]["block-0.onnx"] = {"n_bytes": info.n_bytes, "sha256": info.sha256}
    (folder / manifest.FILE).write_bytes(manifest.msgspec.json.encode(written))
    ids = np.zeros((1, 2), np.int64)
    with pytest.raises(BadInput, match=r"block-0\.onnx: ONNX Runtime [\d.]+ cannot load it \("):
        list(OnnxEngine(folder).taps(ids, np.ones_like(ids)))


def test_a_failure_inside_the_runtime_names_the_block(models):
    engine = OnnxEngine(models["opt"][1])
    with pytest.raises(NotEnoughMemory, match=r"Block 2 failed on a batch of 1x2 tokens in ONNX Runtime \("):
        engine.block(2, {"hidden": np.zeros((1, 2, 31), np.float32), "bias": np.zeros((1, 1, 2, 2), np.float32)})


def test_an_unknown_family_is_refused_before_anything_is_written(tmp_path):
    model = save_tiny_model(tmp_path / "model", "gpt2")
    with pytest.raises(BadInput, match=r"Models of type 'gpt2' cannot be exported.*opt, llama, bert; every"):
        export_backbone(model, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("of the exporter"), OSError(28, "No space left")])
def test_an_interrupted_export_leaves_no_half_folder(models, tmp_path, monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr(export, "check_equal", broken)
    with pytest.raises((KeyboardInterrupt, RuntimeError, KitError)):
        export_backbone(models["opt"][0], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_engine_that_computes_something_else_is_not_kept(models, tmp_path, monkeypatch):
    places = export._places
    monkeypatch.setattr(export, "_places", lambda *given: places(*given)[:-1])  # one weight stays the twin's
    with pytest.raises(KitError, match=r"Layer 1 of 'model-opt' comes out .* away from PyTorch in ONNX Runtime"):
        export_backbone(models["opt"][0], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_weight_that_the_exporter_has_folded_is_named():
    backbone = tiny_backbone("opt")
    graph = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    with pytest.raises(KitError, match=r"has folded the weight 'fc1\.bias' into others"):
        export._places(graph, dict(backbone.blocks[0].named_parameters()))


def test_without_the_library_the_sentence_names_the_extra(models, tmp_path, monkeypatch):
    monkeypatch.setattr("mobillm_kit.engines.manifest.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"needs onnx, which is not .* pip install 'mobillm-kit\[onnx\]'"):
        export_backbone(models["opt"][0], tmp_path / "out")
    with pytest.raises(MissingExtra, match=r"needs onnxruntime, which is not installed"):
        OnnxEngine(models["opt"][1])
