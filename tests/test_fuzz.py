"""Input that is wrong in ways nobody thought of ends in one of the project's own errors, or is read consistently.

The same few hundred inputs each time; ``MEDMERGE_FUZZ=100 pytest tests/test_fuzz.py`` tries 100 times as many, others
each time.
"""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from data_fixtures import write_image
from fuzzing import JSON, attempt, changed, damaged, examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from medmerge import Parameters, backbone, checkpoints, save_backbone
from medmerge.data import load_images, load_table
from medmerge.study.params import load_yaml
from medmerge.weightfiles import read_state

ROOT = Path(__file__).resolve().parents[1]
NAMES = list(Parameters.model_fields)
VALID = [load_yaml(path) for path in sorted((ROOT / "params").glob("*/*.yaml"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# ---------------------------------------------------------------- parameters


def parsed(path: Path) -> Parameters:
    return Parameters.parse(load_yaml(path), str(path))


@examples(150)
@given(text=st.text() | st.sampled_from(NAMES).flatmap(lambda name: st.text().map(lambda text: f"{name}: {text}")))
def test_texts_for_parameters(place, text):
    path = place / "p.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    attempt(parsed, path)


@examples(150)
@given(values=st.sampled_from(VALID).flatmap(changed) | st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4))
def test_values_for_parameters(place, values):
    path = place / "p.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=False), encoding="utf-8")
    if p := attempt(parsed, path):
        again = Parameters.parse(p.model_dump())
        assert again.model_dump() == p.model_dump()


# ---------------------------------------------------------------- label files, splits, images


@pytest.fixture(scope="module")
def own(place):
    for number in range(6):
        write_image(place / "own" / f"{number}.jpg", seed=number)
    return place / "own"


CSV = b"""image,label,group,split
0.jpg,a,p,train
1.jpg,b,p,train
2.jpg,a,q,val
3.jpg,b,q,val
4.jpg,a,r,test
5.jpg,b,s,test
"""


@examples(200)
@given(content=damaged(CSV) | st.binary())
def test_label_files(own, content):
    (own / "labels.csv").write_bytes(content)
    if table := attempt(lambda: load_table("csv", own, labels=str(own / "labels.csv"))):
        assert all(Path(path).resolve().is_relative_to(own.resolve()) for path in table.frame["path"])
        assert table.frame["id"].is_unique and table.frame["label"].between(0, len(table.classes) - 1).all()


def encoded(format: str) -> bytes:
    pixels, content = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(content, format)
    return content.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # which says what is odd about a file, and reads it
@pytest.mark.parametrize("format", ["jpeg", "png", "bmp", "tiff", "gif"])
@examples(60)
@given(data=st.data())
def test_images(own, format, data):
    (own / "labels.csv").write_bytes(CSV)
    table = load_table("csv", own, labels=str(own / "labels.csv"))
    before = (own / "0.jpg").read_bytes()
    (own / "0.jpg").write_bytes(data.draw(damaged(encoded(format))))
    images = attempt(lambda: load_images(table, 8, cache=own.parent / "cache"))
    assert images is None or images.pixels.shape == (6, 8, 8, 3) or images.pixels.shape == (6, 3, 8, 8)
    (own / "0.jpg").write_bytes(before)


# ---------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def saved(place):
    """Files of one small network: safetensors, a PyTorch archive and PyTorch's older format."""
    network = backbone("densenet_small", "random")
    save_backbone(network, place / "w.safetensors", "densenet_small")
    torch.save(network.state_dict(), place / "w.pt")
    torch.save(network.state_dict(), place / "w.pth", _use_new_zipfile_serialization=False)
    return {suffix: (place / f"w{suffix}").read_bytes() for suffix in (".safetensors", ".pt", ".pth")}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@examples(60)
@given(data=st.data())
def test_checkpoints(place, saved, suffix, data):
    path, content = place / f"damaged{suffix}", saved[suffix]
    start = damaged(content[:4000]).map(lambda part: part + content[4000:])
    end = damaged(content[-4000:]).map(lambda part: content[:-4000] + part)
    path.write_bytes(data.draw(start | end))
    state = attempt(read_state, path)
    assert state is None or all(isinstance(tensor, torch.Tensor) for tensor in state.values())


@examples(80)
@given(data=st.data())
def test_checkpoints_of_an_interrupted_phase(place, data):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    path = place / "phase.pt"
    path.unlink(missing_ok=True)
    checkpoints.Phase(model, optimizer, "fine_tune", "k", path).advance({"val_macro_f1": 0.5}, 1.0, 1.0)
    content = path.read_bytes()
    path.write_bytes(data.draw(damaged(content)))
    fresh = nn.Linear(2, 2)
    before = copy.deepcopy(fresh.state_dict())
    progress = checkpoints.Phase(fresh, torch.optim.AdamW(fresh.parameters()), "fine_tune", "k", path)
    whole = path.read_bytes() == content
    assert progress.epoch == int(whole)
    assert whole or all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())
