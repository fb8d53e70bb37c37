"""MuonAdamW: the two library optimizers as one, with schedules and checkpoints that reach both."""

import copy

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from vr1.optimizers import MuonAdamW, clippable, gradient_norm


def small_model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"embed_tokens": nn.Embedding(7, 6), "mlp": nn.Linear(6, 5), "norm": nn.LayerNorm(5)})


def descend(model: nn.ModuleDict, *optimizers: torch.optim.Optimizer, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        tokens = torch.randint(7, (4,), generator=generator)
        model["norm"](model["mlp"](model["embed_tokens"](tokens))).pow(3).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()


def test_steps_as_muon_on_matrices_and_adamw_on_the_rest() -> None:
    one, two = small_model(), small_model()
    descend(one, MuonAdamW(one.named_parameters(), lr=0.01, weight_decay=0.1))
    rest = [two["embed_tokens"].weight, two["mlp"].bias, *two["norm"].parameters()]
    descend(
        two,
        torch.optim.Muon([two["mlp"].weight], lr=0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1),
    )
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[name], rtol=0, atol=0, msg=name)


def test_a_schedule_reaches_both_halves() -> None:
    model = small_model()
    optimizer = MuonAdamW(model.named_parameters(), lr=0.5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(model.state_dict())
    descend(model, optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_matrices_alone_or_none_at_all() -> None:
    """Adapters have matrices only."""
    matrices, vectors = nn.Linear(3, 2, bias=False), nn.LayerNorm(3)
    for model, alone in (
        (matrices, torch.optim.Muon(matrices.parameters(), lr=0.1)),
        (vectors, torch.optim.AdamW(vectors.parameters(), lr=0.1)),
    ):
        (group,) = MuonAdamW(model.named_parameters(), lr=0.1).param_groups
        assert group["params"] == alone.param_groups[0]["params"]


def test_resumes_from_its_state() -> None:
    uninterrupted, interrupted = small_model(), small_model()
    descend(uninterrupted, optimizer := MuonAdamW(uninterrupted.named_parameters(), lr=0.01), steps=1)
    descend(interrupted, stopped := MuonAdamW(interrupted.named_parameters(), lr=0.01), steps=1)
    resumed = MuonAdamW(interrupted.named_parameters(), lr=9.0)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    descend(uninterrupted, optimizer)
    descend(interrupted, resumed)
    for name, value in uninterrupted.state_dict().items():
        assert torch.equal(value, interrupted.state_dict()[name]), name


def test_parameters_without_names_are_an_error() -> None:
    with pytest.raises(ValueError, match="named_parameters"):
        MuonAdamW(small_model().parameters(), lr=0.1)  # type: ignore[arg-type]


def test_matrices_of_tokens_are_adamws_however_deep_they_stand() -> None:
    model = nn.ModuleDict(
        {
            "model": nn.ModuleDict({"embed_tokens": nn.Embedding(7, 6), "proj": nn.Linear(6, 6)}),
            "lm_head": nn.Linear(6, 7, bias=False),
            "conv": nn.Conv2d(3, 4, 2),
        }
    )
    muon, adamw = (group["params"] for group in MuonAdamW(model.named_parameters(), lr=0.1).param_groups)
    assert [id(parameter) for parameter in muon] == [id(model["model"]["proj"].weight)]
    assert len(adamw) == 5
    assert {id(parameter) for parameter in (*muon, *adamw)} == {id(parameter) for parameter in model.parameters()}


def test_the_norm_of_all_gradients() -> None:
    model = small_model()
    optimizer = MuonAdamW(model.named_parameters(), lr=0.1)
    assert gradient_norm(optimizer) is None
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(gradient_norm(optimizer), flat.norm())


def test_gradients_that_a_fused_optimizer_will_unscale_are_not_clipped() -> None:
    """In float16 they are scaled until its step."""
    optimizer = torch.optim.AdamW(nn.Linear(2, 1).parameters(), fused=True)
    scaled, unscaled = MixedPrecision("16-mixed", "cpu"), MixedPrecision("bf16-mixed", "cpu")
    with clippable(optimizer, unscaled):
        unscaled.clip_gradients(optimizer, 1.0)
    with clippable(optimizer, scaled), pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        scaled.clip_gradients(optimizer, 1.0)
