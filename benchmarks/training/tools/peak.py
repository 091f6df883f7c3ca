"""The machine's peak of matrix products in bf16, as torch computes them: the best of several, in FLOP/s."""

import json
import sys
import time
from pathlib import Path

import torch

SIZES, REPEATS = (2048, 4096, 8192), 8


def main() -> None:
    best = 0.0
    for size in SIZES:
        a, b = (torch.randn(size, size).bfloat16() for _ in range(2))
        out = torch.empty(size, size, dtype=torch.bfloat16)
        for _ in range(REPEATS):
            began = time.perf_counter()
            torch.mm(a, b, out=out)
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    Path(sys.argv[2]).write_text(json.dumps({"flops_per_s": best, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
