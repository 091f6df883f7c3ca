"""GPUs by name, and this machine's processor."""

import pytest

from luthier.errors import UserError
from luthier.estimate import devices
from luthier.recipe import Model


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8xA100-80G", 8, "A100-80G"),
        ("h100-80g", 1, "H100-80G"),
        ("4 x 4090", 4, "4090"),
        ("1X4090", 1, "4090"),
    ],
)
def test_gpus_are_named_in_any_letters(text, count, name):
    found, device = devices.parse(text)
    assert (found, device.name) == (count, name)


@pytest.mark.parametrize(
    "text", ["", "8x", "8xCPU", "8xA200-80G", "0xA100-80G", "999999999xL40S", "A100 80G, H100"]
)
def test_what_names_no_gpus_is_a_mistake_with_the_list(text):
    with pytest.raises(UserError) as caught:
        devices.parse(text)
    assert caught.value.where == "--gpus"
    assert all(name in caught.value.fix for name in (*devices.DEVICES, "CPU", "8xA100-80G"))


def test_the_nearest_name_is_offered():
    with pytest.raises(UserError, match="did you mean A100-80G"):
        devices.parse("8xA100-80GB")


def test_every_gpu_says_where_its_figures_stand():
    for device in devices.DEVICES.values():
        assert device.source.startswith("https://")
        assert device.peak("fp32") == device.fp32
        assert device.bf16 is None or device.peak("bf16") == device.bf16 > device.fp32


def test_precision_is_what_a_run_there_would_take():
    volta, ampere = devices.DEVICES["V100-32G"], devices.DEVICES["A100-40G"]
    assert volta.precision(Model()) == "fp32" and ampere.precision(Model()) == "bf16"
    assert ampere.precision(Model(precision="fp32")) == "fp32"
    with pytest.raises(UserError, match="V100-32G multiplies no bf16"):
        volta.precision(Model(precision="bf16"))


def test_this_processor_is_measured():
    count, device = devices.parse("cpu")
    assert count == 1 and device.source.startswith("measured on this machine")
    assert 1e9 < device.fp32 < 1e15 and device.memory > 1e8
    assert device.bf16 is None or 1e9 < device.bf16 < 1e15
