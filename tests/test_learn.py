"""`medmerge learn`: from two checkpoints and a folder of images to a network, its card and its records."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import yaml
from data_fixtures import write_csv, write_image
from PIL import Image
from test_study import write_weights

from medmerge import Classifier, Parameters, backbone, load, save_backbone
from medmerge.cli import main as cli
from medmerge.data import split_files
from medmerge.study import inputs, records

FAST = ["--set", "lp_epochs=2", "--set", "lp_lr=0.01", "--set", "ft_epochs=2", "--set", "ft_lr=1.0e-3"]
FAST += ["--set", "image_size=32", "--set", "device=cpu", "--set", "precision=fp32"]


@pytest.fixture
def project(project):
    """Two checkpoints, sixty images whose class is their brightest channel, and their labels."""
    write_weights(project)
    for name, new in (("objects", "first"), ("lesions", "second source")):
        (project / f"w/{name}.safetensors").rename(project / f"{new}.safetensors")
    rng = np.random.default_rng(0)
    lines = ["image,label,group"]
    (project / "images").mkdir()
    for number in range(60):
        pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        pixels[..., number % 3] += 70
        Image.fromarray(pixels).save(project / "images" / f"{number}.png")
        lines.append(f"{number}.png,{('red', 'green', 'blue')[number % 3]},patient{number // 6}{number % 3}")
    (project / "labels.csv").write_text("\n".join(lines) + "\n")
    return project


def command(*more: str, sources=("first.safetensors", "second source.safetensors"), labels=("--labels", "labels.csv")):
    named = [argument for source in sources for argument in ("--source", source)]
    return cli.main(["learn", *named, "--images", "images", *labels, "--out", "out", *FAST, *more])


def test_ends_in_a_network_that_the_card_says_how_to_load(project, capsys, monkeypatch):
    for path in (project / "images").iterdir():
        Image.open(path).resize((50, 20)).save(path)
    assert command("--set", "resize=pad") == 0
    printed = capsys.readouterr().out
    assert re.search(r"macro F1 [01]\.\d{3} on 1\d test images \(95 % interval", printed) and "out/README.md" in printed
    files = {"model.safetensors", "model.images.csv", "README.md", "config.json", "split.csv", "records"}
    assert {path.name for path in (project / "out").iterdir()} == files
    assert (
        "densenet_small, 32 px, " in printed and "2 epochs of linear probe and 2 of fine-tuning, 1 run to do" in printed
    )
    (record,) = records.gather(project / "out/records")
    assert record.folder.parts[-5:] == ("own", "out", "densenet_small", "medmerge-first-second-source", "seed0")

    text, run = (project / "out/README.md").read_text(), record.run
    for value in (
        f"| 1 | {run['metrics']['macro_f1']:.3f} | ",
        *(print_[:16] for print_ in run["sources"].values()),
        run["data"]["split"]["fingerprint"][:16],
        "| first | first.safetensors |",
        "w is the share of first in a kernel",
        "Not stated. The licences of both sources and of the images apply.",
        "Linear probe 2 epochs at 0.01, fine-tuning 2 at 0.001",
    ):
        assert value in text, value
    w = np.concatenate([values.ravel() for values in record.kernel_weights.values()])
    ended = f"Over {w.size:,} kernels of {len(record.kernel_weights)} layers it ended at a median of {np.median(w):.3f}"
    assert ended in text
    for name, row in pd.DataFrame(run["data"]["counts"]).iterrows():
        assert f"| {name} | {row.train} | {row.val} | {row.test} |" in text
    saved = split_files.read(project / "out/split.csv")
    assert split_files.fingerprint(list(saved.parts), list(saved.parts.values())) == run["data"]["split"]["fingerprint"]
    config = json.loads((project / "out/config.json").read_text())
    assert config["architecture"] == "densenet_small" and config["label_names"] == record.run["data"]["classes"]
    assert (config["resize"], config["image_size"], config["num_classes"]) == ("pad", 32, 3)
    network = load(project / "out/model.safetensors")
    assert isinstance(network, Classifier) and network.head.out_features == 3
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.chdir(project / "out")
    for image, expected in zip(record.predictions["id"][:5], record.probabilities, strict=False):
        (project / "out/image.png").write_bytes((project / "images" / image).read_bytes())
        namespace: dict = {}
        exec(code, namespace)
        assert namespace["classes"] == record.run["data"]["classes"]
        assert np.allclose(namespace["probabilities"].numpy(), expected, atol=1e-5)


def test_baselines_on_request_on_a_card_that_a_model_hub_reads(project):
    """As the hub's own library does; it is there where timm is."""
    hub = pytest.importorskip("huggingface_hub")
    assert command("--compare", "--licence", "CC-BY-4.0") == 0
    text = (project / "out/README.md").read_text()
    assert "The best baseline is" in text and "LP-FT second-source" in text and "MedMerge minus" in text
    found = records.gather(project / "out/records")
    (record,) = [one for one in found if one.approach == "medmerge"]
    data = hub.ModelCard(text).data
    assert (len(found), data.license, data.library_name) == (5, "cc-by-4.0", "torchvision")
    assert (data.pipeline_tag, data.model_name) == ("image-classification", "out")
    names = {"f1": "macro_f1", "accuracy": "accuracy", "roc_auc": "macro_auroc"}
    stated = {one.metric_type: one.metric_value for one in data.eval_results}
    assert stated == {name: round(record.run["metrics"][ours], 4) for name, ours in names.items()}


