"""Label words at an encoder's mask: the logits of Hugging Face's own masked-language models, for every method."""

from dataclasses import replace

import msgspec
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

from mobillm_kit.backbone.families import FAMILIES
from mobillm_kit.backbone.pretrained import load_backbone, random_backbone
from mobillm_kit.backbone.streaming import stream_backbone
from mobillm_kit.errors import BadInput
from mobillm_kit.memory.prediction import predict
from mobillm_kit.methods import METHODS, load_method
from mobillm_kit.methods.lora_layers import add_lora
from mobillm_kit.methods.task_model import TaskModel, task_model
from mobillm_kit.runs.inference import load_run, load_side, score_run
from mobillm_kit.runs.prepare import prepare
from mobillm_kit.runs.run import run
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.server.process import serve
from mobillm_kit.side.adapter import SideAdapter, attach, new_adapter
from mobillm_kit.side.heads import MaskedWordHead
from mobillm_kit.side.portable_head import build_head, describe_head
from mobillm_kit.texts.encode import Batch, TextEncoder
from mobillm_kit.texts.tasks import MASK, TASKS, Example, get_task
from tests.builders import random_batch, save_tiny_model, tiny_spec, word_tokenizer
from tests.families import TINY, tiny_backbone
from tests.uplink import trained

FAMILIES_WITH_A_MASK = [n for n, (kind, _) in TINY.items() if FAMILIES[kind].masked_head and n != "mobilebert"]
METHOD_NAMES = [name for name, row in METHODS.items() if row.trained]
WORDS = [17, 5, 60]
PROMPT = {"prompt": "{text} it was [MASK]", "head": "label-words"}


def moved_backbone(name: str):
    """No bias and no norm is the zero or the one that it starts from."""
    backbone = tiny_backbone(name, masked=True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return backbone


def load_masked(folder, load=load_backbone):
    return load(folder, masked=True)


def masked_batch(pad: str = "right") -> Batch:
    """A mask somewhere in the middle of every text."""
    batch = random_batch(kind="encoder", pad=pad)
    return replace(batch, positions=batch.positions + torch.tensor([1, 3, 2, 4]))


@pytest.fixture
def place(tmp_path):
    save_tiny_model(tmp_path / "model-bert", "bert", masked=True)
    return tmp_path


# ---------------------------------------------------------------------- values


def test_these_families_have_the_head():
    assert {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "modernbert"} <= {
        *FAMILIES_WITH_A_MASK
    }


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES_WITH_A_MASK)
def test_logits_are_hugging_faces_own_at_the_mask(name, pad, tmp_path):
    moved_backbone(name).model.save_pretrained(tmp_path)
    model, batch = task_model(load_masked(tmp_path), word_ids=WORDS), masked_batch(pad)
    reference = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        offset = 2 if FAMILIES[TINY[name][0]].positions_start_after_padding_id else 0
        kwargs = {"position_ids": (batch.attention_mask.cumsum(1) - 1).clamp(min=0) + offset} if pad == "left" else {}
        whole = reference(batch.input_ids, attention_mask=batch.attention_mask, **kwargs).logits
        ours = model.logits(batch)
    rows = torch.arange(batch.rows)
    torch.testing.assert_close(ours, whole[rows, batch.positions][:, WORDS], rtol=1e-5, atol=1e-5)
    assert (ours - whole[rows, batch.positions - 1][:, WORDS]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES_WITH_A_MASK)
def test_a_server_gets_the_words_rows_and_rebuilds_the_head_to_the_bit(name, dtype):
    backbone = moved_backbone(name)
    backbone.model.to(dtype)
    head = task_model(backbone, word_ids=WORDS).head
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    copy = head.server_copy()
    assert copy.lm_head.weight.shape[0] == copy.lm_head.bias.shape[0] == 3
    assert sum(parameter.numel() for parameter in copy.parameters()) < 32 * 32 + 6 * 32 + 3 * 33
    spec, tensors = describe_head(head)
    assert (spec.masked, spec.width, spec.rows) == (True, 32, 3)
    again = build_head(msgspec.json.decode(msgspec.json.encode(spec), type=type(spec)), tensors)
    assert torch.equal(again(states), copy(states))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    torch.testing.assert_close(copy(states), head(states).detach())


