"""What readers see in place of the names that parameters and records use: one map for all pages."""

DATASETS = {
    "tinyimagenet": "Tiny-ImageNet",
    "imagenet": "ImageNet",
    "imagenet1k": "ImageNet-1k",
    "ham10k": "HAM10000",
    "ham10k-scratch": "HAM10000 from scratch",
    "isic2017": "ISIC 2017",
    "isic2019": "ISIC 2019",
    "eyepacs": "EyePACS",
    "aptos2019": "APTOS 2019",
    "chexpert": "CheXpert",
    "rsna": "RSNA Pneumonia",
    "kermany": "Kermany chest X-rays",
    "nih_pneumonia": "NIH pneumonia",
    "fundus4": "fundus in four folders",
    "medmnist:retinamnist": "RetinaMNIST",
    "synthetic:moles": "drawn moles",
    "synthetic:lesions": "drawn lesions",
    "synthetic:objects": "drawn objects",
}
"""By their names as targets, and by what sources are called that were trained on them."""

NETWORKS = {
    "densenet121": "DenseNet-121",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "densenet_small": "a small DenseNet",
    "vit_mini": "a small ViT",
    "swin_mini": "a small Swin",
}

PAIRS = {
    "skin": "Skin lesions, exploratory",
    "skin-seeds": "Skin lesions",
    "skin-ablation": "Skin lesions, ablations",
    "skin-leaky": "Skin lesions with the overlap",
    "skin-2": "Skin lesions, second round",
    "chest": "Chest X-rays",
    "chest-2": "Chest X-rays, second round",
    "retina": "Fundus photographs",
    "retina-2": "Fundus photographs, second round",
}
"""Of the open study, by ``pair`` of their parameter files."""

SETTINGS = {
    "w_lr": "rate of w",
    "w_decay": "decay of w",
    "ft_epochs": "epochs of FT",
    "batchnorm": "batch norm",
    "batchnorm_free": "free in batch norm:",
    "granularity": "a weight for each",
    "normalisation": "weights by",
    "align": "aligned by",
}
"""In which rows of a study differ."""


def title(name: str) -> str:
    """The words for a dataset, a source or a network; the name itself where there are none, as of a user's own."""
    return DATASETS.get(name) or NETWORKS.get(name, name)


def pair(name: str) -> str:
    """The words for a pair; its name where there are none."""
    return PAIRS.get(name, name)


def setting(name: str) -> str:
    """The words for a parameter that rows differ in; its name where there are none."""
    return SETTINGS.get(name, name)


def phrase(text: str) -> str:
    """A row that a record names, such as ``"FT ham10k"``, in readers' words."""
    return " ".join(map(title, text.split()))


def study(folder: str) -> str:
    """A study in words, such as ``"Skin lesions, DenseNet-121"``, by the folder of its records, pair and backbone."""
    name, backbone = folder.split("/")
    return f"{pair(name)}, {title(backbone)}"