def test_folders_as_classes_and_several_seeds(project):
    for number in range(60):
        write_image(project / "tree" / ("even", "odd")[number % 2] / f"{number}.png", number, (32, 32))
    (project / "images").rename(project / "before")
    (project / "tree").rename(project / "images")
    assert command("--set", "seeds=[0, 1]", labels=()) == 0
    text = (project / "out/README.md").read_text()
    assert "means over 2 seeds, while the file is seed" in text and "| even |" in text
    found = records.gather(project / "out/records")
    best = max(found, key=lambda record: record.history["val_macro_f1"].max())
    assert (project / "out/model.safetensors").read_bytes() == (
        best.folder / "checkpoint/model.safetensors"
    ).read_bytes()


def test_several_labels_an_image(project):
    rows = [f"{number}.png,{'|'.join(name for k, name in enumerate('ab') if number >> k & 1)}" for number in range(60)]
    write_csv(project / "images", "image,labels\n" + "\n".join(rows) + "\n")
    assert command(labels=("--labels", "images/labels.csv")) == 0
    assert "sigmoid()" in (project / "out/README.md").read_text()
    (record,) = records.gather(project / "out/records")
    assert record.multilabel and record.labels.shape == record.probabilities.shape == (12, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": ("first.safetensors",)}, "--source: 1 given; MedMerge merges two"),
        ({"sources": ("first.safetensors", "gone.safetensors")}, r"--source: no file .*gone\.safetensors: .* give the"),
        ({"sources": ("first.safetensors", "resnet18.pth.tar")}, "is densenet_small and .* is resnet18; MedMerge"),
        ({"sources": ("first.safetensors", "page.pt")}, r"page\.pt is a web page"),
        ({"labels": ("--labels", "gone.csv")}, r"--labels: no file gone\.csv here or in .*images"),
        ({"more": ("--exclude", "gone.txt")}, r"--exclude: no .*gone\.txt: there is no "),
        ({"more": ("--set", "lp_epoch=3")}, "lp_epoch: unknown parameter; did you mean lp_epochs"),
        ({"more": ("--set", "seeds=[1")}, r"--set seeds=\[1: write NAME=VALUE as in YAML"),
        ({"more": ("--out", "images/deep/out")}, "--out: .*images/deep/out/records is in --images .*images.*only read"),
    ],
)
def test_bad_input_stops_before_training_in_this_commands_words(project, capsys, arguments, message):
    torch.save(torchvision.models.resnet18().state_dict(), project / "resnet18.pth.tar")
    (project / "page.pt").write_text("<!doctype html>")
    more = arguments.pop("more", ())
    assert command(*more, **arguments) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and not re.search(r"notebook|pair\b|target_|_weights|_data\b", said)
    assert not (project / "out").exists()


