"""How fast Mamba and Mamba-2 train on processors against transformers' own path, and BiGS at growing lengths.

    python benchmarks/ssm/run.py                # about half an hour on two cores; writes results.json beside this file

Models of 9 to 10 million parameters with random weights, random tokens, fp32. Each measurement is one training step
(forward, loss of every token, backward) in a process of its own that warms up first; ours and transformers' steps
alternate on one model and one batch, whose losses are compared. Finished measurements are kept in the work folder, so
an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402 # what all benchmarks and studies write

# Layers and vocabulary that make 9 to 10 million parameters. A step of transformers' Mamba costs the square of the length
# in every layer (minutes for 2,048 tokens), hence few of them there.
SIZES = {
    ("mamba1", 512): (8, 24576),
    ("mamba1", 2048): (2, 34816),
    ("mamba2", 512): (17, 8192),
    ("mamba2", 2048): (17, 8192),
}
BIGS_SIZE = (8, 8192)
LENGTHS = (512, 2048)
ROWS = {("mamba1", 512): 1, ("mamba1", 2048): 1, ("mamba2", 512): 4, ("mamba2", 2048): 1}
BIGS_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
BIGS_TOKENS = 8192
# Pairs of steps.
PAIRS = {("mamba1", 512): 3, ("mamba1", 2048): 3, ("mamba2", 512): 5, ("mamba2", 2048): 5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "luthier-benchmark-ssm")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.measure:
        kind, length = options.measure[0], int(options.measure[1])
        print(json.dumps(bigs(length) if kind == "bigs" else against_transformers(kind, length)))
        return
    figures: dict[str, Any] = {}
    for kind in ("mamba1", "mamba2"):
        for length in LENGTHS:
            found = measured(options.work, kind, length)
            figures[f"{kind}_speed_{length}"] = found["speed"]
            figures |= {f"{kind}_{length}_{name}": value for name, value in found.items() if name != "speed"}
    seconds = {}
    for length in BIGS_LENGTHS:
        found = measured(options.work, "bigs", length)
        seconds[length] = found["seconds_per_token"]
        figures |= {f"bigs_{length}_{name}": value for name, value in found.items()}
    first, last = BIGS_LENGTHS[0], BIGS_LENGTHS[-1]
    # Seconds a token: as log L if all of a step were a convolution of L log L, as L if it were of L squared.
    figures["bigs_growth"] = round(seconds[last] / seconds[first], 3)
    figures["bigs_growth_if_all_were_l_log_l"] = round(math.log(last) / math.log(first), 3)
    figures["bigs_growth_if_all_were_l_squared"] = last // first
    results.write(
        HERE / "results.json",
        figures,
        command="python benchmarks/ssm/run.py",
        packages=("torch", "transformers", "numpy"),
        notes="fp32. Speeds are [median, least, most] of transformers' seconds over ours, "
        "one pair of alternating steps each, after one of each at the same length, on the same model and batch; loss_difference and gradient_difference (of each parameter the largest by its largest) are relative. "
        "Mamba-2 twice: with the chunks of 256 tokens that its config names by default, and with chunks of 64 "
        "(speed_chunk_64), transformers' fastest here. BiGS (form causal, two SSMs a layer): tokens/s of a training step of "
        f"{BIGS_TOKENS} tokens in rows of the length; convolution_seconds is that of its FFT convolutions alone.",
    )


def measured(work: Path, kind: str, length: int) -> dict[str, Any]:
    """One measurement in a fresh process, or as it was found before."""
    done = work / f"{kind}-{length}.json"
    if not done.is_file():
        command = [sys.executable, __file__, "--work", str(work), "--measure", kind, str(length)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        done.write_text(output.splitlines()[-1])
    found: dict[str, Any] = json.loads(done.read_text())
    print(f"{kind}, {length} tokens: {found}", flush=True)
    return found


def against_transformers(kind: str, length: int) -> dict[str, Any]:
    """Seconds of a step by transformers' own layers and by ours, in turn."""
    import torch
    from transformers import AutoModelForCausalLM, Mamba2Config, MambaConfig

    from luthier.models.mamba import speed_up

    torch.manual_seed(0)
    layers, vocabulary = SIZES[kind, length]
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 256,
        "num_hidden_layers": layers,
        "tie_word_embeddings": True,
    }
    if kind == "mamba1":
        config = MambaConfig(**sizes, state_size=16)
    else:
        config = Mamba2Config(**sizes, num_heads=8, head_dim=64, n_groups=1, state_size=64)
    model = AutoModelForCausalLM.from_config(config).train()
    rows = ROWS[kind, length]
    ids = torch.randint(0, vocabulary, (rows, length))

    def own() -> tuple[float, float]:
        for layer in model.modules():
            vars(layer).pop("forward", None)  # transformers' own again
        return step(model, ids)

    def ours() -> tuple[float, float]:
        if not speed_up(model):
            raise SystemExit("the fast layers do not agree with transformers' own")
        return step(model, ids)

    gradients = []
    for warm in (own, ours):
        warm()
        gradients.append([p.grad.clone() for p in model.parameters()])
    apart = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(*gradients, strict=True)]
    pairs = [(own(), ours()) for _ in range(PAIRS[kind, length])]
    found: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "rows": rows,
        "pairs": len(pairs),
        "speed": spread([theirs[0] / fast[0] for theirs, fast in pairs]),
        "tokens_per_s": round(ids.numel() / statistics.median(fast[0] for _, fast in pairs), 1),
        "tokens_per_s_transformers": round(ids.numel() / statistics.median(t[0] for t, _ in pairs), 1),
        "loss_difference": max(abs(theirs[1] - fast[1]) / theirs[1] for theirs, fast in pairs),
        "gradient_difference": max(apart),
    }
    if kind == "mamba2":
        for layer in model.backbone.layers:
            layer.mixer.chunk_size = 64
        own()
        pairs = [(own(), ours()) for _ in range(PAIRS[kind, length])]
        found["speed_chunk_64"] = spread([theirs[0] / fast[0] for theirs, fast in pairs])
    return found


