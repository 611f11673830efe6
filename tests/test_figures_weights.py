"""Figures of learnt weights and of ablations: what is drawn is what was given, and the alternative text says it."""

import numpy as np
import pandas as pd
import pytest
from test_figures import marked, pixels, words
from test_kernelstats import drawn
from test_report import make
from test_shift import study

from medmerge.pages import kernelstats, shift
from medmerge.pages.figures import ablation as figures_ablation
from medmerge.pages.figures import weights as figures_weights
from medmerge.pages.figures.style import BookFigure


def merged(folder, target: str, sources: list[str], seeds=(0,), backbone: str = "densenet_small") -> list:
    runs = []
    for seed in seeds:
        run = make(folder, "medmerge-b-c", 5, seed)
        run.run["row"]["sources"], run.run["data"]["name"] = sources, target
        run.__dict__["kernel_weights"] = drawn(backbone, seed=seed)
        runs.append(run)
    return runs


def moments() -> pd.DataFrame:
    layers = [f"features.denseblock{k}.denselayer{i}.norm1" for k in (1, 2) for i in (1, 2)] + ["features.norm5"]
    rows = [
        (layer, when, ratio * 0.5 ** (i + 1), 0.0 if i == 4 else 0.1 * 0.5**i, 2.0, 0.1 * i)
        for when, ratio in (("before probe", 0.5), ("after probe", 2.0))
        for i, layer in enumerate(layers)
    ]
    return pd.DataFrame(rows, columns=["layer", "when", "variance_ratio", "low", "high", "mean_shift"])


def cells() -> pd.DataFrame:
    rows = [
        (measure, a, b, mean, mean - 0.05, mean + 0.04)
        for measure, up in (("validation", 0.0), ("test", 0.1))
        for (a, b), mean in {("mean", "all"): 0.5, ("mean", "w"): 0.4, ("repair", "all"): 0.7}.items()
        for mean in [mean + up]
    ]
    return pd.DataFrame(rows, columns=["measure", "factor_a", "factor_b", "mean", "low", "high"])


def test_targets_are_rows_around_a_half_with_their_own_sources(tmp_path):
    runs = merged(tmp_path / "p" / "net", "isic", ["imagenet", "ham10k"], (0, 1))
    runs += merged(tmp_path / "q" / "net", "aptos", ["imagenet"], (2,))
    figure = figures_weights.target_heatmap([make(tmp_path / "p" / "net", "ft-b", 5), *runs])
    (image,) = figure.axes[0].images
    mean = [[np.mean([r.kernel_weights[n].mean() for r in runs[:2]]) for n in runs[0].kernel_weights]]
    mean += [[w.mean() for w in runs[2].kernel_weights.values()]]
    np.testing.assert_allclose(image.get_array(), mean)
    low, high = image.get_clim()
    assert low + high == pytest.approx(1) and low <= np.min(mean) and np.max(mean) <= high
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["isic (2 seeds)", "aptos (1 seed)"]
    assert {"0: ham10k\n1: imagenet", "0: zeros\n1: imagenet"} <= set(words(figure))
    assert f"from {low:g} to {high:g} around 0.5" in figure.alt and "isic (2 seeds)" in figure.alt
    assert (pixels(figure)[0, 0, :3] == 1).all()


def test_one_pair_names_its_sources_at_the_scale(tmp_path):
    figure = figures_weights.target_heatmap(merged(tmp_path / "p" / "net", "isic", ["imagenet", "ham10k"]))
    assert any("← more ham10k" in word and "more imagenet →" in word for word in words(figure))
    assert not any(word.startswith("0: ") for word in words(figure))


def test_targets_of_one_name_are_told_apart(tmp_path):
    runs = merged(tmp_path / "p" / "net", "isic", ["a", "b"]) + merged(tmp_path / "q" / "net", "isic", ["a", "b"])
    labels = [t.get_text() for t in figures_weights.target_heatmap(runs).axes[0].get_yticklabels()]
    assert labels == ["p/medmerge-b-c (1 seed)", "q/medmerge-b-c (1 seed)"]


def test_kinds_of_layers_have_dots_at_their_depth_and_the_check_is_in_the_title():
    weights = drawn("densenet_small", conv2=-0.03)
    figure = figures_weights.kinds_along_depth(weights, "densenet_small", "APTOS", "zeros")
    means = np.array([w.mean() for w in weights.values()])
    for kind, end in {"1×1 bottleneck": ".conv1", "3×3 growth": ".conv2", "1×1 transition": ".conv"}.items():
        line, at = marked(figure, f"kind/{kind}"), [i for i, name in enumerate(weights) if name.endswith(end)]
        assert line.get_xdata().tolist() == at
        np.testing.assert_allclose(line.get_ydata(), means[at])
    low, high = figure.axes[1].get_ylim()
    assert low + high == pytest.approx(1) and figure.axes[0].images[0].get_clim() == pytest.approx((low, high))
    a = kernelstats.alternation(weights, "densenet_small")
    for text in (figure.axes[1].get_title(loc="left"), figure.alt):
        assert f"1×1 minus 3×3: {a.difference:+.4f} [{a.low:+.4f}, {a.high:+.4f}]" in text
    assert "leaning to zeros" in figure.alt and "← zeros          APTOS →" in figure.axes[1].get_ylabel()


def test_networks_without_both_kinds_are_drawn_without_the_check():
    figure = figures_weights.kinds_along_depth(drawn("resnet18"), "resnet18", "a", "b")
    assert "no pairs" in figure.alt and marked(figure, "kind/1×1 downsample").get_xdata().size == 3


