"""Processes that start side by side take different GPUs; the GPUs are said to be there, the claims are real."""

import os
import subprocess
import sys

import pytest
import torch

from medmerge.cli import gpus

HOLD = """
import sys, torch
from medmerge.cli import gpus
torch.cuda.device_count = lambda: 2
with gpus.claimed("auto") as name:
    print(name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def claims(tmp_path, monkeypatch):
    """Claims of their own, and nothing said about GPUs."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def there_are(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_processes_take_different_gpus_then_share_and_a_killed_ones_is_free(monkeypatch):
    there_are(monkeypatch, 2)
    taken, plain = [], dict(os.environ)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    others = [subprocess.Popen([sys.executable, "-c", HOLD], env=plain, **pipes)]
    try:
        taken.append(others[0].stdout.readline().strip())
        with gpus.claimed("auto") as mine:
            others.append(subprocess.Popen([sys.executable, "-c", HOLD], env=plain, **pipes))
            taken += [mine, others[1].stdout.readline().strip()]
            others[0].kill()
            others[0].wait()
            others[1].kill()
            others[1].wait()
        with gpus.claimed("auto") as after:
            taken.append(after)
    finally:
        for one in others:
            one.kill()
            one.communicate()
    assert taken == ["0", "1", "0", "0"]


def test_what_is_claimed_is_all_that_is_visible_until_it_is_given_back(monkeypatch):
    there_are(monkeypatch, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa, MIG-GPU-bb/1/0")
    with gpus.claimed("auto") as first:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == first == "GPU-aa"
        os.environ["CUDA_VISIBLE_DEVICES"] = "GPU-aa, MIG-GPU-bb/1/0"  # as another process sees it
        with gpus.claimed("auto") as second:
            assert second == "MIG-GPU-bb/1/0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aa, MIG-GPU-bb/1/0"


@pytest.mark.parametrize(("count", "device"), [(0, "auto"), (1, "cuda"), (2, "cpu")])
def test_nothing_is_claimed_where_there_is_no_choice(monkeypatch, tmp_path, count, device):
    there_are(monkeypatch, count)
    with gpus.claimed(device) as name:
        assert name is None and "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not list(tmp_path.iterdir())


def test_the_variable_is_gone_afterwards_where_it_was_not_set_even_after_an_error(monkeypatch):
    there_are(monkeypatch, 3)
    with pytest.raises(RuntimeError), gpus.claimed("auto"):
        raise RuntimeError
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
