"""What is drawn is what was given: data are read back from the figures' artists."""

import io
import re
from pathlib import Path

import matplotlib
import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
from browser import SMALL, start
from matplotlib.colors import to_rgba

from medmerge.approaches import APPROACHES
from medmerge.pages.figures import curves as figures
from medmerge.pages.figures import depth
from medmerge.pages.figures import style as plotstyle
from medmerge.pages.figures.forest import forest
from medmerge.study.layers import architecture

ROOT = Path(__file__).parents[1]
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


BAND = {"band": ("low", "high")}
KINDS = {
    "curves": lambda: figures.learning_curves(history()),
    "one epoch": lambda: figures.learning_curves(history([("FT A", "ft")], seeds=1, epochs=1)),
    "heatmap": lambda: depth.depth_heatmap({"dense": {name: [0.4, 0.5] for name in DENSENET}}, "A", "B"),
    "spread": lambda: depth.weight_spread(kernel_weights(150), "A", "B"),
    "forest": lambda: forest(table(), "label", xlabel="macro F1", hue="approach", form=".3f", lines=[0.6, 0.7]),
    "panels": lambda: forest(two_factors(), "row", xlabel="macro F1", hue="level", panel="panel"),
    "depth": lambda: depth.along_depth(depth_table(), {"ratio": "r", "shift": "s"}, hue="when", band=("low", "high")),
    "lines": lambda: figures.curves(depth_table(), "shift", "ratio", xlabel="x", ylabel="y", hue="when", panel="when"),
    "confusion": lambda: figures.confusion([0, 1, 1], [0, 1, 1], [f"class {i}" for i in range(8)]),
    "counts": lambda: figures.class_counts(counts()),
}
ODD = [
    lambda: figures.learning_curves(history([(f"run {i}", f"kind{i}") for i in range(10)])),
    lambda: depth.depth_heatmap({"same": {"conv": np.full(3, 0.5)}}, "A", "B"),
    lambda: depth.depth_heatmap({f"run {i}": kernel_weights(150) for i in range(10)}, "A", "B"),
    lambda: depth.weight_spread({"conv": [0.5]}, "A", "B"),
    lambda: forest(table().iloc[:1].drop(columns=["low", "high"]), "label", xlabel="macro F1"),
    lambda: forest(two_factors(), "row", xlabel="F1", panel="panel", hue="level", form=".3f", limits=(0.45, 0.8)),
    lambda: depth.along_depth(depth_table(), {"ratio": "r"}, hue="when", log=["ratio"], lines={"ratio": 1}),
    lambda: figures.confusion([0], [0], ["only"]),
    lambda: figures.class_counts(pd.DataFrame({"train": [0]}, index=["none"])),
]


@pytest.mark.parametrize("draw", [*KINDS.values(), *ODD])
def test_odd_inputs_draw_whole_on_white(draw):
    """No warnings (they are errors), no text cut off at the edge, no figure left in pyplot's hands."""
    figure = draw()
    for image in (pixels(figure), pixels(figure.narrow)):
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (edge == 1).all()
        assert (image[..., :3] < 0.5).any()
    assert not matplotlib.pyplot.get_fignums()


def test_own_settings_of_the_reader_change_nothing():
    before = pixels(figures.class_counts(counts()))
    with matplotlib.rc_context({"text.color": "white", "xtick.labelsize": 30, "axes.facecolor": "black"}):
        assert (pixels(figures.class_counts(counts())) == before).all()


def test_a_notebook_gets_vectors_and_a_small_picture_for_what_shows_none():
    data, size = figures.class_counts(counts())._repr_png_()
    assert matplotlib.image.imread(io.BytesIO(data)).shape[1] == size["width"] == 7 * 96
    figure, other = forest(table(), "label", xlabel="macro F1"), figures.class_counts(counts())
    svg = figure._repr_svg_()
    assert svg == forest(table(), "label", xlabel="macro F1")._repr_svg_(), "the same each time"
    assert svg.startswith("<svg") and svg.endswith("</svg>") and "20" + "26" not in svg and figure.narrow.svg() in svg
    ids = [one for drawn in (svg, other._repr_svg_()) for one in re.findall(r' id="([^"]*)"', drawn)]
    assert ids and len(ids) == len(set(ids)), "two figures stand on one page"
    assert svg.count(f"<desc>{figure.alt}</desc>") == 2
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', svg)) == set(re.findall(r' id="([^"]*)"', svg))


def test_a_page_has_both_widths_and_may_change_the_colours():
    html = plotstyle.inline(forest(table(), "label", xlabel="macro F1")._repr_svg_(), 'dots & "bars"')
    assert re.findall(r'<svg class="figure (\w+)" role="img" aria-label="([^>]*?)" ', html) == [
        ("wide", "dots &amp; &quot;bars&quot;"),
        ("narrow", "dots &amp; &quot;bars&quot;"),
    ]
    assert "fill: var(--figure-1f2328, #1f2328)" in html and not re.search(": #", html)
    css = (ROOT / "book/_static/custom.css").read_text(encoding="utf-8")
    changed = set(re.findall(r"--figure-([0-9a-f]{6}):", css))
    neutral = (plotstyle.INK, plotstyle.MUTED, plotstyle.GRID, plotstyle.BAND, plotstyle.GROUND)
    assert {colour[1:] for colour in neutral} <= changed and plotstyle.PALE[1:] not in changed