def test_agreement_of_seeds_draws_layers_and_every_pair():
    runs = {seed: drawn("densenet_small", seed=seed) for seed in (0, 1, 5)}
    figure = figures_weights.agreement_of_seeds(runs)
    pairs = figures_weights.seed_agreement(runs)
    expected = figures_weights.layer_agreement(runs).groupby("layer", sort=False)["pearson"].mean()
    np.testing.assert_allclose(marked(figure, "layers").get_ydata(), expected)
    for y, row in enumerate(pairs.itertuples()):
        assert marked(figure, f"pearson/{y}").get_xdata()[0] == pytest.approx(row.pearson)
        np.testing.assert_allclose(marked(figure, f"null/{y}").get_xdata(), [row.null_low, row.null_high])
    assert f"seeds 0 and 5: Pearson {pairs.pearson[1]:.2f}" in figure.alt


def test_displacement_is_drawn_against_the_rate_of_w(tmp_path):
    runs = []
    for i, lr in enumerate((0.01, 0.0, 0.001)):
        runs.append(make(tmp_path / str(i) / "net", "medmerge-b-c", 5))
        runs[-1].run["parameters"]["w_lr"] = lr
    table = kernelstats.displacements(runs)
    figure = figures_weights.displacement_by_rate(table)
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    for name in ("mean", "largest", "budget", "reach"):
        np.testing.assert_allclose(marked(figure, name).get_xdata(), [0.001, 0.01])
        np.testing.assert_allclose(marked(figure, name).get_ydata(), table[name].to_numpy()[[2, 0]])
    assert "2 runs: at 0.001 mean 0.25" in figure.alt
    with pytest.raises(ValueError, match="no run with w_lr above 0"):
        figures_weights.displacement_by_rate(table[1:2])


def test_shift_is_drawn_against_fine_tuning(tmp_path):
    table = shift.shift_table(study(tmp_path / "p" / "net", 5, 30, 0.6) + study(tmp_path / "q" / "net", 30, 5, 0.6))
    figure = figures_weights.shift_against_ft(table)
    for y, row in enumerate(table.itertuples()):
        dot, bar = marked(figure, f"study/{y}"), marked(figure, f"interval/{y}")
        assert (dot.get_xdata()[0], dot.get_ydata()[0]) == pytest.approx((row.difference, row.shift))
        np.testing.assert_allclose(bar.get_xdata(), [row.low, row.high])
    assert "one sign in 1 of 2 studies" in figure.alt


def test_batch_norms_are_drawn_on_a_log_axis_around_one():
    report = moments()
    figure = figures_ablation.bn_figure(report)
    assert figure.axes[0].get_yscale() == "log" and set(marked(figure, "one").get_ydata()) == {1}
    for when, rows in report.groupby("when"):
        np.testing.assert_allclose(marked(figure, f"ratio/{when}").get_ydata(), rows["variance_ratio"])
        np.testing.assert_allclose(marked(figure, f"shift/{when}").get_ydata(), rows["mean_shift"])
    assert "before probe the ratio's median over layers is 0.0625, from 0.0156 to 0.25" in figure.alt
    assert {"block 1", "end"} <= set(words(figure)) and "stem" not in words(figure)


def test_cells_are_dots_in_their_row_with_their_interval():
    figure = figures_ablation.factorial(cells(), "batch norm starts as", "what learns")
    assert [axes.get_xlabel() for axes in figure.axes] == ["macro F1 (validation)", "macro F1 (test)"]
    np.testing.assert_allclose(marked(figure, "mean/test/all").get_xdata(), [0.6, 0.8])
    assert np.round(marked(figure, "mean/test/all").get_ydata()).tolist() == [0, 1]
    np.testing.assert_allclose(marked(figure, "mean/test/w").get_xdata(), [0.5])
    (bars,) = [c for c in figure.axes[1].collections if c.get_gid() == "interval/test/all"]
    np.testing.assert_allclose([s[:, 0] for s in bars.get_segments()], [[0.55, 0.64], [0.75, 0.84]])
    assert "what learns: all" in words(figure) and "batch norm starts as" in words(figure)
    assert "test is highest, 0.800, with repair and all" in figure.alt


def test_one_setting_is_a_dot_a_level():
    part = cells().query("factor_b == 'all' and measure == 'test'").drop(columns=["measure", "factor_b"])
    figure = figures_ablation.one_factor(part, "batch norm starts as")
    np.testing.assert_allclose(marked(figure, "mean/").get_xdata(), [0.6, 0.8])
    assert marked(figure, "mean/").get_ydata().tolist() == [0, 1]
    assert "mean 0.600, repair 0.800" in figure.alt


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures_ablation.bn_figure(moments().assign(when="later")), "when holds"),
        (lambda: figures_ablation.bn_figure(moments()[1:]), "are not the others"),
        (lambda: figures_ablation.bn_figure(moments().assign(low=np.nan)), "finite"),
        (lambda: figures_ablation.factorial(cells()[:0], "a", "b"), "0 rows"),
        (lambda: figures_ablation.factorial(pd.concat([cells()] * 2), "a", "b"), "comes twice"),
        (lambda: figures_ablation.factorial(cells().assign(low=0.9), "a", "b"), "low <= mean"),
        (lambda: figures_ablation.one_factor(cells()[["factor_a"]], "a"), "lacks columns"),
        (lambda: figures_weights.shift_against_ft(pd.DataFrame()), "no rows"),
    ],
)
def test_refuses(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_alternative_text_goes_with_the_picture():
    figure = BookFigure(figsize=(1, 1))
    assert figure._repr_png_()[1] == {"width": 96, "height": 96}
    figure.alt = "nothing"
    assert figure._repr_png_()[1]["alt"] == "nothing"
