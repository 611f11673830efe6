"""How fast the explorer is in a browser: DenseNet-121 and ResNet-50 on one page, opened from a file in Chromium.

    python benchmarks/explorer.py
    python benchmarks/explorer.py --seeds 3 --epochs 50

Weights are drawn, as many as the networks have kernels. First paint is when the explorer has replaced the picture for
readers without scripts and the browser has drawn it, counted from the start of the navigation; a layer change is from
setting the list to the next frame. Needs Chromium and its driver.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from medmerge.explorer import payload as explorer_data
from medmerge.explorer import widget as explorer
from medmerge.study.layers import architecture

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import browser  # noqa: E402

LAYER_CHANGE = """
const done = arguments[arguments.length - 1], list = document.querySelector("[data-mm=layer]");
const start = performance.now();
list.selectedIndex = arguments[0];
list.dispatchEvent(new Event("change"));
const computed = performance.now() - start;
requestAnimationFrame(() => setTimeout(() => done([computed, performance.now() - start])));
"""
PAINTED = """
const done = arguments[arguments.length - 1];
const look = () => performance.getEntriesByName("explorer").length
  ? done(performance.getEntriesByName("explorer")[0].startTime) : setTimeout(look, 5);
look();
"""
MARK = """<script>
new MutationObserver((_, self) => {
  if (!document.querySelector(".mm-explorer[data-ready]")) return;
  self.disconnect();
  requestAnimationFrame(() => setTimeout(() => performance.mark("explorer")));
}).observe(document, { subtree: true, childList: true, attributes: true });
</script>"""


def main() -> None:
    arguments = parse_arguments()
    runs = [
        drawn(backbone, seed, arguments.epochs)
        for backbone in ("densenet121", "resnet50")
        for seed in range(arguments.seeds)
    ]
    page = explorer.Explorer(runs, {}, {}, {})
    html = page.html()
    print(f"{len(runs)} runs: " + ", ".join(f"{run.name} ({kernels(run):,} kernels)" for run in runs))
    print(f"page: {len(html.encode()) / 1e6:.2f} MB, of which data {len(page._content.encode()) / 1e6:.2f} MB")
    with tempfile.TemporaryDirectory(prefix="medmerge-explorer-") as folder:
        path = Path(folder, "page.html")
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Explorer</title>'
        path.write_text(f"{head}{MARK}<body>{html}", encoding="utf-8")
        driver = browser.start()
        try:
            paints = []
            for _ in range(arguments.repeats):
                driver.get("about:blank")
                driver.get(path.as_uri())
                paints.append(driver.execute_async_script(PAINTED))
            print(f"first paint: {statistics.median(paints):.0f} ms, at most {max(paints):.0f} ms of {len(paints)}")
            for run in runs[:: arguments.seeds]:
                selection = {**page.selection, "run": run.name, "layer": next(iter(run.weights))}
                driver.execute_script(
                    "location.hash = arguments[0]", f"explorer&run={run.name}&layer={selection['layer']}"
                )
                times = [driver.execute_async_script(LAYER_CHANGE, index) for index in range(1, len(run.weights))]
                for name, each in zip(("computed", "drawn"), zip(*times, strict=True), strict=True):
                    middle, most = statistics.median(each), max(each)
                    print(f"{run.name}: layer change {name} in {middle:.1f} ms, at most {most:.1f} ms of {len(each)}")
        finally:
            driver.quit()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="runs of each network")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of history a run")
    parser.add_argument("--repeats", type=int, default=5, help="times that the page is opened")
    return parser.parse_args()


def drawn(backbone: str, seed: int, epochs: int) -> explorer_data.Run:
    """A run with weights as far from 0.5 as learnt ones, and its way there."""
    rng = np.random.default_rng(seed)
    sizes = {name: shape[0] for name, (_, shape) in architecture(backbone).items()}
    w = {name: (0.5 + rng.normal(0, 0.03, n)).astype(np.float32) for name, n in sizes.items()}
    steps = np.arange(1, epochs + 1)
    history = {name: 0.5 + (one - 0.5) * steps[:, None] / epochs for name, one in w.items()} if epochs else {}
    labels = (backbone, "MedMerge imagenet + skin", str(seed))
    return explorer_data.Run(
        f"{backbone}/seed{seed}", w, ("imagenet", "skin"), "drawn", *labels, steps, history, epochs or None
    )


def kernels(run: explorer_data.Run) -> int:
    return sum(map(len, run.weights.values()))


if __name__ == "__main__":
    main()