def test_the_network_is_what_the_checkpoints_hold_and_labels_are_among_the_images(project, capsys):
    for seed, name in enumerate(("a.pth.tar", "b.ckpt")):
        torch.manual_seed(seed)
        state = torchvision.models.resnet18(num_classes=seed + 2).state_dict()
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, project / name)
    (project / "labels.csv").rename(project / "images/labels.csv")
    for labels in ((), ("--labels", "labels.csv")):
        more = ("--set", "lp_epochs=1", "--set", "ft_epochs=1", "--set", "lp_lr=1e-3")
        assert command(*more, sources=("a.pth.tar", "b.ckpt"), labels=labels) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("resnet18, 32 px, ") and "images/labels.csv: 1 epochs of linear probe" in printed
    (record,) = records.gather(project / "out/records")
    assert (
        record.run["parameters"]["lp_lr"] == 1e-3
        and type(load(project / "out/model.safetensors").backbone).__name__ == "ResNet"
    )


def test_broken_images_are_named_at_once_and_can_be_left_out(project, capsys):
    for name in ("0.png", "7.png"):
        (project / "images" / name).write_bytes(b"\x89PNG")
    assert command() == 2
    said = capsys.readouterr().err
    assert all(f"{name}: " in said for name in ("0.png", "7.png")) and "--exclude FILE" in said
    (project / "leave.txt").write_text("0.png\n7.png\n")
    assert command("--exclude", "leave.txt") == 0
    (record,) = records.gather(project / "out/records")
    assert sum(record.images.values()) == 58
    assert "2 of 60 images are left out" in (project / "out/README.md").read_text()


def test_a_second_call_trains_nothing_and_does_not_pass_for_one_of_other_images_or_sources(project, capsys):
    def written():
        return {path: path.read_bytes() for path in (project / "out").rglob("*") if path.is_file()}

    assert command() == 0
    before = written()
    assert command() == 0 and written() == before
    (project / "images").rename(project / "before")
    for number in range(60):
        write_image(project / "images" / f"{number}.png", number, (32, 32))
    assert command() == 2
    assert "--out: out holds results of other images or sources; name another" in capsys.readouterr().err
    (project / "images").rename(project / "after")
    (project / "before").rename(project / "images")
    save_backbone(backbone("densenet_small", "random"), project / "first.safetensors", "densenet_small")
    assert command() == 2
    assert "other weights of first" in capsys.readouterr().err and written() == before


def test_the_network_lists_what_it_and_its_sources_have_learnt_from(project):
    columns = "id,group,sha256,split,dataset\n"
    (project / "first.images.csv").write_text(columns + "ISIC_1,HAM_1,,train,ham10k\nISIC_2,HAM_2,,test,ham10k\n")
    assert command() == 0
    listed = pd.read_csv(project / "out/model.images.csv", dtype=str)
    assert len(listed) == 61 and listed[listed["dataset"] == "ham10k"]["id"].tolist() == ["ISIC_1"]
    weights = {"source_data": "mine", "source_weights": str(project / "out/model.safetensors")}
    p = Parameters.parse({**weights, "target_data": "isic2019", "target_root": "."})
    images = pd.DataFrame({"id": ["ISIC_1", "ISIC_2"], "group": ["HAM_1", "HAM_2"], "sha256": "", "split": "test"})
    assert inputs.overlap(p, images, ["mine"])["mine"]["images"]["test"] == 1


def test_names_of_classes_do_not_break_the_card(project):
    lines = (project / "labels.csv").read_text()
    for old, new in {",red": ',"a|b"', ",green": ',"<i> ""* x\n---"', ",blue": ",üñ"}.items():
        lines = lines.replace(old, new)
    (project / "labels.csv").write_text(lines, encoding="utf-8")
    assert command("--licence", 'mine: "own"') == 0
    text = (project / "out/README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert (header["license"], header["license_name"]) == ("other", 'mine: "own"')
    assert "| a\\|b | 12 | 4 | 4 |" in text and '| recall of | \\<i> "\\* x --- | a\\|b | üñ |' in text