def test_text_of_every_kind_of_figure_can_be_read_on_a_phone(tmp_path):
    drawn = [draw() for draw in (*KINDS.values(), *ODD)]
    css = (ROOT / "book/_static/custom.css").as_uri()
    page = "<!doctype html><style>body {margin: 24px}</style>"  # as a page leaves
    page += f"<meta name=viewport content='width=device-width'><link rel=stylesheet href='{css}'>"
    page += "".join(f"<figure>{plotstyle.inline(figure._repr_svg_(), '')}</figure>" for figure in drawn)
    page += plotstyle.inline((ROOT / "book/_static/method.svg").read_text(encoding="utf-8"), "")
    (tmp_path / "page.html").write_text(f"{page.replace('<figure', '<main class=bd-article><figure', 1)}</main>")
    browser = start()
    try:
        size = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((tmp_path / "page.html").as_uri())
        shown, small = browser.execute_script("return document.body.innerText"), browser.execute_script(SMALL)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
    finally:
        browser.quit()
    assert "macro F1" in shown and "Fine-tune" in shown and not small and wide <= 390


def test_colours_are_fixed():
    assert set(plotstyle.APPROACH_COLOURS) == set(APPROACHES)
    assert len(set(plotstyle.APPROACH_COLOURS.values())) == len(APPROACHES)
    assert plotstyle.approach_colour("ft") == plotstyle.APPROACH_COLOURS["ft"]
    further = {plotstyle.approach_colour(name) for name in ("uniform", "zeros", "kernel", "layer")}
    assert len(further) > 1 and not further & set(plotstyle.APPROACH_COLOURS.values())
    assert plotstyle.approach_colour("uniform") == "#FF9DA7", "must not change from one process to the next"


def test_learning_curves_have_a_row_a_run_and_axes_a_phase():
    given = history()
    figure = figures.learning_curves(given.sample(frac=1, random_state=0))
    for (run, phase, seed), rows in given.groupby(["run", "phase", "seed"]):
        for column in SCORES:
            line = marked(figure, f"{column}/{phase}/{run}/{seed}")
            assert line.get_xdata().tolist() == [1, 2, 3, 4] and line.get_ydata().tolist() == rows[column].tolist()
    merged = [marked(figure, f"val_macro_f1/{phase}/MedMerge A + B/1").axes for phase in ("linear_probe", "fine_tune")]
    assert merged[0] is not merged[1]
    assert {"MedMerge A + B", "FT A", "linear probe:\nmacro F1", "fine-tuning:\nloss", "epoch"} <= set(words(figure))
    colours = [marked(figure, f"val_loss/fine_tune/{run}/0").get_color() for run in ("MedMerge A + B", "FT A", "FT B")]
    assert colours == [plotstyle.APPROACH_COLOURS[name] for name in ("medmerge", "ft", "ft")]
    assert "FT A 0." in figure.alt and {"FT A", "macro F1", "loss"} <= set(words(figure.narrow))


def test_learning_curves_mark_the_best_epoch_of_the_last_phase():
    given = history([("MedMerge A + B", "medmerge")], seeds=1).assign(
        val_macro_f1=[0.9, 0.1, 0.1, 0.1, 0.3, 0.7, 0.7, 0.2]
    )
    figure = figures.learning_curves(given)
    best = marked(figure, "best/fine_tune/MedMerge A + B/0")
    assert (*best.get_xdata(), *best.get_ydata()) == (2, 0.7)
    assert not [
        line for axes in figure.axes for line in axes.lines if line.get_gid() == "best/linear_probe/MedMerge A + B/0"
    ]


def test_heatmap_draws_the_mean_of_each_layer():
    weights = {"first run": kernel_weights(5), "second run": kernel_weights(5, spread=0.2, seed=1)}
    figure = depth.depth_heatmap(weights, "ImageNet", "HAM10K")
    (image,) = figure.axes[0].images
    means = [[w.mean() for w in row.values()] for row in weights.values()]
    assert np.asarray(image.get_array()) == pytest.approx(np.array(means))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(weights)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("means", "beyond"),
    [
        ([0.45, 0.51], "min"),
        ([0.5, 0.534], "max"),
        ([0.39, 1.2], "both"),
        ([0.49, 0.51], "neither"),
    ],
)
def test_every_heatmap_has_one_scale_about_a_half_and_says_what_goes_beyond(means, beyond):
    weights = {"run": {f"conv{i}": np.full(3, mean) for i, mean in enumerate(means)}}
    figure = depth.depth_heatmap(weights, "ImageNet", "HAM10K")
    (image,) = figure.axes[0].images
    assert image.get_clim() == pytest.approx((0.48, 0.52)) and image.colorbar.extend == beyond
    middle = np.array(image.cmap(image.norm(0.5)))
    assert np.ptp(middle[:3]) < 0.02, "neither source at 0.5"
    label = figure.axes[1].get_xlabel()
    assert label.index("← HAM10K") < label.index("ImageNet →"), "w is the first source's share"