def test_a_head_that_does_not_fit_its_description_is_refused():
    spec, tensors = describe_head(task_model(tiny_backbone("electra", masked=True), word_ids=WORDS).head)
    for odd in ({"project_out.weight": torch.ones(16, 16)}, {"norm.weight": torch.ones(32)}, {"extra": torch.ones(1)}):
        with pytest.raises(BadInput, match="The head that came is not the one described"):
            build_head(spec, tensors | odd)
    with pytest.raises(BadInput, match="it has other tensors"):
        build_head(msgspec.structs.replace(spec, masked=False), tensors)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "modernbert"])
def test_streamed_from_its_files_it_is_the_same_to_the_bit(name, tmp_path):
    moved_backbone(name).model.save_pretrained(tmp_path)
    whole, streamed = load_masked(tmp_path), load_masked(tmp_path, stream_backbone)
    assert whole.fingerprint == streamed.fingerprint != random_backbone(whole, seed=1).fingerprint
    logits = [task_model(backbone, word_ids=WORDS).logits(masked_batch()) for backbone in (whole, streamed)]
    assert torch.equal(*logits)


# ---------------------------------------------------------------------- methods


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_method_runs_and_comes_back_from_its_folder(place, name):
    options = {"options": {"reduction": 2, "heads": 2}} if name in ("lst", "mobillm-ladder") else {}
    record = run(tiny_spec(place, name, model="bert", **PROMPT, **options), folder=place / name)
    assert (record.status, record.settings["head"]) == ("done", "label-words")
    assert record.trainable_parameters > 0
    spec = tiny_spec(place, name, model="bert", **PROMPT, **options)
    (place / name / "spec.json").write_bytes(msgspec.json.encode(spec))
    assert score_run(place / name) == pytest.approx(record.scores, abs=1e-6)
    found = load_run(place / name).predict(["the good film", "the bad film"])
    assert all(0.5 <= prediction.probability <= 1 for prediction in found)
    if name.startswith("mobillm"):
        shared = load_side(place / name / "side", place / "model-bert").predict(["the good film", "the bad film"])
        assert shared == found
        assert SideAdapter.from_pretrained(place / name / "side").prompt == PROMPT["prompt"]


@pytest.mark.parametrize("name", ["full", "lora", "p-rge", "mobillm-full-width", "mobillm-ladder", "probe"])
@pytest.mark.parametrize("family", ["electra", "modernbert", "distilbert", "roberta"])
def test_other_families_learn_by_it_too(name, family):
    model = task_model(tiny_backbone(family, masked=True), word_ids=WORDS)
    method = load_method(name)(model, seed=0, **({"reduction": 2} if name.endswith("ladder") else {}))
    batch = replace(masked_batch(), labels=torch.tensor([0, 1, 2, 1]))
    losses = [method.step(batch, 3e-3).loss for _ in range(6)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["zero-shot", "threshold"])
def test_controls_read_the_words_at_the_mask(place, name):
    assert 0 <= run(tiny_spec(place, name, model="bert", **PROMPT)).scores["test_accuracy"] <= 1


def test_a_pruned_ladder_of_the_backbones_blocks_runs_beside_it(place):
    options = {"start": "backbone", "reduction": 1, "layers": 2}
    spec = tiny_spec(place, "mobillm-ladder", model="bert", options=options, **PROMPT)
    assert run(spec).status == "done"


