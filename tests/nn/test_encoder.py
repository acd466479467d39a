"""The dense encoder: grid, halo, shifts, flips, inference."""

from __future__ import annotations

import itertools

import pytest
import torch

from tomoloc.nn.encoder import DenseEncoder

SMALL = {"widths": (4, 6, 8), "down": (1, 1, 1), "up": (1, 1), "channels": 5}


def make(seed=0, **settings):
    """An encoder whose normalisations have seen data, ready for inference."""
    torch.manual_seed(seed)
    network = DenseEncoder(**{**SMALL, **settings})
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
        for _ in range(3):
            network(2 * torch.randn(2, 1, 16, 24, 32) + 0.5)
    return network.eval()


def both(network, x):
    with torch.inference_mode():
        return torch.cat(network(x), dim=1)


def test_shapes_and_unit_length():
    embedding, logit = make()(torch.randn(2, 1, 16, 24, 40))
    assert embedding.shape == (2, 5, 8, 12, 20)
    assert logit.shape == (2, 1, 8, 12, 20)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2, 8, 12, 20))


def test_default_size_fits_the_package():
    network = DenseEncoder()
    assert sum(p.numel() for p in network.parameters()) * 4 <= 12e6
    assert (network.stride, network.period, network.channels) == (2, 8, 32)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"down": (2, 0, 1), "up": (0, 2)},
        {"widths": (4,), "down": (2,), "up": ()},
        {"widths": (4, 4, 4, 4), "down": (0, 1, 0, 1), "up": (0, 1, 0)},
    ],
    ids=str,
)
def test_halo_is_how_far_a_point_sees_and_no_more(settings):
    network = DenseEncoder(**{**SMALL, **settings}).double().eval()
    # positive weights and zero at rest: what can be reached, is
    for name, parameter in network.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 0.05)
    period, halo = network.period, network.halo
    widest = 0.0
    for first in range(halo, halo + period):
        line = torch.zeros(1, 1, period, period, 2 * halo + period, dtype=torch.double)
        line[..., first] = 1
        reached = torch.nonzero(network.encode(line)[1][0, 0, 0, 0]).double()
        widest = max(widest, ((2 * reached + 0.5) - first).abs().max().item())
    assert halo - period < widest < halo


def test_a_shift_by_the_period_shifts_the_output():
    network = make()
    halo, period = network.halo, network.period
    x = torch.randn(1, 1, 2 * halo + 16, period, 2 * halo + 24)
    shifted = torch.roll(x, (period, -period), (2, 4))
    inner = (
        ...,
        slice(halo // 2 + 4, -halo // 2 - 4),
        slice(None),
        slice(halo // 2 + 4, -halo // 2 - 4),
    )
    expected = torch.roll(both(network, x), (period // 2, -period // 2), (2, 4))
    torch.testing.assert_close(both(network, shifted)[inner], expected[inner], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "axes", [c for n in (1, 2, 3) for c in itertools.combinations((2, 3, 4), n)]
)
def test_a_flipped_volume_has_the_flipped_grid(axes):
    network = make()
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv3d, torch.nn.ConvTranspose3d)):
            weight = module.weight.detach()
            module.weight.data = (weight + weight.flip(axes)) / 2  # a filter that knows no side
    x = torch.randn(1, 1, 16, 24, 32)
    torch.testing.assert_close(
        both(network, x.flip(axes)), both(network, x).flip(axes), atol=1e-5, rtol=0
    )


def test_fused_gives_the_same_and_leaves_the_original():
    network = make()
    x = torch.randn(1, 1, 16, 24, 32)
    before = both(network, x)
    fused = network.train().fuse()
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in fused.modules())
    torch.testing.assert_close(both(fused, x), before, atol=1e-5, rtol=0)
    assert network.training
    torch.testing.assert_close(both(network.eval(), x), before)


def test_half_precision_is_close():
    network = make().fuse()
    x = torch.randn(1, 1, 24, 32, 40)
    exact, _ = network(x)
    network = network.bfloat16().to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        rough, _ = network(x.bfloat16())
    assert (exact * rough.float()).sum(1).min() > 0.99


def test_forward_normalises_what_encode_gives():
    network = make()
    x = torch.randn(1, 1, 16, 24, 32)
    raw, logit = network.encode(x)
    embedding, same = network(x)
    torch.testing.assert_close(embedding, raw / raw.norm(dim=1, keepdim=True))
    torch.testing.assert_close(same, logit)


def test_settings_make_the_same_network():
    network = make()
    again = DenseEncoder(**network.settings).eval()
    again.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 16, 16, 24)
    torch.testing.assert_close(both(again, x), both(network, x))


GROWN = {"widths": (4, 9, 10), "down": (1, 3, 1), "up": (2, 1), "head": 120}


def test_a_grown_network_answers_as_the_smaller_one_until_it_is_trained():
    small, x = make(head=96), torch.randn(1, 1, 16, 24, 32)
    grown = make(seed=1, **GROWN)
    assert not torch.allclose(both(grown, x), both(small, x), atol=0.1)
    grown.grow_from(small)
    torch.testing.assert_close(both(grown, x), both(small, x), atol=1e-6, rtol=1e-5)

    optimizer = torch.optim.SGD(grown.train().parameters(), lr=0.1)
    before = {name: value.clone() for name, value in grown.named_parameters()}
    for _ in range(2):  # behind a normalisation that gives 0, only the second step has an effect
        torch.cat(grown.encode(x), dim=1).pow(2).sum().backward()
        optimizer.step()
    changed = [bool((value != before[name]).any()) for name, value in grown.named_parameters()]
    assert all(changed)


def test_a_network_grows_from_smaller_ones_only():
    for settings in ({"widths": (4, 5, 8)}, {"up": (1, 0)}, {"head": 5}):
        with pytest.raises(ValueError, match="this network has no place for "):
            make(**settings).grow_from(make(seed=1))


def test_every_parameter_is_trained():
    network = make().train()
    with torch.autocast("cpu", torch.bfloat16):
        embedding, logit = network(torch.randn(2, 1, 16, 24, 32))
        loss = (embedding.float() * torch.randn(5, 1, 1, 1)).sum() + logit.float().square().sum()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "settings",
    [{"up": (1,)}, {"down": (1, 1)}, {"widths": (4, 0, 8)}, {"channels": 0}, {"down": (1, -1, 1)}],
    ids=str,
)
def test_impossible_settings(settings):
    with pytest.raises(ValueError, match="an encoder"):
        DenseEncoder(**{**SMALL, **settings})


@pytest.mark.parametrize(
    "shape", [(1, 1, 16, 20, 16), (1, 2, 16, 16, 16), (1, 16, 16, 16)], ids=str
)
def test_shapes_it_does_not_take(shape):
    with pytest.raises(ValueError, match="multiples of 8"):
        make()(torch.zeros(shape))
