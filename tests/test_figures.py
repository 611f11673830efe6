"""What is drawn is what was given: data are read back from the figures' artists."""

import base64
import io
import re

import matplotlib
import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from medmerge.approaches import APPROACHES
from medmerge.pages.figures import curves as figures
from medmerge.pages.figures import depth as figures_depth
from medmerge.pages.figures import style as plotstyle
from medmerge.pages.figures import weights as figures_weights
from medmerge.pages.figures.forest import forest
from medmerge.study.layers import architecture

SCORES = ["train_loss", "val_loss", "val_macro_f1"]


def history(runs=(("MedMerge A + B", "medmerge"), ("FT A", "ft"), ("FT B", "ft")), seeds=2, epochs=4):
    """FT has fine-tuning only; every other approach has the linear probe before it."""
    generator, rows = np.random.default_rng(0), []
    for run, approach in runs:
        for seed in range(seeds):
            for phase in ["fine_tune"] if approach == "ft" else ["linear_probe", "fine_tune"]:
                for epoch in range(1, epochs + 1):
                    rows.append([run, approach, seed, phase, epoch, *generator.random(3)])
    return pd.DataFrame(rows, columns=["run", "approach", "seed", "phase", "epoch", *SCORES])


def kernel_weights(layers=6, spread=0.02, names="layer{}", seed=0):
    generator = np.random.default_rng(seed)
    return {names.format(i): generator.normal(0.5, spread, 4 + i) for i in range(layers)}


def table():
    rows = [("FT A", "ft", 0.60, 0.55, 0.66), ("MedMerge", "medmerge", 0.71, 0.70, 0.75)]
    return pd.DataFrame(rows, columns=["label", "approach", "mean", "low", "high"])


def two_factors():
    rows = [
        (a, b, panel, 0.5 + 0.1 * i) for panel in "xy" for i, (a, b) in enumerate([("p", "u"), ("p", "v"), ("q", "u")])
    ]
    return pd.DataFrame(rows, columns=["row", "level", "panel", "mean"]).assign(low=0.4, high=0.9)


def depth_table():
    rows = [(name, when, k / 10) for when in ("before", "after") for k, name in enumerate(DENSENET)]
    return pd.DataFrame(rows, columns=["layer", "when", "ratio"]).assign(low=0.0, high=11.0, shift=1.0)


def counts():
    return pd.DataFrame({"train": [2000, 100], "test": [200, 0]}, index=["nevus", "melanoma"])


def marked(figure, gid):
    """The one line with this id."""
    (line,) = [line for axes in figure.axes for line in axes.lines if line.get_gid() == gid]
    return line


def words(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return matplotlib.image.imread(io.BytesIO(buffer.getvalue()))


DENSENET = ["features.conv0"] + [
    f"features.{part}.conv{j}"
    for k in range(1, 5)
    for part in [f"denseblock{k}.denselayer{i}" for i in range(1, 15)] + [f"transition{k}"] * (k < 4)
    for j in ([1, 2] if "dense" in part else [""])
]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.learning_curves(history()),
        lambda: figures.learning_curves(history([("FT A", "ft")], seeds=1, epochs=1)),
        lambda: figures.learning_curves(history([(f"run {i}", f"kind{i}") for i in range(10)])),
        lambda: figures.learning_curves(history().assign(val_macro_f1=0.5)),
        lambda: figures_depth.depth_heatmap({"one": kernel_weights(1)}, "A", "B"),
        lambda: figures_depth.depth_heatmap({"same": {"conv": np.full(3, 0.5)}}, "A", "B"),
        lambda: figures_depth.depth_heatmap({f"run {i}": kernel_weights(150) for i in range(10)}, "A", "B"),
        lambda: figures_depth.depth_heatmap({"dense": {name: [0.4, 0.5] for name in DENSENET}}, "A", "B"),
        lambda: figures_depth.weight_spread(kernel_weights(150), "A", "B"),
        lambda: figures_depth.weight_spread({"conv": [0.5]}, "A", "B"),
        lambda: forest(table(), "label", xlabel="macro F1", hue="approach", form=".3f", lines=[0.6, 0.7]),
        lambda: forest(table().iloc[:1].drop(columns=["low", "high"]), "label", xlabel="macro F1"),
        lambda: forest(two_factors(), "row", xlabel="macro F1", hue="level", panel="panel"),
        lambda: forest(two_factors(), "row", xlabel="F1", hue="level", panel="panel", columns=1, bands={"x": 0.1}),
        lambda: figures_depth.along_depth(
            depth_table(), {"ratio": "r", "shift": "s"}, hue="when", band=("low", "high")
        ),
        lambda: figures_depth.along_depth(depth_table(), {"ratio": "r"}, hue="when", log=["ratio"], lines={"ratio": 1}),
        lambda: figures.curves(depth_table(), "shift", "ratio", xlabel="x", ylabel="y", hue="when", panel="when"),
        lambda: figures.confusion([0], [0], ["only"]),
        lambda: figures.confusion([0, 1, 1], [0, 1, 1], [f"class {i}" for i in range(14)]),
        lambda: figures.class_counts(counts()),
        lambda: figures.class_counts(pd.DataFrame({"train": [0]}, index=["none"])),
        lambda: figures.class_counts(pd.DataFrame({"train": [3, 4]}, index=["a", "b"])),
    ],
)
def test_odd_inputs_draw_whole_on_white(draw):
    """No warnings (they are errors), no text cut off at the edge, no figure left in pyplot's hands."""
    figure = draw()
    image = pixels(figure)
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (edge == 1).all()
    assert (image[..., :3] < 0.5).any()
    assert not matplotlib.pyplot.get_fignums()