@pytest.mark.parametrize("name", [name for name in METHOD_NAMES if METHODS[name].forward_only or METHODS[name].streams])
def test_streamed_it_trains_the_same_and_in_few_bits_another(place, name):
    options = {"options": {"reduction": 2, "heads": 2}} if name in ("lst", "mobillm-ladder") else {}
    losses = []
    for how in ({}, {"stream": True}, {"weights": "int8"}):
        record = run(tiny_spec(place, name, model="bert", **PROMPT, **how, **options))
        losses.append([point.dev_loss for point in record.curve])
    whole, streamed, coded = losses
    assert whole == streamed
    assert 0 < max(abs(one - other) for one, other in zip(whole, coded, strict=True)) < 0.1


def test_full_fine_tuning_trains_the_masked_head_and_a_side_network_leaves_it(place):
    model = task_model(tiny_backbone("bert", masked=True), word_ids=WORDS)
    for name, moves in (("mobillm-full-width", False), ("lora", False), ("full", True)):
        before = model.head.project_out.weight.detach().clone()
        load_method(name)(model, seed=0).step(masked_batch(), 1e-2)
        assert (not torch.equal(before, model.head.project_out.weight)) == moves, name


def test_the_masked_head_is_frozen_beside_low_rank_layers_of_its_matrixs_name():
    """``dense`` names matrices of BERT's blocks, and one of its head, which stays as it is."""
    model = task_model(tiny_backbone("bert", masked=True), word_ids=WORDS)
    parameters = add_lora(model, seed=0, targets="query,dense")
    assert parameters
    assert all(".encoder.layer." in name for name in parameters)
    assert isinstance(model.head.project_out, torch.nn.Linear)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.mark.parametrize("how", [{}, {"stream": True}, {"weights": "int8"}], ids=["whole", "streamed", "int8"])
@pytest.mark.parametrize("family", ["bert", "electra", "modernbert"])
@pytest.mark.parametrize("side", ["full-width", "ladder"])
def test_two_processes_end_in_the_bytes_of_one(tmp_path, server, side, family, how):
    save_tiny_model(tmp_path / f"model-{family}", family, masked=True)
    common = {"side": side, "model": family, "codec": "int8", "group": 8, "settings": PROMPT | how}
    apart, there = trained(tmp_path, server.address, **common)
    together, here = trained(tmp_path, "in-process", **common)
    assert apart == together
    assert [point.train_loss for point in there.curve] == [point.train_loss for point in here.curve]
    assert [point.dev_loss for point in there.curve] == [point.dev_loss for point in here.curve]


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_the_masks_token_alone_is_enough_for_a_token_wise_side(name):
    model = task_model(moved_backbone(name), word_ids=WORDS)
    ways = {}
    for tokens in ("all", "prediction"):
        method = load_method("mobillm-full-width")(model, seed=0, tokens=tokens)
        losses = [method.step(masked_batch(), 1e-2).loss for _ in range(3)]
        ways[tokens] = (method.device.upload(masked_batch()), losses)
    assert ways["prediction"][0].activations[0].shape == (4, 1, 32)
    assert ways["prediction"][1] == pytest.approx(ways["all"][1], rel=1e-4)
    assert attach(new_adapter(model.backbone, n_labels=3, pooling=None), model.backbone, model.head).one_token_is_enough


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_memory_is_predicted_from_shapes(name):
    method = load_method(name)(task_model(tiny_backbone("bert", masked=True), word_ids=range(10, 12)), seed=0)
    counted = method.count_memory(random_batch(rows=4, length=9, kind="encoder"))
    model_type, settings = TINY["bert"]
    config = AutoConfig.for_model(model_type, **settings)
    needs = predict(config, name, batch_size=4, length=9, masked=True)
    assert tuple(need.counted for need in needs) == counted


# ---------------------------------------------------------------------- texts


def finished(raw: Tokenizer, mask: str, **special) -> PreTrainedTokenizerFast:
    """Opening and closing token around a text; a mask that takes the space before it, as RoBERTa's does."""
    ids = [(name, raw.token_to_id(name)) for name in ("<s>", "</s>")]
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", **special)
    tokenizer.add_special_tokens({"mask_token": mask})
    return tokenizer


def like_roberta() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "</s>", "<pad>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(TEXTS * 3, trainer)
    return finished(raw, AddedToken("<mask>", lstrip=True, special=True))


