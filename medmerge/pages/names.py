"""What readers call networks, datasets, studies and settings, by the names that files give them: one map for all."""

from medmerge.study import records
from medmerge.study.records import Record

NETWORKS = {
    **{"densenet121": "DenseNet-121", "resnet50": "ResNet-50", "mobilenet_v2": "MobileNetV2"},
    "densenet_small": "small DenseNet",
}
DATASETS = {
    **{"imagenet": "ImageNet", "imagenet1k": "ImageNet-1k", "tinyimagenet": "Tiny-ImageNet"},
    **{"ham10k": "HAM10000", "isic2019": "ISIC 2019", "isic2017": "ISIC 2017"},
    **{"chexpert": "CheXpert", "rsna": "RSNA Pneumonia", "nih_pneumonia": "NIH ChestX-ray14"},
    **{"kermany": "Kermany’s X-rays", "eyepacs": "EyePACS", "aptos2019": "APTOS 2019"},
    **{"fundus4": "fundus photographs", "medmnist:retinamnist": "RetinaMNIST"},
}
STUDIES = {
    **{"skin": "Skin lesions, first run", "skin-seeds": "Skin lesions", "skin-leaky": "Skin lesions, with the overlap"},
    **{"skin-ablation": "Skin lesions, ablations", "chest": "Chest X-rays", "retina": "Fundus photographs"},
    **{"skin-2": "Skin lesions, second round", "chest-2": "Chest X-rays, second round"},
    "retina-2": "Fundus photographs, second round",
}
SETTINGS = {"batchnorm_free": "trained in batch norm:", "batchnorm": "batch norm", "w_lr": "learning rate of w"}


def study(folder: str) -> str:
    """A study in words, such as ``"Skin lesions, DenseNet-121"``, by the folder of its records, pair and backbone."""
    pair, backbone = folder.split("/")
    return f"{STUDIES.get(pair, pair)}, {NETWORKS.get(backbone, backbone)}"


def row(record: Record) -> str:
    """A record's row in words, such as ``"MedMerge Tiny-ImageNet + HAM10000"``, its settings in brackets."""
    sources = [DATASETS.get(name, name) for name in record.run["row"]["sources"]]
    settings = {SETTINGS.get(name, name.replace("_", " ")): value for name, value in record.settings.items()}
    return records.label(record.run["row"]["title"], sources, settings)
