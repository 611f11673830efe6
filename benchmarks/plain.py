"""The five approaches of a pair as a plain script: torchvision, a DataLoader that decodes in every epoch, fp32.

What `benchmarks/row.py` holds this package against. It does not import it, and is written as one would for a single
experiment: the linear probe runs through the frozen backbone, a merge goes through `torch.func.functional_call`.

    python benchmarks/plain.py SETTINGS

SETTINGS are JSON: what `row.scripted` gives. The folder has the photographs in PART/CLASS/*.jpg. Prints a line an
approach, with its macro F1.
"""

import copy
import json
import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F
import torchvision
from sklearn.metrics import f1_score
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Merged(nn.Module):
    """Two networks; the weight of every kernel is learnt, so are the batch norms of the mean."""

    def __init__(self, first, second):
        super().__init__()
        self.network = copy.deepcopy(first)
        for mine, other in zip(self.network.modules(), second.modules(), strict=True):
            if isinstance(mine, nn.BatchNorm2d):
                for name in ("weight", "bias", "running_mean", "running_var"):
                    getattr(mine, name).data = (getattr(mine, name).data + getattr(other, name).data) / 2
        self.names = [f"{n}.weight" for n, m in first.named_modules() if isinstance(m, nn.Conv2d)]
        self.kernels = [[net.get_parameter(n).detach().clone() for n in self.names] for net in (first, second)]
        half = [torch.full((len(kernel), 1, 1, 1), 0.5, device=DEVICE) for kernel in self.kernels[0]]
        self.w = nn.ParameterList(map(nn.Parameter, half))

    def merged(self):
        return {n: w * a + (1 - w) * b for n, w, a, b in zip(self.names, self.w, *self.kernels, strict=True)}

    def forward(self, x):
        return functional_call(self.network, self.merged(), (x,))

    @torch.no_grad()
    def fold(self):
        for name, kernel in self.merged().items():
            self.network.get_parameter(name).copy_(kernel)
        return self.network


def load(arch, path, classes):
    model = getattr(torchvision.models, arch)(num_classes=classes)
    model.load_state_dict(torch.load(path, weights_only=True), strict=False)
    return model.to(DEVICE)


def head(model):
    return model.classifier if hasattr(model, "classifier") else model.fc


def train(model, loaders, lr, epochs, frozen=None):
    """Train what has gradients; back to the epoch with the best validation F1."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.01)
    best, state = -1.0, None
    for _ in range(epochs):
        model.train()
        if frozen is not None:
            frozen.eval()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            F.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE)).backward()
            optimizer.step()
        score = evaluate(model, loaders["val"])
        if score > best:
            best, state = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)


@torch.no_grad()
def evaluate(model, loader):
    model.eval()
    found = [(model(images.to(DEVICE)).argmax(1).cpu(), labels) for images, labels in loader]
    predicted, truth = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    return f1_score(truth, predicted, average="macro", zero_division=0)


def fine_tuned(model, loaders, o):
    model.requires_grad_(True)
    train(model, loaders, o.ft_lr, o.epochs)
    return model


def lp_ft(model, loaders, o):
    model.requires_grad_(False)
    head(model).requires_grad_(True)
    train(model, loaders, o.lp_lr, o.epochs, frozen=model)
    return fine_tuned(model, loaders, o)


def medmerge(first, second, loaders, o):
    merge = Merged(first, second)
    for name, parameter in merge.network.named_parameters():
        parameter.requires_grad_(name not in merge.names)
    train(merge, loaders, o.lp_lr, o.epochs)
    return fine_tuned(merge.fold(), loaders, o)


def main():
    o = SimpleNamespace(**json.loads(sys.argv[1]))
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    prepare = transforms.Compose([transforms.Resize((o.size, o.size)), transforms.ToTensor(), normalize])
    data = {part: ImageFolder(f"{o.folder}/{part}", prepare) for part in ("train", "val", "test")}
    workers = {"num_workers": o.workers, "persistent_workers": o.workers > 0}
    loaders = {part: DataLoader(one, o.batch, shuffle=part == "train", **workers) for part, one in data.items()}
    classes = len(data["train"].classes)
    first, second = [o.first], [o.second]
    for approach, sources in (
        *((one, source) for one in (fine_tuned, lp_ft) for source in (first, second)),
        (medmerge, first + second),
    ):
        torch.manual_seed(o.seed)
        networks = [load(o.arch, path, classes) for path in sources]
        print(approach.__name__, evaluate(approach(*networks, loaders, o), loaders["test"]), flush=True)


if __name__ == "__main__":
    main()
