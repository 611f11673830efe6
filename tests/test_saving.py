"""What `medmerge.save` writes is built again by `medmerge.load`: the same object, to the bit, and no code run."""

import json

import pytest
import safetensors
import safetensors.torch
import torch
import torchvision
from torch import nn

from medmerge import Classifier, KernelMerge, backbone, load, save, save_backbone
from medmerge.weightfiles import CheckpointError, read_state, write

SMALL = "densenet_small"


def merge(name: str = SMALL, sources: int = 2, size: int | None = None, dtype=None, **options: object) -> KernelMerge:
    torch.manual_seed(1)
    merged = KernelMerge([backbone(name, "random", size).to(dtype) for _ in range(sources)], **options)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return merged


MODELS = {
    "backbone": lambda: backbone(SMALL, "random"),
    "half": lambda: backbone(SMALL, "random").half(),
    "classifier": lambda: Classifier(backbone("resnet18", "random"), 5),
    "classifier with torchvision's other head": lambda: Classifier(backbone("mobilenet_v2", "random"), 5),
    "classifier with a head of our own": lambda: Classifier(backbone("squeezenet1_1", "random"), 5),
    "vit": lambda: Classifier(backbone("vit_mini", "random", 48), 2),
    "swin": lambda: Classifier(backbone("swin_mini", "random"), 2),
    "merge": merge,
    "merge of three": lambda: merge(sources=3),
    "merge in bf16": lambda: merge(dtype=torch.bfloat16),
    "one weight for all": lambda: merge(granularity="model", batchnorm=1),
    "merge with a head": lambda: Classifier(merge("resnet18", normalisation="softmax"), 3),
    "merge of ViTs": lambda: Classifier(merge("vit_mini", size=48), 2),
    "folded": lambda: Classifier(merge().fold(), 3),
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_loaded_is_what_was_saved(tmp_path, kind):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    path = tmp_path / "m.safetensors"
    save(model, path, trained_on="moles")
    before = torch.get_rng_state()
    again = load(path)
    assert torch.equal(torch.get_rng_state(), before)
    ours, theirs = model.state_dict(), again.state_dict()
    assert type(again) is type(model) and list(ours) == list(theirs) and not again.training
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)).to(
        torch.bfloat16 if "bf16" in kind else next(model.parameters()).dtype
    )
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    content = path.read_bytes()
    save(again, path, trained_on="moles")
    assert path.read_bytes() == content


def test_a_loaded_merge_learns_and_folds_as_the_first(tmp_path):
    first = merge(granularity="layer")
    save(first, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.granularity == "layer" and {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in first.named_parameters() if p.requires_grad
    }
    folded, expected = again.fold().state_dict(), first.fold().state_dict()
    assert all(torch.equal(folded[key], expected[key]) for key in expected)
    with pytest.raises(CheckpointError, match=r"holds a KernelMerge: medmerge\.load\(path\) reads it"):
        backbone(SMALL, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "model",
    [
        torchvision.models.resnet18(),
        KernelMerge([nn.Linear(2, 2), nn.Linear(2, 2)]),
        nn.Sequential(Classifier(backbone(SMALL, "random"), 2)),
    ],
    ids=["a network of one's own", "a merge of such", "around a classifier"],
)
def test_what_could_not_be_built_again_is_refused_with_the_way_out(tmp_path, model):
    with pytest.raises(TypeError, match=r"torch\.save\(model\.state_dict\(\), path\) keeps its values"):
        save(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"is not of medmerge\.save: medmerge\.backbone\(name, weights=file\) takes others'"),
        ({"medmerge.backbone": "densenet"}, "is not what its header says .unknown backbone 'densenet'"),
        ({"medmerge.backbone": "resnet18"}, "is not what its header says"),
        ({"medmerge.backbone": SMALL, "medmerge.merge": "{"}, "is not what its header says"),
        ({"medmerge.backbone": SMALL, "medmerge.merge": '{"sources": 2, "evil": 1}'}, "is not what its header says"),
        ({"medmerge.backbone": SMALL, "medmerge.merge": '{"sources": "os"}'}, "is not what its header says"),
    ],
)
def test_headers_that_say_something_else_are_refused(tmp_path, metadata, message):
    write(backbone(SMALL, "random").state_dict(), tmp_path / "m.safetensors", metadata)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "m.safetensors")


def test_files_of_finished_runs_stay_loadable(tmp_path):
    """As the first version wrote them: torchvision's names, the architecture and nothing else of ours in the header."""
    model = Classifier(backbone(SMALL, "random"), 4).eval()
    state = {f"classifier.{key}": value for key, value in model.head.state_dict().items()}
    safetensors.torch.save_file(
        model.backbone.state_dict() | state,
        tmp_path / "m.safetensors",
        {"format": "pt", "medmerge.backbone": SMALL, "trained_on": "ham10k", "classes": json.dumps(["a"] * 4)},
    )
    again = load(tmp_path / "m.safetensors")
    assert isinstance(again, Classifier) and torch.equal(again.head.weight, model.head.weight)
    save_backbone(model.backbone, tmp_path / "b.safetensors", SMALL)
    assert type(load(tmp_path / "b.safetensors")) is type(model.backbone)
    assert "classifier.weight" not in read_state(tmp_path / "b.safetensors")