def like_bert() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    raw.train_from_iterator(
        TEXTS * 3, trainers.WordPieceTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    )
    return finished(raw, "[MASK]")


def like_xlm_roberta() -> PreTrainedTokenizerFast:
    pieces = dict.fromkeys(f"▁{word}" for text in TEXTS for word in text.replace(",", " ").replace(".", " ").split())
    characters = dict.fromkeys("▁" + "".join(TEXTS) + LONG)
    special = [("<s>", 0.0), ("</s>", 0.0), ("<pad>", 0.0), ("<unk>", 0.0)]
    raw = Tokenizer(
        models.Unigram([*special, *((p, -2.0) for p in pieces), *((c, -9.0) for c in characters)], unk_id=3)
    )
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    return finished(raw, AddedToken("<mask>", lstrip=True, special=True))


MASKED_TASKS = {name: task.at_mask() for name, task in TASKS.items()}
TEXTS = [
    replace(task, prompt=task.prompt.replace(MASK, word)).fill("a long tale of a film ,", "the film") * 9
    for task in MASKED_TASKS.values()
    for word in task.label_words
]
LONG = "the long and winding tale of a film " * 40


@pytest.fixture(scope="module", params=[like_roberta, like_bert, like_xlm_roberta])
def tokenizer(request):
    return request.param()


@pytest.mark.parametrize("task", MASKED_TASKS.values(), ids=lambda task: task.name)
@pytest.mark.parametrize("pad", ["left", "right"])
def test_the_position_is_the_masks_and_no_cut_takes_it(tokenizer, task, pad):
    encoder = TextEncoder(tokenizer, task, "masked", 40, pad)
    pair = [None, None, None] if task.pair_column is None else ["a tale", LONG, "a film"]
    rows = encoder.encode(
        [Example(text, other, 1) for text, other in zip(["a film", "a tale", LONG], pair, strict=True)]
    )
    batch = encoder.collate(rows)
    assert batch.input_ids[torch.arange(3), batch.positions].tolist() == [tokenizer.mask_token_id] * 3
    for row in rows:
        assert len(row.ids) <= 40
        assert (row.ids[0], row.ids[-1]) == tuple(tokenizer.convert_tokens_to_ids(["<s>", "</s>"]))
        assert row.ids.count(tokenizer.mask_token_id) == 1
    assert encoder.notes


@pytest.mark.parametrize("task", MASKED_TASKS.values(), ids=lambda task: task.name)
@pytest.mark.parametrize("make", [like_roberta, like_bert])
def test_a_label_word_is_the_token_that_stands_for_the_mask(make, task):
    """With the word in the mask's place the prompt has the same tokens but for that one."""
    tokenizer = make()
    encoder = TextEncoder(tokenizer, task, "masked", 64)
    filled = task.fill("a film", "the film")
    masked = tokenizer(filled.replace(MASK, tokenizer.mask_token))["input_ids"]
    place = masked.index(tokenizer.mask_token_id)
    for word, own in zip(task.label_words, encoder.label_ids(), strict=True):
        spaced = f" {word.strip()}" if filled.startswith(MASK) else word.strip()  # MeZO's has one there too
        assert tokenizer(filled.replace(MASK, spaced))["input_ids"] == [*masked[:place], own, *masked[place + 1 :]]


@pytest.mark.parametrize(("make", "space"), [(like_roberta, "Ġ"), (like_bert, ""), (like_xlm_roberta, "▁")])
def test_a_label_words_token_has_the_space_before_it(make, space):
    tokenizer = make()
    for words in ((" terrible", " great"), ("terrible", "great")):
        ids = TextEncoder(tokenizer, replace(MASKED_TASKS["sst2"], label_words=words), "masked", 64).label_ids()
        assert tokenizer.convert_ids_to_tokens(ids) == [f"{space}terrible", f"{space}great"]


