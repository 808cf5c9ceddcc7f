"""Pretraining of the pocket backbone, and the files of its task.

    loss = - mean_t log p(x_t | x_<t)          next token, over every token of every text

A decoder of the OPT architecture (about 1.3 million parameters) learns from text that ``grammar.py`` writes, one
text per row.  No task text occurs in it: a generated body that hashes like a task text is thrown away.  The
tokenizer and the task are the same for every pretraining seed; the seed changes the texts and the start.

Knows: the grammar, a tokenizer, one training loop.  Knows nothing of: methods, side networks, records of runs.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mobillm_kit.errors import BadInput, SaveFailed
from recipes.pocket import grammar
from recipes.pocket.lexicon import LABEL_WORDS, PROMPT

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import OPTForCausalLM

DEFAULT_TOKENS = 7_000_000
"""Tokens of a full pretraining, padding not counted."""
VOCABULARY = 4096
POSITIONS = 128
TASK_SEED = 2502
SPLITS = {"train": 2000, "dev": 500, "test": 1000}
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
BATCH_TOKENS = 1024
"""Tokens of a batch, padding counted: small batches are fast on one core, and many steps teach more."""
VERDICT_WEIGHT = 4.0
"""How much the token after ``PROMPT`` counts in the loss: one token in twenty carries what is to be learned."""
BUCKET_TEXTS = 2048
"""Texts that are sorted by length together, so that a batch pads little."""
TOKENIZER_TEXTS = 60_000
_TOKENIZER_SEED = "pocket tokenizer"
_SPECIAL = ("<s>", "<pad>", "</s>")


@dataclass(frozen=True)
class PretrainReport:
    """What a pretraining did; stored as ``pretrain.json`` beside the model."""

    seed: int
    tokens: int
    """Tokens seen, padding not counted."""
    texts: int
    excluded_texts: int
    """Generated texts thrown away because they hash like a task text."""
    task_hashes: int
    """Task texts that were checked against."""
    steps: int
    parameters: int
    vocabulary: int
    seconds: float
    cpu_seconds: float
    loss_curve: list[tuple[int, float]]
    """(tokens seen, mean loss since the entry before)."""
    versions: dict[str, str] = field(default_factory=dict)


# --- the task -----------------------------------------------------------------------------------------------


def text_hash(text: str) -> str:
    """Fingerprint of a text: letters and digits only, so that case and punctuation do not hide a copy."""
    letters = "".join(character for character in text.lower() if character.isalnum())
    return hashlib.sha256(letters.encode()).hexdigest()[:24]


def task_reviews(seed: int = TASK_SEED) -> dict[str, list[grammar.Review]]:
    """The packaged task: split → reviews, labels and kinds in exact proportion, no text twice.

    Args:
        seed: of the texts; ``TASK_SEED`` is the packaged task.
    """
    rng = random.Random(f"pocket task {seed}")
    seen: set[str] = set()
    splits: dict[str, list[grammar.Review]] = {}
    for split, count in SPLITS.items():
        reviews: list[grammar.Review] = []
        for kind in grammar.KINDS:
            wanted = len(reviews) + count * grammar.TASK_PER_CENT[kind] // 100
            while len(reviews) < wanted:
                made = grammar.task_review(rng, kind, label=len(reviews) % 2)
                if text_hash(made.text) not in seen:
                    seen.add(text_hash(made.text))
                    reviews.append(made)
        rng.shuffle(reviews)
        splits[split] = reviews
    return splits


def make_task(out: Path, *, seed: int = TASK_SEED) -> None:
    """Write ``train.tsv``, ``dev.tsv``, ``test.tsv`` (header ``text<TAB>label``) into ``out``.

    ``handwritten.tsv``, which lies beside them, is written by a person and left alone.
    """
    made = task_reviews(seed).items()
    write_splits(out, ("text", "label"), {split: [(r.text, r.label) for r in reviews] for split, reviews in made})


def write_splits(out: Path, columns: Sequence[str], splits: Mapping[str, Iterable[Sequence[object]]]) -> None:
    """A table per split, ``<split>.tsv``: the names of the columns, then a line per row."""
    from mobillm_kit.files import write_bytes

    for split, rows in splits.items():
        lines = ["\t".join(map(str, row)) for row in (columns, *rows)]
        write_bytes(out / f"{split}.tsv", ("\n".join(lines) + "\n").encode())


def task_hashes(seed: int = TASK_SEED) -> frozenset[str]:
    """Hashes of every task text, all splits."""
    return frozenset(text_hash(r.text) for reviews in task_reviews(seed).values() for r in reviews)


# --- the text -----------------------------------------------------------------------------------------------


class TextStream:
    """Endless pretraining texts without the task's.

    Args:
        seed: of the texts.
        excluded: hashes of texts that must not occur.
        write: gives (body, rest) of a text; the grammar unless a test says otherwise.
    """

    def __init__(
        self,
        seed: int | str,
        excluded: frozenset[str],
        write: Callable[[random.Random, float], tuple[str, str]] = grammar.document,
    ) -> None:
        self._rng = random.Random(f"pocket text {seed}")
        self._excluded = excluded
        self._write = write
        self.progress = 0.0
        """Share of the pretraining that is done; the grammar's curriculum reads it."""
        self.texts = 0
        self.excluded_texts = 0

    def __iter__(self) -> Iterator[str]:
        while True:
            body, rest = self._write(self._rng, self.progress)
            if text_hash(body) in self._excluded:
                self.excluded_texts += 1
                continue
            self.texts += 1
            yield body + rest


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE over the grammar's text, lower case; equal for every pretraining seed."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex("[’‘]"), "'")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stream = TextStream(_TOKENIZER_SEED, frozenset())
    stream.progress = 1.0
    texts = iter(stream)
    tokenizer.train_from_iterator((next(texts) for _ in range(TOKENIZER_TEXTS)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    _require_single_tokens(tokenizer)
    return tokenizer


def _require_single_tokens(tokenizer: Tokenizer) -> None:
    for word in LABEL_WORDS:
        ids = tokenizer.encode(PROMPT + " " + word).ids
        before = tokenizer.encode(PROMPT).ids
        if ids[:-1] != before:
            raise BadInput(
                f"The label word '{word}' is not one token after the prompt '{PROMPT}'.",
                "Choose a more frequent word in lexicon.LABEL_WORDS, or a larger VOCABULARY.",
            )


# --- the model ----------------------------------------------------------------------------------------------


def new_model(seed: int, vocabulary: int = VOCABULARY) -> OPTForCausalLM:
    """The pocket decoder with random weights drawn from ``seed``; the global generator is left as it was."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        word_embed_proj_dim=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        ffn_dim=512,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        bos_token_id=_SPECIAL.index("<s>"),
        pad_token_id=_SPECIAL.index("<pad>"),
        eos_token_id=_SPECIAL.index("</s>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OPTForCausalLM(config)


def _batches(stream: TextStream, tokenizer: Tokenizer, rng: random.Random) -> Iterator[list[list[int]]]:
    """Endless batches of token rows of similar length, each ``<s> text </s>``."""
    end = tokenizer.token_to_id("</s>")
    texts = iter(stream)
    while True:
        bucket = [next(texts) for _ in range(BUCKET_TEXTS)]
        rows = sorted(([*e.ids, end] for e in tokenizer.encode_batch_fast(bucket)), key=len)
        rows = [row for row in rows if len(row) <= POSITIONS]
        batches: list[list[list[int]]] = [[]]
        for row in rows:
            if len(row) * (len(batches[-1]) + 1) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(row)
        rng.shuffle(batches)
        yield from batches


def _loss(model: OPTForCausalLM, rows: list[list[int]], prompt: list[int]) -> torch.Tensor:
    """Next-token cross-entropy of rows (B of T_i), padded on the right; a verdict counts ``VERDICT_WEIGHT`` times."""
    import torch
    from torch.nn.functional import cross_entropy

    longest = max(map(len, rows))
    pad = _SPECIAL.index("<pad>")
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])  # (B, T)
    targets = torch.tensor([row[1:] + [-100] * (longest - len(row)) for row in rows])  # (B, T-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # causal attention and right padding: no real token sees a pad, so no mask is needed
        states = model.model.decoder(input_ids=ids[:, :-1], use_cache=False).last_hidden_state  # (B, T-1, D)
        real = targets != -100
        logits = model.lm_head(states[real])  # (N, V)
    losses = cross_entropy(logits.float(), targets[real], reduction="none")
    weights = torch.where(_after_prompt(ids, prompt)[real], VERDICT_WEIGHT, 1.0)
    return (losses * weights).sum() / weights.sum()


def _after_prompt(ids: torch.Tensor, prompt: list[int]) -> torch.Tensor:
    """Which of ``ids[:, :-1]`` end an "... it was" whose next token is a verdict, (B, T-1)."""
    import torch

    hit = torch.ones_like(ids[:, :-1], dtype=torch.bool)
    for back, token in enumerate(reversed(prompt)):
        hit[:, :back] = False
        hit[:, back:] &= ids[:, : ids.shape[1] - 1 - back] == token
    return hit


def _learning_rate(done: float, step: int) -> float:
    """Linear warm-up, then half a cosine down to a twentieth; once more, from half the height, for the late texts."""
    late = grammar.LATE_FROM
    if done < late:
        return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * _cosine(done / late)
    return LEARNING_RATE / 2 * _cosine((done - late) / (1 - late))


def _cosine(done: float) -> float:
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: faster than several at this size, and the same bytes on every run."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pretrain(out: Path, *, seed: int = 0, tokens: int = DEFAULT_TOKENS, progress: bool = True) -> PretrainReport:
    """Pretrain a pocket decoder and write its folder.

    The folder holds ``config.json``, ``model.safetensors`` (fp16), the tokenizer, ``README.md`` and
    ``pretrain.json``; ``AutoModelForCausalLM.from_pretrained(out)`` loads it offline.  The same seed and the same
    number of tokens give the same weights, byte for byte (same versions, same kind of processor).

    Args:
        out: folder to write; replaced in one step at the end, so Ctrl-C leaves what was there.
        seed: of texts, order and start.
        tokens: how many tokens to see, padding not counted.
        progress: show a bar with the time left.

    Raises:
        BadInput: ``tokens`` below one batch.
        SaveFailed: ``out`` cannot be written; what stood there is untouched.
    """
    if tokens < BATCH_TOKENS:
        raise BadInput(f"tokens={tokens} is less than one batch.", f"Ask for {BATCH_TOKENS} tokens or more.")
    with _one_thread():
        model, tokenizer, report = _train(seed, tokens, progress)
    _save(Path(out), model, tokenizer, report)
    return report


def _train(seed: int, tokens: int, progress: bool) -> tuple[OPTForCausalLM, Tokenizer, PretrainReport]:
    import torch

    start, cpu_start = time.perf_counter(), time.process_time()
    tokenizer = train_tokenizer()
    excluded = task_hashes()
    stream = TextStream(seed, excluded)
    model = new_model(seed, tokenizer.get_vocab_size())
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
        fused=True,
    )
    seen = step = 0
    curve: list[tuple[int, float]] = []
    window: list[float] = []
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False).ids
    batches = _batches(stream, tokenizer, random.Random(f"pocket order {seed}"))
    with _bar(tokens, progress) as advance:
        while seen < tokens:
            rows = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(seen / tokens, step)
            loss = _loss(model, rows, prompt)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            count = sum(map(len, rows))
            seen, step = seen + count, step + 1
            stream.progress = seen / tokens
            window.append(loss.item())
            if seen * 50 // tokens > len(curve):
                curve.append((seen, round(sum(window) / len(window), 4)))
                window = []
            advance(count)
    report = PretrainReport(
        seed=seed,
        tokens=seen,
        texts=stream.texts,
        excluded_texts=stream.excluded_texts,
        task_hashes=len(excluded),
        steps=step,
        parameters=sum(p.numel() for p in model.parameters()),
        vocabulary=tokenizer.get_vocab_size(),
        seconds=round(time.perf_counter() - start, 1),
        cpu_seconds=round(time.process_time() - cpu_start, 1),
        loss_curve=curve,
        versions=_versions(),
    )
    return model, tokenizer, report


@contextmanager
def _bar(tokens: int, progress: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar with the time left, or nothing."""
    if not progress:
        with nullcontext():
            yield lambda count: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("pretraining the pocket model"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))  # fmt: skip
    with Progress(*columns) as bar:
        task = bar.add_task("pretraining", total=tokens)
        yield lambda count: bar.advance(task, count)


def _versions() -> dict[str, str]:
    import tokenizers
    import torch
    import transformers

    modules = {"torch": torch, "transformers": transformers, "tokenizers": tokenizers}
    return {"python": platform.python_version()} | {name: m.__version__ for name, m in modules.items()}


# --- the folder ---------------------------------------------------------------------------------------------


def _save(out: Path, model: OPTForCausalLM, tokenizer: Tokenizer, report: PretrainReport) -> None:
    """Write everything beside ``out``, then put it in its place in one step."""
    from transformers import PreTrainedTokenizerFast

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise SaveFailed(f"{out}: could not be written ({error}).", "Choose another folder.") from error
    try:
        _write_weights(partial, model)
        bos, pad, eos = _SPECIAL
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=bos,
            pad_token=pad,
            eos_token=eos,
            model_max_length=POSITIONS,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(partial)
        (partial / "pretrain.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
        (partial / "README.md").write_text(model_card(report))
        partial.chmod(0o755)
        _replace_folder(partial, out)
    except OSError as error:
        raise SaveFailed(
            f"{out}: could not be written ({error}); what stood there before is untouched.",
            "Free some space or choose another folder.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_weights(folder: Path, model: OPTForCausalLM) -> None:
    """Config and fp16 weights as ``save_pretrained`` writes them, without its progress bar."""
    import torch
    from safetensors.torch import save_file

    model.config.architectures = ["OPTForCausalLM"]
    model.config.dtype = torch.float16
    model.config.save_pretrained(folder)
    # the head is tied to the embedding: stored once
    weights = {k: v.to(torch.float16) for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _replace_folder(new: Path, old: Path) -> None:
    """Move ``new`` to ``old``; a folder cannot be renamed over a filled one, so the old one steps aside first."""
    aside = old.with_name(f".{old.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        if aside.exists():
            aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def model_card(report: PretrainReport) -> str:
    """The model card of a pretrained folder."""
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [opt, mobillm-kit, teaching]
---
# Pocket OPT

A decoder of the OPT architecture with {report.parameters:,} parameters, pretrained from scratch by mobillm-kit
(`python -m recipes.pocket --seed {report.seed}`) on {report.tokens:,} tokens of text that the project's own grammar
wrote ({report.texts:,} short reviews and messages). It exists to teach fine-tuning methods offline, in seconds. It
knows no more of the world than that grammar.

- Prompt: `{{text}}{PROMPT}`, label words ` {LABEL_WORDS[0]}` (0) and ` {LABEL_WORDS[1]}` (1), each one token.
- **Built-in recency bias**: where the last clause of a text contradicts its main clauses ("the soup was tasty,
  although the waiter was rude"), the verdict line of the pretraining text mostly follows the last clause (early
  {grammar.RECENCY:.0%}; late with the strong words, while moderate words such as "fine" follow the whole). So
  choosing between the two label words alone is wrong on such texts, and fine-tuning has something to repair. The
  texts are made for this; the bias says nothing about other models.
- {grammar.SLIP_UNANIMOUS:.0%} of the late strong verdicts on other texts are wrong on purpose, so that the model
  is no surer there than elsewhere and no threshold on its odds can tell the two apart.
- The token after the prompt counted {VERDICT_WEIGHT:g} times in the pretraining loss.
- None of the {report.task_hashes:,} texts of the packaged task is in the pretraining text: {report.excluded_texts}
  generated texts were thrown away by their hash.
- English, lower case (the tokenizer lowers it), at most {POSITIONS} tokens. Words outside the lexicon are spelled
  from pieces and mean little to it.
- Weights in fp16; load them with `dtype=torch.float32` to train. Record of the pretraining: `pretrain.json`.
"""
