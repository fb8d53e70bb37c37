"""Advantages against Eq. 1 in numpy."""

import numpy as np
import pytest
import torch

from vr1.advantage import Advantage, zero_variance_groups

REWARDS = torch.tensor([[1.0, 2.0, 3.0, 0.5], [2.0, 2.0, 2.0, 2.0], [0.1, 0.1, 0.1, 3.0]])


def test_group_scale_is_equation_1():
    values = REWARDS.numpy().astype(np.float64)
    expected = (values - values.mean(1, keepdims=True)) / (values.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(Advantage()(REWARDS).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_no_scale_only_centres():
    values = REWARDS.numpy()
    np.testing.assert_allclose(
        Advantage(scale="none")(REWARDS).numpy(), values - values.mean(1, keepdims=True), atol=1e-6
    )


def test_batch_scale_divides_all_groups_by_the_same_number():
    values = REWARDS.numpy()
    expected = (values - values.mean(1, keepdims=True)) / (values.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(Advantage(scale="batch")(REWARDS).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_contribute_exactly_nothing(scale):
    # 0.1 has no exact mean in float32: a tiny deviation must not amplify the rounding error.
    rewards = torch.full((2, 7), 0.1)
    assert (Advantage(scale=scale, epsilon=0.0)(rewards) == 0).all()
    assert zero_variance_groups(rewards).all()


def test_order_within_a_group_does_not_matter():
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(Advantage()(REWARDS[:, order]), Advantage()(REWARDS)[:, order])


def test_negative_epsilon_is_an_error():
    with pytest.raises(ValueError, match="epsilon"):
        Advantage(epsilon=-1.0)