def test_a_prompt_without_a_mask_ends_in_one():
    asked = {name: task.prompt for name, task in MASKED_TASKS.items()}
    assert asked["sst2"] == "{text} It was [MASK]."  # MeZO's, as the next two
    assert asked["cola"] == "{text} This is [MASK]."
    assert asked["rte"] == "{text}? [MASK], {pair}"
    assert replace(get_task("sst2"), prompt="All in [MASK]: {text}").at_mask().prompt == "All in [MASK]: {text}"


def test_a_mask_in_a_text_is_no_second_question(tokenizer):
    encoder = TextEncoder(tokenizer, MASKED_TASKS["sst2"], "masked", 64)
    own = tokenizer.mask_token
    plain, masks = encoder.encode([Example("a film", None, 0), Example(f"a {own} film [MASK]", None, 0)])
    assert masks.ids.count(tokenizer.mask_token_id) == 1
    assert tokenizer.decode(masks.ids).split() == tokenizer.decode(plain.ids).split()


def test_what_a_label_word_may_not_be(tokenizer):
    for words, sentence in (
        ((" great", " zyzzyva"), r"' zyzzyva' is \d+ tokens to this tokenizer, or an unknown one"),
        ((" great", "great"), "'great' both begin with"),
    ):
        task = replace(MASKED_TASKS["sst2"], label_words=words)
        with pytest.raises(BadInput, match=sentence):
            TextEncoder(tokenizer, task, "masked", 64).label_ids()


def test_a_prompt_without_its_one_mask_and_a_tokenizer_without_a_mask_are_refused(tokenizer):
    for times, prompt in ((0, "{text} It was"), (2, "[MASK] {text} It was [MASK].")):
        with pytest.raises(BadInput, match=rf"The prompt '.* has \[MASK\] {times} times\. Put it there once"):
            TextEncoder(tokenizer, replace(get_task("sst2"), prompt=prompt), "masked", 64)
    with pytest.raises(BadInput, match=r"The tokenizer has no mask token .* Use --head classifier"):
        TextEncoder(word_tokenizer(), MASKED_TASKS["sst2"], "masked", 64)


# ---------------------------------------------------------------------- what is refused


def test_a_classifier_stays_what_encoders_take(place):
    prepared = prepare(tiny_spec(place, "probe", model="bert", prompt=PROMPT["prompt"]))
    assert type(prepared.model) is TaskModel
    assert prepared.backbone.lm_head is None
    assert not isinstance(prepared.model.head, MaskedWordHead)
    assert prepare(tiny_spec(place, "probe", model="bert", head="classifier")).model.head.pooling == "mean"


def test_a_checkpoint_without_the_head_is_refused_in_a_sentence(tmp_path):
    tiny_backbone("bert").model.save_pretrained(tmp_path)
    for load in (load_backbone, stream_backbone):
        with pytest.raises(BadInput, match=r"first is 'cls\..*, its MLM head too, or --head classifier"):
            load_masked(tmp_path, load)


def test_the_shared_encoder_has_no_such_head(shared):
    spec = RunSpec(method="probe", backbone=str(shared / "models" / "minilm-l6-h384"), head="label-words")
    with pytest.raises(BadInput, match=r"first is 'cls\..*, its MLM head too, or --head classifier"):
        prepare(spec)


def test_label_words_are_read_at_one_token_and_pool_nothing():
    model = task_model(tiny_backbone("bert", masked=True), word_ids=WORDS)
    with pytest.raises(BadInput, match="Label words are read at one token; there is no pooling"):
        load_method("mobillm-full-width")(model, seed=0, pooling="attention")


def test_other_heads_are_refused():
    for backbone in (tiny_backbone("mobilebert", masked=True), tiny_backbone("bert", masked=True, hidden_act="relu")):
        with pytest.raises(BadInput, match=f"head of '{backbone.name}' is not read here. Use --head classifier"):
            task_model(backbone, word_ids=WORDS)
    with pytest.raises(BadInput, match="'pocket' is a decoder"):
        prepare(RunSpec(method="probe", head="classifier", accelerator="cpu"))
