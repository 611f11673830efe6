"""Batch norm of merged networks: statistics against counts by hand, and what a linear probe may change."""

import copy

import numpy as np
import pytest
import torch
from test_training import changed, source, state, task
from torch import nn

from medmerge import Classifier, KernelMerge, batchnorm
from medmerge.approaches.paper import fixed_w, lp_norms_ft, medmerge, medmerge_zeros
from medmerge.training import linear_probe


def images(count: int = 64, size: int = 32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list((2 * torch.randn(count, 3, size, size, generator=generator) + 1).split(16))


def net(seed: int = 0) -> nn.Module:
    """Convolution, batch norm, and dropout that would disturb what is measured after it."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)
    return nn.Sequential(*layers).eval()


def test_moments_are_those_of_all_images_and_positions():
    model, batches = net(), images(56)
    with torch.no_grad():
        values = model[0](torch.cat(batches)).double().transpose(0, 1).flatten(1)
    mean, variance = batchnorm.moments(model, lambda: batches)["1"]
    torch.testing.assert_close(mean, values.mean(1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(variance, values.var(1, correction=0), atol=1e-6, rtol=1e-5)


def test_reestimated_statistics_are_the_mean_over_batches_of_what_layers_see():
    model, batches = net(), images()
    batchnorm.reestimate(model, lambda: batches)
    with torch.no_grad():
        first = [model[0](batch).transpose(0, 1).flatten(1) for batch in batches]
    torch.testing.assert_close(model[1].running_mean, torch.stack([f.mean(1) for f in first]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([f.var(1) for f in first]).mean(0))
    report = batchnorm.report(model, lambda: batches)
    assert report["variance_ratio"].between(0.97, 1.03).all() and (report["mean_shift"] < 0.02).all()


def test_reestimation_restores_momentum_mode_and_count():
    model = net()
    model[1].momentum, model[1].num_batches_tracked[...] = 0.37, 11
    model.train()
    model[5].eval()
    before = {name: (m.training, getattr(m, "momentum", None)) for name, m in model.named_modules()}
    affine = copy.deepcopy([model[1].weight, model[1].bias])
    batchnorm.reestimate(model, images)
    assert {name: (m.training, getattr(m, "momentum", None)) for name, m in model.named_modules()} == before
    assert model[1].num_batches_tracked == 11 and model[1].momentum == 0.37
    assert torch.equal(model[1].weight, affine[0]) and torch.equal(model[1].bias, affine[1])


def test_reestimation_forgets_what_the_statistics_were_and_draws_nothing():
    one, other = net(), net()
    other[1].running_var.fill_(1e6)
    other[5].running_mean.fill_(-3)
    torch.manual_seed(3)
    batchnorm.reestimate(one, images)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    batchnorm.reestimate(other, images)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_reestimation_without_images_is_refused_and_leaves_modes():
    model = net()
    with pytest.raises(ValueError, match="no images"):
        batchnorm.reestimate(model, lambda: [])
    assert not model.training and model[1].momentum == 0.1


def test_a_network_without_batch_norm_has_nothing_to_measure():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.GroupNorm(1, 2))
    before = state(model)
    batchnorm.reestimate(model, lambda: [])
    assert not changed(model, before) and batchnorm.report(model, images).empty


def test_the_mean_of_running_variances_is_too_large_where_sources_disagree():
    """Jordan et al.: variance of the sum of two unrelated responses is half the mean of their variances."""
    sources, batches = [net(0), net(1)], images(128)
    for one in sources:
        batchnorm.reestimate(one, lambda: batches)
    merge = KernelMerge(sources)
    first = batchnorm.report(merge, lambda: batches).iloc[0]
    with torch.no_grad():
        b, c = (s[0](torch.cat(batches)).transpose(0, 1).flatten(1).double() for s in sources)
        expected = ((b + c) / 2).var(1, correction=0) / ((b.var(1) + c.var(1)) / 2 + 1e-5)
    assert first["variance_ratio"] == pytest.approx(expected.quantile(0.5).item(), rel=0.02) and expected.mean() < 1
    batchnorm.reestimate(merge, lambda: batches)
    assert batchnorm.report(merge, lambda: batches).iloc[0]["variance_ratio"] == pytest.approx(1, abs=0.01)


def test_repaired_outputs_have_the_mean_and_spread_of_the_sources():
    sources, batches = [net(0), net(1)], images(128)
    for i, one in enumerate(sources):
        one[1].weight.data = torch.linspace(-1, 2, 5) + i
        one[1].bias.data = torch.linspace(0, 1, 5) - i
        batchnorm.reestimate(one, lambda: batches)
    merge = KernelMerge(sources)
    signs = merge.merged[1].weight.sign()
    batchnorm.repair(merge, sources, lambda: batches)
    goals = [batchnorm.moments(one, lambda: batches, outputs=True) for one in sources]
    for name, (mean, variance) in batchnorm.moments(merge, lambda: batches, outputs=True).items():
        (mean_b, variance_b), (mean_c, variance_c) = (goal[name.removeprefix("merged.")] for goal in goals)
        torch.testing.assert_close(mean, (mean_b + mean_c) / 2, atol=0.02, rtol=0)
        torch.testing.assert_close(variance.sqrt(), (variance_b.sqrt() + variance_c.sqrt()) / 2, atol=0.02, rtol=0.02)
    assert torch.equal(merge.merged[1].weight.sign(), signs)


def test_repair_leaves_the_sources_alone():
    sources = [net(0), net(1)]
    before = [state(one) for one in sources]
    batchnorm.repair(KernelMerge(sources), sources, images)
    assert not any(changed(one, was) for one, was in zip(sources, before, strict=True))


KINDS = {
    "both": {"w", "weight", "bias", "running_mean", "running_var", "num_batches_tracked"},
    "affine": {"w", "weight", "bias"},
    "statistics": {"w", "running_mean", "running_var", "num_batches_tracked"},
    "none": {"w"},
}


@pytest.mark.parametrize("free", KINDS)
def test_a_merge_probe_changes_what_is_free_of_batch_norm_the_weights_and_the_head(free):
    model = Classifier(KernelMerge([source(0), source(1)]), 3)
    before = state(model)
    linear_probe(model, task(batchnorm_free=free))
    moved = changed(model, before)
    assert {name.rpartition(".")[2] for name in moved if not name.startswith("head.")} == KINDS[free]
    assert not any("source_" in name or "original" in name for name in moved)


@pytest.mark.parametrize("free", KINDS)
def test_with_a_rate_of_zero_merging_weights_stay_to_the_bit(free):
    model = Classifier(KernelMerge([source(0), source(1)]), 3)
    before = state(model)
    linear_probe(model, task(batchnorm_free=free, w_lr=0.0, w_decay=0.5))
    kinds = {name.rpartition(".")[2] for name in changed(model, before) if not name.startswith("head.")}
    assert kinds == KINDS[free] - {"w"}


def test_the_weights_rate_is_their_own():
    """Adam's first step is its rate, whatever the gradient."""
    merge = KernelMerge([source(0), source(1)])
    linear_probe(Classifier(merge, 3), task(w_lr=0.07, lp_epochs=1, batch_size=49))
    moved = torch.cat([w - 0.5 for w in merge.kernel_weights().values()]).abs()
    assert moved.max() == pytest.approx(0.07, rel=1e-3) and moved.median() == pytest.approx(0.07, rel=0.05)


def test_decay_of_the_weights_pulls_them_towards_the_last_source():
    merges = [KernelMerge([source(0), source(1)]) for _ in range(2)]
    for merge, decay in zip(merges, (0.0, 5.0), strict=True):
        linear_probe(Classifier(merge, 3), task(w_lr=1e-2, w_decay=decay))
    free, decayed = (torch.cat(list(merge.kernel_weights().values())).mean() for merge in merges)
    assert decayed < free - 0.05


def test_a_plain_probe_with_free_norms_moves_them_and_no_kernel():
    model = Classifier(source(0), 3)
    before, kernels = state(model), {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    linear_probe(model, task(), free="both")
    moved = {name.rpartition(".")[0] for name in changed(model, before)}
    assert not moved & kernels and moved - {"head"} == {f"backbone.{name}" for name in batchnorm.layers(source(0))}


@pytest.mark.parametrize("free", ["both", "none"])
def test_running_statistics_of_the_start_matter_only_where_norms_are_frozen(free):
    """With free norms a step normalises by its batch: losses and weights are the same from either start, to the bit."""
    ends = []
    for start in ("mean", "reestimated"):
        one = task(lp_epochs=3, ft_epochs=0, batchnorm_free=free, select="last")
        outcome = medmerge([source(0), source(1)], one, batchnorm=start, score_controls=False)
        ends.append(([row["train_loss"] for row in one.history], outcome.kernel_weights))
    (losses, weights), (others, measured) = ends
    same = losses == others and all(torch.equal(w, measured[name]) for name, w in weights.items())
    assert len(losses) == 3 and same is (free == "both")


def test_starts_of_batch_norm_are_reached_before_anything_learns():
    one = task()
    mean, measured, repaired = (
        medmerge([source(0), source(1)], task(lp_epochs=1), batchnorm=start, score_controls=False)
        for start in ("mean", "reestimated", "repair")
    )
    before = [o.tables["batchnorm"].query("when == 'before probe'") for o in (mean, measured, repaired)]
    assert (before[1]["variance_ratio"] - 1).abs().max() < 0.25 < (before[0]["variance_ratio"] - 1).abs().max()
    assert np.abs(before[2]["variance_ratio"] - 1).max() < 0.25 and len(before[0]) == len(batchnorm.layers(source(0)))
    assert one.kernel_history == {}


def test_fixed_weights_give_the_average_and_nothing_to_show():
    one = task(ft_epochs=0)
    outcome = fixed_w([source(0), source(1)], one)
    learnt = state(outcome.model.backbone)
    for name, module in source(0).named_modules():
        if isinstance(module, nn.Conv2d):
            mean = torch.lerp(source(1).get_submodule(name).weight, module.weight, 0.5)
            assert torch.equal(learnt[f"{name}.weight"], mean)
    assert not outcome.kernel_weights and outcome.merge is None and one.protocol.w_lr is None
    assert {row["phase"] for row in one.history} == {"linear_probe"}


def test_zeros_keep_batch_norm_and_scale_kernels():
    outcome = medmerge_zeros(source(0), task(ft_epochs=0, w_lr=0.02), score_controls=False)
    kept = torch.cat(list(outcome.kernel_weights.values()))
    assert (kept != 0.5).any() and not torch.equal(kept, torch.full_like(kept, 0.5))
    name, w = next(iter(outcome.kernel_weights.items()))
    scaled = source(0).get_submodule(name).weight * w.view(-1, 1, 1, 1)
    torch.testing.assert_close(outcome.model.backbone.get_submodule(name).weight, scaled)


def test_probe_with_free_norms_is_no_merge():
    outcome = lp_norms_ft(source(0), task())
    assert not outcome.kernel_weights and outcome.merge is None and outcome.probed is not outcome.model