def test_own_settings_of_the_reader_change_nothing():
    before = pixels(figures.class_counts(counts()))
    with matplotlib.rc_context({"text.color": "white", "xtick.labelsize": 30, "axes.facecolor": "black"}):
        assert (pixels(figures.class_counts(counts())) == before).all()


def test_notebook_shows_a_picture_of_the_figures_size():
    data, size = figures.class_counts(counts())._repr_png_()
    assert matplotlib.image.imread(io.BytesIO(data)).shape[1] == 8 * 150
    assert size["width"] == 8 * 96


def test_colours_are_fixed():
    names = {name: approach.title for name, approach in APPROACHES.items()}
    assert plotstyle.APPROACH_NAMES == names and set(plotstyle.APPROACH_COLOURS) == set(names)
    assert len(set(plotstyle.APPROACH_COLOURS.values())) == len(names)
    assert plotstyle.approach_colour("ft") == plotstyle.APPROACH_COLOURS["ft"]
    further = {plotstyle.approach_colour(name) for name in ("uniform", "zeros", "kernel", "layer")}
    assert len(further) > 1 and not further & set(plotstyle.APPROACH_COLOURS.values())
    assert plotstyle.approach_colour("uniform") == "#FF9DA7", "must not change from one process to the next"


def test_learning_curves_draw_the_history():
    given = history()
    figure = figures.learning_curves(given.sample(frac=1, random_state=0))
    for (run, seed), rows in given.groupby(["run", "seed"]):
        for gid, column in (("score", "val_macro_f1"), ("val", "val_loss"), ("train", "train_loss")):
            line = marked(figure, f"{gid}/{run}/{seed}")
            assert line.get_xdata().tolist() == list(range(1, len(rows) + 1))
            assert line.get_ydata().tolist() == rows[column].tolist()
    scores, losses = figure.axes
    assert scores.get_ylabel() == "macro F1"
    assert (losses.get_ylabel(), losses.get_xlabel()) == ("cross-entropy", "epoch")


def test_learning_curves_of_several_labels_show_what_chooses_the_epoch():
    given = history([("FT A", "ft")], seeds=1).assign(val_macro_auroc=[0.6, 0.8, 0.7, 0.6], val_macro_f1=[0, 0, 0, 0.1])
    figure = figures.learning_curves(given)
    assert marked(figure, "score/FT A/0").get_ydata().tolist() == [0.6, 0.8, 0.7, 0.6]
    best = marked(figure, "best/FT A/0")
    assert (*best.get_xdata(), *best.get_ydata()) == (2, 0.8)
    assert [axes.get_ylabel() for axes in figure.axes] == ["macro AUROC", "binary cross-entropy"]


def test_learning_curves_mark_the_best_epoch_of_the_last_phase():
    given = history([("MedMerge A + B", "medmerge")], seeds=1).assign(
        val_macro_f1=[0.9, 0.1, 0.1, 0.1, 0.3, 0.7, 0.7, 0.2]
    )
    best = marked(figures.learning_curves(given), "best/MedMerge A + B/0")
    assert (*best.get_xdata(), *best.get_ydata()) == (6, 0.7)


def test_learning_curves_mark_the_change_of_phase():
    boundaries = [line for axes in figures.learning_curves(history()).axes for line in axes.lines]
    assert [line.get_xdata()[0] for line in boundaries if line.get_gid() == "phase"] == [4.5, 4.5]
    tuned = figures.learning_curves(history([("FT A", "ft")]))
    assert not [line for axes in tuned.axes for line in axes.lines if line.get_gid() == "phase"]


