"""Precisions: the number formats that engines compute in, and the processors that gain by them."""

from __future__ import annotations

from collections.abc import Set
from functools import cache
from pathlib import Path

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "auto")

# The largest allowed difference of a logit, as a fraction of the range of all logits on the same images.
# - fp32: the same sums in another order; 1e-6 is usual, and a swapped channel or a lost bias gives 1e-2 and more.
# - fp16, bf16: a rounding error is half a unit in the last place, 2**-11 and 2**-8. Errors of L layers add up like a
#   random walk, to sqrt(L) times that at most: 5e-3 and 4e-2 at 101 layers.
# - int8: the largest value of a tensor is 255 steps, most values are a few dozen. The largest difference of
#   resnext_tiny on 4,000 images is 0.14, with no loss of accuracy (benchmarks/int8.py); this tolerance only detects
#   broken exports.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2, "int8": 0.4}


@cache
def cpu_flags() -> Set[str]:
    """Return the instruction sets of this processor by Linux's names; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":")[1].split()}


def computes_bf16(flags: Set[str] | None = None) -> bool:
    """Return True if the processor has instructions for bfloat16: x86's AVX512-BF16 and AMX, Arm's BF16."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & (cpu_flags() if flags is None else flags))


def computes_int8(flags: Set[str] | None = None) -> bool:
    """Return True if the processor adds products of 8-bit numbers without overflow: x86's VNNI, Arm's dot products."""
    return bool({"avx512_vnni", "avx_vnni", "asimddp"} & (cpu_flags() if flags is None else flags))
