"""An environment of its own for each peer, made from PyPI below build/environments; Luthier runs in the one at hand."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "build" / "environments"
LIBRARIES = ("accelerate==1.15.0", "datasets==5.2.0", "peft==0.21.2", "torch==2.13.0", "transformers==5.23.0")
TRAINERS = {
    "transformers": LIBRARIES,
    "trl": ("trl==1.16.0", *LIBRARIES),
    "llamafactory": ("llamafactory==0.9.5", "torch==2.13.0"),  # has narrower ranges of its own for the rest
}
LUTHIER: tuple[str, ...] = ()
"""Packages of a tool that runs in the environment of this process."""
SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def environment(tool: str, packages: Sequence[str]) -> Path:
    """The Python of the tool's environment, which is made if it is not there."""
    if not packages:
        return Path(sys.executable)
    folder = FOLDER / f"env-{tool}"
    done = folder / "installed.json"
    if not done.is_file() or json.loads(done.read_text()) != list(packages):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "install", "--no-compile", *packages], check=True)
        if tool == "llamafactory":
            # PyPI has both for CUDA only, and they fail to load beside a torch for the CPU. Text needs neither.
            subprocess.run([*pip, "uninstall", "-y", "torchvision"], check=True)
            for native in folder.glob("lib/python*/site-packages/torchaudio/lib"):
                shutil.rmtree(native)
        done.write_text(json.dumps(list(packages)))
    return folder / "bin" / "python"


def versions(packages: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Python's, and those of the packages in each tool's environment that was made."""
    found = {"python": platform.python_version()}
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:] if any(d.name == n for d in m.distributions())}))"
    for tool, wanted in packages.items():
        python = FOLDER / f"env-{tool}" / "bin" / "python" if wanted else Path(sys.executable)
        if not python.is_file():
            continue
        names = dict.fromkeys([tool, *SHOWN])
        text = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True).stdout
        found |= {f"{tool}: {name}": version for name, version in json.loads(text).items()}
    return found
