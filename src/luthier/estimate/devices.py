"""GPUs by name, with the figures that their makers publish; this machine's processor, measured."""

from __future__ import annotations

import difflib
import re
import time
from dataclasses import dataclass

import psutil
import torch

from luthier.errors import UserError
from luthier.models.load import Precision
from luthier.recipe import Model

_AMPERE = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_HOPPER = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf"
_L40S = "https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413"
_VOLTA = (
    "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
)

CPU = "CPU"
# A machine with more GPUs than any that was ever built is a slip of the finger.
_MOST = 100_000


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or the processor.

    Attributes:
        name: As it is asked for.
        memory: Bytes; a data sheet's GB are read as 10^9, which is less than the cards have.
        fp32: Peak of dense matrix products in fp32, in FLOP/s; torch's default, without TF32.
        bf16: The same in bf16 with sums in fp32; None where the hardware has none.
        source: Where the figures stand.
    """

    name: str
    memory: float
    fp32: float
    bf16: float | None
    source: str

    def precision(self, settings: Model) -> Precision:
        """``bf16`` or ``fp32``, as a run of this recipe there would take.

        Raises:
            UserError: bf16 is asked for and the hardware has none.
        """
        if settings.precision == "bf16" and self.bf16 is None:
            raise UserError(
                f"the {self.name} multiplies no bf16", "recipe key model.precision", "model.precision=auto"
            )
        if settings.precision != "auto":
            return settings.precision
        return "fp32" if self.bf16 is None else "bf16"

    def peak(self, precision: Precision) -> float:
        """FLOP/s of dense matrix products."""
        return self.bf16 if precision == "bf16" and self.bf16 is not None else self.fp32


DEVICES = {
    device.name: device
    for device in (
        Device("A100-40G", 40e9, 19.5e12, 312e12, _AMPERE),
        Device("A100-80G", 80e9, 19.5e12, 312e12, _AMPERE),
        # Printed with sparsity; dense is half.
        Device("H100-80G", 80e9, 67e12, 1_979e12 / 2, _HOPPER),
        Device("L40S", 48e9, 91.6e12, 362.05e12, _L40S),
        Device("4090", 24e9, 82.6e12, 165.2e12, _ADA),
        # Tensor cores for fp16 only (125 TFLOP/s), which Luthier does not train in.
        Device("V100-32G", 32e9, 15.7e12, None, _VOLTA),
    )
}


def parse(text: str) -> tuple[int, Device]:
    """How many GPUs, and which, of ``8xA100-80G`` or ``H100-80G``; ``CPU`` is this machine's, measured on the spot.

    Raises:
        UserError: No such form or GPU; the known ones are listed.
    """
    names = [*DEVICES, CPU]
    form = re.fullmatch(r"\s*(?:(\d+)\s*[xX*]\s*)?([\w-]+)\s*", text)
    by_letters = {name.lower(): name for name in names}
    count = int(form[1] or 1) if form else 0
    name = by_letters.get(form[2].lower()) if form else None
    if name is None or not 1 <= count <= (1 if name == CPU else _MOST):
        near = difflib.get_close_matches(form[2].upper() if form else text, names, n=1)
        hint = f"did you mean {near[0]}? " if near and name is None else ""
        raise UserError(
            f"{text!r} names no GPUs",
            "--gpus",
            f"{hint}write COUNTxNAME, such as 8xA100-80G, or {CPU}; names: {', '.join(names)}",
        )
    return count, this_processor() if name == CPU else DEVICES[name]


def this_processor() -> Device:
    """This machine's processor and memory: the fastest of a few matrix products, a second in all."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return Device(
        CPU,
        float(psutil.virtual_memory().total),
        _measured_peak(torch.float32),
        _measured_peak(torch.bfloat16) if native else None,
        f"measured on this machine with {torch.get_num_threads()} threads",
    )


def _measured_peak(dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of the fastest product, over as many as fit into some seconds after one to warm up."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    _ = a @ b
    least, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        _ = a @ b
        least = min(least, time.perf_counter() - began)
    return 2 * size**3 / least
