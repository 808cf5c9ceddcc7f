"""The ledger counts what the hand counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from mobillm_kit.training.ledger import (
    SavedActivations,
    saved_for_backward,
    storage_bytes,
)
from tests.families import tiny_backbone

B, D, H = 16, 8, 32
FLOAT = 4
X, HIDDEN = B * D * FLOAT, B * H * FLOAT


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch() -> Tensor:
    return torch.randn(B, D, generator=generator())


class Blocks(nn.Module):
    """Linear, GELU, Linear: saves its input and, twice, the hidden values."""

    def __init__(self, n: int, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D)) for _ in range(n))
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator(1))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return x.sum()


def counted_step(net: Blocks, x: Tensor) -> tuple[int, int, int]:
    """Bytes saved after the forward pass, at the peak, and after the backward pass."""
    with SavedActivations(net.parameters()) as saved:
        loss = net(x)
        after_forward = saved.live_bytes
        loss.backward()
        return after_forward, saved.peak_bytes, saved.live_bytes


def test_a_storage_counts_once_however_many_tensors_look_into_it():
    x = torch.zeros(10, 100)
    assert storage_bytes([x]) == 4000
    assert storage_bytes([x, x.view(-1), x[3:], x.T, x.detach()]) == 4000


def test_a_slice_keeps_its_whole_storage():
    assert storage_bytes([torch.zeros(10, 100)[0]]) == 4000


def test_equal_values_in_two_storages_count_twice():
    assert storage_bytes([torch.zeros(10), torch.zeros(10)]) == 80


def test_tied_weights_count_once():
    embedding, head = nn.Embedding(100, 8), nn.Linear(8, 100, bias=False)
    apart = storage_bytes([*embedding.parameters(), *head.parameters()])
    head.weight = embedding.weight
    assert apart == 2 * 3200
    assert storage_bytes([*embedding.parameters(), *head.parameters()]) == 3200


def test_every_dtype_counts_its_own_width():
    tensors = [torch.zeros(10, dtype=d) for d in (torch.int8, torch.bfloat16, torch.float64)]
    assert storage_bytes(tensors) == 10 + 20 + 80


def test_a_need_can_be_counted_before_there_is_memory_for_it():
    big = torch.empty(2**40, device="meta")
    assert storage_bytes([big, big.view(2, -1)]) == 4 * 2**40


def gradient_bytes(parameters) -> int:
    return storage_bytes(p.grad for p in parameters if p.grad is not None)


def optimizer_bytes(optimizer) -> int:
    return storage_bytes(value for state in optimizer.state.values() for value in state.values() if value is not None)


def test_gradients_are_counted_where_there_are_some():
    net = nn.Linear(D, H)
    net.bias.requires_grad_(False)
    assert gradient_bytes(net.parameters()) == 0
    net(batch()).sum().backward()
    assert gradient_bytes(net.parameters()) == D * H * FLOAT


def test_adamw_keeps_two_moments_and_a_counter_per_parameter():
    net = nn.Linear(D, H)
    optimizer = torch.optim.AdamW(net.parameters())
    assert optimizer_bytes(optimizer) == 0
    net(batch()).sum().backward()
    optimizer.step()
    assert optimizer_bytes(optimizer) == 2 * (D * H + H) * FLOAT + 2 * FLOAT


def test_plain_sgd_keeps_nothing_and_momentum_one_copy():
    def after_one_step(momentum: float) -> int:
        net = nn.Linear(D, H, bias=False)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
        net(batch()).sum().backward()
        optimizer.step()
        return optimizer_bytes(optimizer)

    assert after_one_step(0.0) == 0
    assert after_one_step(0.9) == D * H * FLOAT


def test_a_block_saves_its_input_and_the_hidden_values_twice():
    net = Blocks(1)
    _, saved = saved_for_backward(lambda: net(batch()), net.parameters())
    assert saved == X + 2 * HIDDEN


def test_what_a_function_returns_is_handed_through():
    net = Blocks(1)
    result, _ = saved_for_backward(lambda: net(batch()), net.parameters())
    assert torch.equal(result, net(batch()))


def test_parameters_would_be_counted_too_if_they_were_not_left_out():
    net = Blocks(1)
    # the second layer's weight is needed for the gradient of its input; the first one's input wants none
    _, saved = saved_for_backward(lambda: net(batch()), [])
    assert saved == X + 2 * HIDDEN + D * H * FLOAT


def test_a_view_of_a_saved_tensor_adds_nothing():
    x = torch.ones(B, D, requires_grad=True)
    _, saved = saved_for_backward(lambda: (x.view(-1) ** 2).sum() + (x.T**2).sum(), [])
    assert saved == X


def test_nothing_is_saved_without_gradients():
    net = Blocks(2)
    with torch.no_grad():
        _, saved = saved_for_backward(lambda: net(batch()), net.parameters())
    assert saved == 0


def test_frozen_layers_below_the_first_trained_one_save_nothing():
    net = Blocks(3)
    for block in net.blocks[:2]:
        block.requires_grad_(False)
    _, saved = saved_for_backward(lambda: net(batch()), net.parameters())
    assert saved == X + 2 * HIDDEN


def test_a_plain_step_peaks_at_the_end_of_its_forward_pass():
    everything = 4 * (X + 2 * HIDDEN)
    assert counted_step(Blocks(4), batch()) == (everything, everything, 0)


def test_checkpointing_keeps_the_inputs_and_one_block_at_a_time():
    # the last block is computed again up to the values it saves, while all four inputs are still there
    assert counted_step(Blocks(4, reentrant=False), batch()) == (4 * X, 4 * X + 2 * HIDDEN, 0)


def test_checkpointing_of_the_older_kind_is_seen_as_well():
    x = batch().requires_grad_()
    after_forward, peak, left = counted_step(Blocks(4, reentrant=True), x)
    assert (after_forward, left) == (4 * X, 0)
    assert 4 * X + 2 * HIDDEN <= peak <= 5 * X + 2 * HIDDEN


def test_the_peak_is_the_highest_of_several_steps():
    net = Blocks(2)
    with SavedActivations(net.parameters()) as saved:
        for rows in (4, 16, 8):
            net(batch()[:rows]).backward()
    assert saved.peak_bytes == 2 * (X + 2 * HIDDEN)


def test_a_graph_that_is_dropped_without_a_backward_pass_counts_no_more():
    net = Blocks(2)
    with SavedActivations(net.parameters()) as saved:
        loss = net(batch())
        assert saved.live_bytes > 0
        del loss
        assert saved.live_bytes == 0


@pytest.mark.parametrize("reentrant", [None, False])
def test_counting_changes_no_bit(reentrant):
    def gradients(count: bool) -> list[Tensor]:
        net = Blocks(3, reentrant)
        if count:
            counted_step(net, batch())
        else:
            net(batch()).backward()
        return [p.grad for p in net.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


def test_checkpointing_of_a_real_decoder_saves_less_and_gives_the_same_gradients():
    def step(checkpointing: bool) -> tuple[int, Tensor]:
        model = tiny_backbone("llama").model
        model.requires_grad_(True)
        model.train()
        if checkpointing:
            enable = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
            getattr(model, f"{enable}_checkpointing_enable")({"use_reentrant": False})
        ids = torch.randint(5, 100, (4, 48), generator=generator())
        with SavedActivations([*model.parameters(), *model.buffers()]) as saved:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        assert saved.live_bytes == 0
        return saved.peak_bytes, model.get_input_embeddings().weight.grad

    plain_bytes, plain = step(False)
    less_bytes, checkpointed = step(True)
    assert less_bytes < 0.7 * plain_bytes
    assert torch.equal(plain, checkpointed)


def test_what_a_recomputation_makes_after_the_last_kept_value_is_not_counted():
    """x.sin() saves x and b.sin() saves b, when a is still there; c and what follows are nobody's to keep.

    Run to its end, since torch stops at the last value that is kept.
    """

    def four_values(x: Tensor) -> Tensor:
        a = x.sin()
        b = a + 1
        c = b.sin()
        return c + 1

    x = batch().requires_grad_()
    with SavedActivations([]) as saved, set_checkpoint_early_stop(False):
        assert saved.peak_bytes == 0
        checkpoint(four_values, x, use_reentrant=False).sum().backward()
    assert (saved.peak_bytes, saved.live_bytes) == (3 * X, 0)
