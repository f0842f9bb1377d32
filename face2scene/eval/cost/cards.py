"""Graphics cards, by their makers' data sheets: dense rates without sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # takes seconds, and the command line needs the cards' names


@dataclass(frozen=True)
class Card:
    """One card; rates in 1e12 operations per second (a multiply-add is two), bandwidth in 1e9 bytes per second."""

    name: str
    memory: float  # 1e9 bytes, as sold; what a process can have is less (CONTEXT)
    half: float  # fp16 and bf16 with float32 sums, tensor cores
    tf32: float  # float32 convolutions, and matrix products where torch is allowed to
    single: float  # float32 matrix products else
    bandwidth: float

    def rate(self, dtype: torch.dtype, *, tf32: bool) -> float:
        """Operations per second."""
        if dtype.itemsize == 2:
            return self.half * 1e12
        return (self.tf32 if tf32 else self.single) * 1e12


CARDS = {
    "a6000": Card("RTX A6000 48 GB", 48, 154.8, 77.4, 38.7, 768),
    "a100": Card("A100 SXM 80 GB", 80, 312, 156, 19.5, 2039),
    "h100": Card("H100 SXM 80 GB", 80, 989, 494, 67, 3350),
    "h200": Card("H200 SXM 141 GB", 141, 989, 494, 67, 4800),
    "rtx4090": Card("RTX 4090 24 GB", 24, 165.2, 82.6, 82.6, 1008),
}
PROGRAMS = ("fadex", "restorer", "s3diff", "stage_one", "restore")  # parts of a run
EFFICIENCY = 0.4  # of the rate of arithmetic (assumed; option --efficiency)
STREAMING = 0.8  # of the bandwidth (assumed)
LAUNCH = 5e-6  # seconds, the least of a kernel (assumed)
LINK = 10e9  # bytes per second between cards over PCIe 4.0 (assumed)
CONTEXT = 1.5e9  # bytes of CUDA, cuBLAS, cuDNN and NCCL (assumed)
FRAGMENTS = 0.05  # of the peak that the allocator cannot use (assumed)