def test_learning_curves_tell_approaches_by_colour_and_sources_by_style():
    figure = figures.learning_curves(history())
    lines = [marked(figure, f"score/{run}/0") for run in ("MedMerge A + B", "FT A", "FT B")]
    names = ("medmerge", "ft", "ft")
    assert [line.get_color() for line in lines] == [plotstyle.APPROACH_COLOURS[name] for name in names]
    assert lines[0].get_linestyle() == lines[1].get_linestyle() == "-" != lines[2].get_linestyle()


def test_heatmap_draws_the_mean_of_each_layer():
    weights = {"first run": kernel_weights(5), "second run": kernel_weights(5, spread=0.2, seed=1)}
    figure = figures_depth.depth_heatmap(weights, "ImageNet", "HAM10K")
    (image,) = figure.axes[0].images
    means = [[w.mean() for w in row.values()] for row in weights.values()]
    assert np.asarray(image.get_array()) == pytest.approx(np.array(means))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(weights)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("means", "half"),
    [([0.5, 0.5], 0.01), ([0.45, 0.52], 0.05), ([0.5, 0.534], 0.035), ([0.39, 0.5], 0.15), ([1.3, 0.5], 0.8)],
)
def test_heatmap_scale_is_symmetric_about_a_half(means, half):
    weights = {"run": {f"conv{i}": np.full(3, mean) for i, mean in enumerate(means)}}
    figure = figures_depth.depth_heatmap(weights, "ImageNet", "HAM10K")
    (image,) = figure.axes[0].images
    assert image.get_clim() == pytest.approx((0.5 - half, 0.5 + half))
    middle = np.array(image.cmap(image.norm(0.5)))
    assert np.ptp(middle[:3]) < 0.02, "neither source at 0.5"
    label = figure.axes[1].get_xlabel()
    assert f"0.5 ± {half:g}" in label
    assert label.index("← more HAM10K") < label.index("more ImageNet →"), "w is the first source's share"


def test_blocks_stand_where_they_begin_and_end():
    figure = figures_depth.depth_heatmap({"run": {name: [0.5] for name in DENSENET}}, "A", "B")
    assert {"stem", "block 1", "T1", "block 2", "T2", "block 3", "T3", "block 4"} <= set(words(figure))
    middle = {text.get_text(): text.xy[0] for text in figure.axes[0].texts}
    assert (middle["stem"], middle["block 1"], middle["T1"]) == (0, (1 + 28) / 2, 29)
    resnet = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.downsample.0"]
    found = words(figures_depth.weight_spread({name: [0.5, 0.6] for name in resnet}, "A", "B"))
    assert {"stem", "layer 1", "layer 2"} <= set(found)
    assert "stem" not in words(figures_depth.weight_spread(kernel_weights(), "A", "B"))


def test_spread_draws_quantiles_and_counts_every_kernel():
    weights = kernel_weights(7)
    depth, histogram = figures_depth.weight_spread(weights, "ImageNet", "HAM10K").axes
    median = depth.lines[0].get_ydata()
    assert median == pytest.approx([np.median(w) for w in weights.values()])
    bands = np.array([segment[:, 1] for segment in depth.collections[0].get_segments()])
    assert bands == pytest.approx(np.array([np.quantile(w, [0.05, 0.95]) for w in weights.values()]))
    assert sum(bar.get_width() for bar in histogram.patches) == sum(map(len, weights.values()))
    assert "← HAM10K" in depth.get_ylabel() and "ImageNet →" in depth.get_ylabel()


