"""What training needs besides torch: settings, the order of windows, the plot."""

import dataclasses
import re
import tomllib
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from llama2c.training import plot
from llama2c.training.settings import Settings, read_settings, to_toml
from llama2c.training.windows import Windows, validation_windows


def test_settings_survive_toml(tmp_path):
    changes = {
        ("", "data"): 'a "b"\\c \x7f\n\U0001f600',
        ("model", "dim"): 48,
        ("train", "dropout"): 0.25,
        ("lora", "targets"): ["q"],
    }
    settings = read_settings(None, changes)
    path = tmp_path / "settings.toml"
    path.write_text(to_toml(settings))
    assert read_settings(path, {}) == settings
    assert tomllib.loads(to_toml(settings))["train"]["dropout"] == 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nwidth = 3", "model.width: unknown; expected one of vocab_size, dim"),
        ("[train]\nsteps = 1.5", "train.steps: expected an integer, got 1.5"),
        ("[train]\nsteps = 0", "train.steps is 0, expected 1 or more"),
        ("[train]\ndropout = 1.0", "train.dropout is 1, expected 0 to 0.99"),
        ("[model]\ndim = 30\nn_heads = 4", "model.dim is 30, expected a multiple of n_heads, 4"),
        ("[lora]\ntargets = ['w']", "lora.targets has 'w', expected some of q, k"),
        ("model = 3", "model: expected a table"),
        ("[train", "settings.toml: "),
        ("[train]\nprecision = 'f64'", "expected auto, f32 or bf16"),
    ],
)
def test_wrong_settings_are_named(tmp_path, text, message):
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_settings(path, {})
    assert str(path) in str(caught.value)


def test_learning_rate_rises_and_falls():
    t = dataclasses.replace(Settings().train, steps=100, warmup=10, learning_rate=1.0, min_learning_rate=0.1)
    rates = [t.rate(step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0 and rates == rates[:10] + sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_windows_cover_an_epoch_and_repeat():
    shards = [
        np.arange(1000, 2000, dtype=np.uint16),
        np.arange(20, dtype=np.uint16),
        np.arange(3000, 3050, dtype=np.uint16),
    ]
    windows = Windows(shards, 32, seed=5)
    n = windows.epoch_windows
    x, y = windows.batch(0, n)
    assert np.array_equal(x + 1, y) and n == 30 + 1
    assert len(np.unique(x)) == x.size  # none twice
    assert x.size >= 1050 - 32 * 3 - 20
    again, _ = Windows(shards, 32, seed=5).batch(n // 2, n)  # across epochs, in other pieces
    assert np.array_equal(again[: n - n // 2], x[n // 2 :])
    assert not np.array_equal(np.sort(windows.batch(n, n)[0], axis=0), np.sort(x, axis=0))  # another phase
    with pytest.raises(ValueError, match="no shard has more than 32"):
        Windows([shards[1]], 32, seed=5)
    held = validation_windows(shards, 32, 0)
    assert sum(len(targets) for _, targets in held) == 999 + 19 + 49 and len(validation_windows(shards, 32, 3)) == 3


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(0, 5.0), (100, 1.25), (200, float("nan"))]])
def test_plot_is_svg(points):
    root = ElementTree.fromstring(plot.loss_plot(points, points[:1]))
    assert root.tag.endswith("svg") and len(root.findall("{*}polyline")) == 2