def step(model: Any, ids: Any) -> tuple[float, float]:
    """Seconds and loss of one step."""
    model.zero_grad(set_to_none=True)
    began = time.perf_counter()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return time.perf_counter() - began, float(loss.detach())


def spread(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [round(value, 2) for value in (statistics.median(values), min(values), max(values))]


def bigs(length: int) -> dict[str, Any]:
    """Tokens/s of BiGS, and how much of a step its convolutions are."""
    import torch

    from luthier.models.bigs import BigsConfig, BigsForCausalLM
    from luthier.models.bigs.ssm import _Convolution

    torch.manual_seed(0)
    layers, vocabulary = BIGS_SIZE
    config = BigsConfig(vocab_size=vocabulary, hidden_size=256, num_hidden_layers=layers)
    model = BigsForCausalLM(config).train()
    ids = torch.randint(0, config.vocab_size, (BIGS_TOKENS // length, length))
    step(model, ids)
    seconds = [step(model, ids)[0] for _ in range(5)]
    u = torch.randn(*ids.shape, config.hidden_size, requires_grad=True)
    kernel = torch.randn(length, requires_grad=True)
    alone = []
    for _ in range(6):
        began = time.perf_counter()
        _Convolution.apply(u, kernel).sum().backward()
        alone.append(time.perf_counter() - began)
    return {
        "parameters": model.num_parameters(),
        "tokens_per_s": spread([ids.numel() / s for s in seconds]),
        "seconds_per_token": statistics.median(seconds) / ids.numel(),
        "convolution_seconds": round(2 * config.num_hidden_layers * statistics.median(alone[1:]), 3),
    }


if __name__ == "__main__":
    main()