def dots(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_a_forest_draws_every_line_in_order_from_the_top():
    colours = plotstyle.APPROACH_COLOURS
    figure = forest(table(), "label", xlabel="macro F1", hue="approach", colours=colours, form=".2f")
    (axes,) = figure.axes
    assert dots(axes) == {"ft": ([0.60], [0]), "medmerge": ([0.71], [1])}
    assert [line.get_color() for line in axes.lines] == [colours["ft"], colours["medmerge"]]
    bars = [segment.tolist() for bar in axes.collections for segment in bar.get_segments()]
    assert bars == [[[0.55, 0], [0.66, 0]], [[0.70, 1], [0.75, 1]]]
    assert axes.get_ylim() == (1.5, -0.5) and not figure.legends, "rows say what colours do"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["FT A", "MedMerge"]
    assert {"0.60", "0.71", "macro F1"} <= set(words(figure)) and "FT A ft 0.600, MedMerge medmerge 0.710" in figure.alt


def test_a_forest_has_a_panel_and_a_place_for_every_level():
    figure = forest(two_factors(), "row", xlabel="macro F1", hue="level", panel="panel")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["x", "y"]
    for axes in figure.axes:
        drawn = dots(axes)
        assert drawn["u"] == ([0.5, 0.7], pytest.approx([-0.175, 0.825]))
        assert drawn["v"] == ([0.6], pytest.approx([0.175]))
    assert {"u", "v"} <= {text.get_text() for text in figure.legends[0].texts}
    below = forest(two_factors(), "row", xlabel="macro F1", panel="panel", hue="level", columns=1)
    assert len({axes.get_position().y0 for axes in below.axes}) == 2


def test_values_along_depth_stand_at_their_layer():
    made = depth_table()
    figure = figures_depth.along_depth(made, {"ratio": "ratio", "shift": "shift"}, hue="when", log=["ratio"])
    ratio, shift = figure.axes
    before = next(line for line in ratio.lines if line.get_label() == "before")
    assert list(before.get_xdata()) == list(range(len(DENSENET)))
    assert before.get_ydata()[0] == 0.05 and before.get_ydata()[3] == 0.3, "zero at the foot of the log axis"
    assert {"block 1", "T3"} <= set(words(figure)) and "ratio before" in figure.alt and shift.get_ylabel() == "shift"


@pytest.mark.parametrize(("backbone", "said"), [("densenet_small", "1×1 minus 3×3: "), ("resnet18", "no pairs of 1×1")])
def test_kinds_of_layers_have_a_colour_each(backbone, said):
    generator = np.random.default_rng(0)
    weights = {name: generator.normal(0.5, 0.02, shape[0]) for name, (_, shape) in architecture(backbone).items()}
    figure = figures_weights.kinds_along_depth(weights, backbone, "A", "B")
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if line.get_label() in {text.get_text() for text in figure.legends[0].texts}]
    assert sum(len(line.get_xdata()) for line in drawn) == len(weights)
    assert said in figure.alt and "← B" in axes.get_ylabel()


def test_a_scatter_leaves_out_what_has_no_place_on_its_axes():
    points = pd.DataFrame({"rate": [0.0, 1e-3, 1e-4], "moved": [0.1, 0.2, 0.0], "what": "w"})
    figure = figures.curves(points, "rate", "moved", xlabel="rate", ylabel="moved", hue="what", scatter=True)
    (line,) = figure.axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1e-3], [0.2])
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"


def test_confusion_has_true_rows_and_predicted_columns():
    figure = figures.confusion([0, 0, 0, 0, 1], [0, 1, 1, 1, 1], ["a", "b", "never"])
    (axes,) = figure.axes
    shares = np.asarray(axes.collections[0].get_array()).reshape(3, 3)
    assert shares.tolist() == [[0.25, 0.75, 0], [0, 1, 0], [0, 0, 0]]
    assert axes.collections[0].get_clim() == (0, 1)
    written = [text.get_text() for text in axes.texts]
    assert written == ["0.25\n1", "0.75\n3", "", "", "1.00\n1", "", "", "", ""]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (4)", "b (1)", "never (0)"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_class_counts_draw_every_number():
    figure = figures.class_counts(counts())
    (axes,) = figure.axes
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[2000, 100], [200, 0]]
    assert {"2,000", "100", "200", "0", "train", "test", "nevus", "melanoma"} <= set(words(figure))
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "images (log scale)"
    assert axes.yaxis_inverted()
    balanced = figures.class_counts(pd.DataFrame({"train": [1900, 100], "test": [9, 8]}, index=["a", "b"]))
    assert balanced.axes[0].get_xscale() == "linear" and balanced.axes[0].get_xlabel() == "images"
    assert to_rgba(balanced.axes[0].patches[0].get_facecolor()) != balanced.axes[0].patches[-1].get_facecolor()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.learning_curves(history().drop(columns="val_loss")), r"lacks columns \['val_loss'\]"),
        (lambda: figures.learning_curves(history().assign(val_loss=np.nan)), "not finite"),
        (lambda: forest(table().iloc[:0], "label", xlabel=""), "0 lines"),
        (lambda: forest(table().assign(mean=np.nan), "label", xlabel=""), "finite values of mean"),
        (lambda: figures_depth.along_depth(depth_table().iloc[:0], {"ratio": ""}), "0 lines"),
        (
            lambda: figures_depth.depth_heatmap({"a": kernel_weights(3), "b": kernel_weights(2)}, "A", "B"),
            "'b' has other layers",
        ),
    ],
)
def test_refuses(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_a_figure_in_html_is_one_element_with_its_picture_and_words():
    html = forest(table(), "label", xlabel="F1").html('a "b"', "1 < 2")
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', html)[1]
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert html.startswith("<figure>") and 'alt="a &quot;b&quot;"' in html and "1 &lt; 2</figcaption>" in html