def test_blocks_stand_where_they_begin_and_end():
    figure = depth.depth_heatmap({"run": {name: [0.5] for name in DENSENET}}, "A", "B")
    assert {"stem", "block 1", "T1", "block 2", "T2", "block 3", "T3", "block 4"} <= set(words(figure))
    middle = {text.get_text(): text.xy[0] for text in figure.axes[0].texts}
    assert (middle["stem"], middle["block 1"], middle["T1"]) == (0, (1 + 28) / 2, 29)
    resnet = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.downsample.0"]
    found = words(depth.weight_spread({name: [0.5, 0.6] for name in resnet}, "A", "B"))
    assert {"stem", "layer 1", "layer 2"} <= set(found)
    assert "stem" not in words(depth.weight_spread(kernel_weights(), "A", "B"))


def test_spread_draws_quantiles_and_counts_every_kernel():
    weights = kernel_weights(7)
    along, histogram = depth.weight_spread(weights, "ImageNet", "HAM10K").axes
    median = along.lines[0].get_ydata()
    assert median == pytest.approx([np.median(w) for w in weights.values()])
    bands = np.array([segment[:, 1] for segment in along.collections[0].get_segments()])
    assert bands == pytest.approx(np.array([np.quantile(w, [0.05, 0.95]) for w in weights.values()]))
    assert sum(bar.get_width() for bar in histogram.patches) == sum(map(len, weights.values()))
    assert "← HAM10K" in along.get_ylabel() and "ImageNet →" in along.get_ylabel()


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


def test_the_map_by_kind_shows_the_layers_of_one_size_up_to_the_next():
    generator = np.random.default_rng(0)
    names = [(name, shape) for name, (_, shape) in architecture("densenet_small").items()]
    weights = {name: generator.normal(0.5, 0.02, shape[0]) for name, shape in names}
    figure = depth.map_by_kind(weights, "densenet_small", "A", "B")
    (axes,) = (axes for axes in figure.axes if axes.images)
    labels = [text.get_text() for text in axes.get_yticklabels()]
    rows = dict(zip(labels, np.asarray(axes.images[0].get_array()), strict=True))
    means = np.array([w.mean() for w in weights.values()])
    assert set(rows) == {"all layers", "3×3 alone", "1×1 alone"} and list(rows["all layers"]) == pytest.approx(means)
    size = np.array([shape[-1] for _, shape in names])
    for row, side in (("3×3 alone", 3), ("1×1 alone", 1)):
        assert (
            rows[row][size == side] == pytest.approx(means[size == side])
            and len(set(rows[row])) == (size == side).sum()
        )


def test_confusion_has_true_rows_and_predicted_columns():
    figure = figures.confusion([0, 0, 0, 0, 1], [0, 1, 1, 1, 1], ["a", "b", "never"])
    (axes,) = figure.axes
    shares = np.asarray(axes.images[0].get_array())
    assert shares.tolist() == [[0.25, 0.75, 0], [0, 1, 0], [0, 0, 0]]
    assert axes.images[0].get_clim() == (0, 1)
    written = [text.get_text() for text in axes.texts]
    assert written == ["25\xa0%\n1", "75\xa0%\n3", "", "", "100\xa0%\n1", "", "", "", ""]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (4)", "b (1)", "never (0)"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_class_counts_draw_every_number():
    figure = figures.class_counts(counts())
    (axes,) = figure.axes
    ends = [bar.get_x() + bar.get_width() for bars in axes.containers for bar in bars]
    assert ends == pytest.approx([2000, 100, 200, axes.get_xlim()[0]]), "none: no bar"
    assert {"2,000", "100", "200", "0", "train", "test", "nevus", "melanoma"} <= set(words(figure))
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "images (log scale)"
    assert axes.yaxis_inverted()
    balanced = figures.class_counts(pd.DataFrame({"train": [1900, 100], "test": [9, 8]}, index=["a", "b"]))
    assert balanced.axes[0].get_xscale() == "linear" and balanced.axes[0].get_xlabel() == "images"
    assert to_rgba(balanced.axes[0].patches[0].get_facecolor()) != balanced.axes[0].patches[-1].get_facecolor()


@pytest.mark.parametrize("column", ["val_loss", "val_macro_f1"])
def test_unfinished_histories_are_refused(column):
    with pytest.raises(ValueError, match="finite values of"):
        figures.learning_curves(history().assign(**{column: np.nan}))


def test_nothing_to_draw_is_refused():
    for draw in (
        lambda: forest(table().iloc[:0], "label", xlabel=""),
        lambda: depth.along_depth(depth_table()[:0], {}),
    ):
        with pytest.raises(ValueError, match="has 0 lines"):
            draw()
    with pytest.raises(ValueError, match="'b' has other layers"):
        depth.depth_heatmap({"a": kernel_weights(3), "b": kernel_weights(2)}, "A", "B")
