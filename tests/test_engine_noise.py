"""What is drawn without PyTorch is what PyTorch draws, value by value: a small difference in z would be another run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_kit.common import derived_seed
from mobillm_kit.engines.noise import PIECE, Noise
from mobillm_kit.errors import BadInput

FUSED = torch.backends.cpu.get_cpu_capability().startswith("AVX")
"""Where PyTorch computes with polynomials; elsewhere with the C library's functions."""


def same(ours: np.ndarray, theirs: torch.Tensor) -> bool:
    if FUSED:
        return ours.tobytes() == theirs.numpy().tobytes()
    return bool(np.abs(ours - theirs.numpy()).max() <= 1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(4, 40), st.integers(4, 17)), min_size=1, max_size=4),
)
def test_every_z_is_pytorchs_own_one_stack_after_the_other(seed, shapes):
    """Sizes that are no multiple of 16 too, where PyTorch draws the last ones twice."""
    generator, noise = torch.Generator().manual_seed(derived_seed(seed, "z", 3)), Noise(derived_seed(seed, "z", 3))
    for shape in shapes:
        assert same(noise.randn(*shape), torch.randn(shape, generator=generator))
        assert noise.rand(7).tobytes() == torch.rand(7, generator=generator).numpy().tobytes()


def test_a_million_values_and_the_joints_between_pieces():
    generator, noise = torch.Generator().manual_seed(5), Noise(5)
    for count in (10**6, PIECE, PIECE + 16, PIECE + 1):
        assert same(noise.randn(count), torch.randn(count, generator=generator))


@pytest.mark.parametrize("shape", [(1, 15, 1), (0,)])
def test_fewer_values_than_pytorch_draws_together_are_refused(shape):
    with pytest.raises(BadInput, match=r"random values are fewer than 16\. Take a larger rank"):
        Noise(0).randn(*shape)


def test_nothing_is_drawn_from_anybody_elses_generator():
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    Noise(0).randn(64)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.random.get_state()[1].tobytes() == before[1]
