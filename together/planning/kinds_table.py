"""Machines by kind, with the figures that their makers publish, and where.

Memory in GB, memory bandwidth in GB/s, TFLOP/s in fp16 or bf16, dense, accumulated in fp32. Where a maker gives no such
TFLOP/s, the source says from which published numbers they follow. Where one chip has two bandwidths, the memory it is
sold with tells them apart.
"""

from __future__ import annotations

from together.planning.kinds import Kind, Memory

_APPLE = "https://www.apple.com/newsroom/"
_M1 = f"{_APPLE}2020/11/apple-unleashes-m1/ (2.6 TFLOP/s); LPDDR4X-4266 on 128 bits"
_M1_PRO = f"{_APPLE}2021/10/introducing-m1-pro-and-m1-max-the-most-powerful-chips-apple-has-ever-built/"
_M1_ULTRA = f"{_APPLE}2022/03/apple-unveils-m1-ultra-the-worlds-most-powerful-chip-for-a-personal-computer/"
_M2 = f"{_APPLE}2022/06/apple-unveils-m2-with-breakthrough-performance-and-capabilities/"
_M2_PRO = f"{_APPLE}2023/01/apple-unveils-m2-pro-and-m2-max-next-generation-chips-for-next-level-workflows/"
_M2_ULTRA = f"{_APPLE}2023/06/apple-introduces-m2-ultra/"
# Apple gives no TFLOP/s from the M3 on: GPU cores × 256 × the clock that is listed there.
_CLOCKS = "; TFLOP/s by cores and clock, https://hmc-tech.com/gpu/"
_M3 = f"{_APPLE}2023/10/apple-unveils-m3-m3-pro-and-m3-max-the-most-advanced-chips-for-a-personal-computer/{_CLOCKS}"
_M3_ULTRA = f"{_APPLE}2025/03/apple-reveals-m3-ultra-taking-apple-silicon-to-a-new-extreme/{_CLOCKS}"
_M4 = f"{_APPLE}2024/10/apple-introduces-m4-pro-and-m4-max/{_CLOCKS}"

_GA102 = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf"
_GA106 = "https://www.nvidia.com/en-us/geforce/graphics-cards/compare/; TFLOP/s: twice those of fp32, as all GA10x"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_BLACKWELL = "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
_COMPARE = (
    "https://www.nvidia.com/en-us/geforce/graphics-cards/compare/; TFLOP/s: twice those of fp32, as in its family"
)
_A6000 = "https://www.nvidia.com/en-us/design-visualization/rtx-a6000/ (309.7 TFLOP/s are with sparsity)"
_RTX_6000 = "https://www.nvidia.com/en-us/design-visualization/rtx-6000/ (1457 TFLOP/s are fp8 with sparsity)"
_A100 = "https://www.nvidia.com/en-us/data-center/a100/"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/ (1979 and 1513 TFLOP/s are with sparsity)"
_L4 = "https://www.nvidia.com/en-us/data-center/l4/ (242 TFLOP/s are with sparsity)"
_SPARK = "https://docs.nvidia.com/dgx/dgx-spark/hardware.html (1000 TFLOP/s are fp4 with sparsity: a sixteenth)"

_RADEON = "https://www.amd.com/en/products/graphics/desktops/radeon/"
_7900 = f"{_RADEON}7000-series.html, Radeon RX 7900 XT and XTX (peak half precision)"
_9070 = f"{_RADEON}9000-series.html, Radeon RX 9070 and 9070 XT (peak half precision matrix, dense)"
_STRIX = (
    "https://www.amd.com/en/products/processors/laptop/ryzen/ai-300-series/amd-ryzen-ai-max-plus-395.html; "
    "40 units × 512 × 2.9 GHz"
)
_ARC = "https://www.intel.com/content/www/us/en/products/details/discrete-gpus/arc.html (half of its int8 TOPS)"

_ARK = (
    "https://www.intel.com/content/www/us/en/ark.html (max memory bandwidth); "
    "TFLOP/s: performance cores × 32 × base clock"
)
_RYZEN = (
    "https://www.amd.com/en/products/specifications/processors.html (two channels); TFLOP/s: cores × 32 × base clock"
)
_JEDEC = "JEDEC JESD79-4 and JESD79-5: transfers × 8 bytes × channels; TFLOP/s: 8 cores × 32 × 3 GHz"

_APPLE_KINDS = (
    Kind("M1", Memory.APPLE, (8, 16), 68, 2.6, _M1),
    Kind("M1 Pro", Memory.APPLE, (16, 32), 200, 5.2, _M1_PRO),
    Kind("M1 Max", Memory.APPLE, (32, 64), 400, 10.4, _M1_PRO),
    Kind("M1 Ultra", Memory.APPLE, (64, 128), 800, 21, _M1_ULTRA),
    Kind("M2", Memory.APPLE, (8, 16, 24), 100, 3.6, _M2),
    Kind("M2 Pro", Memory.APPLE, (16, 32), 200, 6.8, _M2_PRO),
    Kind("M2 Max", Memory.APPLE, (32, 64, 96), 400, 13.6, _M2_PRO),
    Kind("M2 Ultra", Memory.APPLE, (64, 128, 192), 800, 27.2, _M2_ULTRA),
    Kind("M3", Memory.APPLE, (8, 16, 24), 100, 3.58, _M3),
    Kind("M3 Pro", Memory.APPLE, (18, 36), 150, 6.44, _M3),
    Kind("M3 Max", Memory.APPLE, (36, 96), 300, 10.7, _M3),
    Kind("M3 Max", Memory.APPLE, (48, 64, 128), 400, 14.3, _M3),
    Kind("M3 Ultra", Memory.APPLE, (96, 256, 512), 819, 28.6, _M3_ULTRA),
    Kind("M4", Memory.APPLE, (16, 24, 32), 120, 3.76, _M4),
    Kind("M4 Pro", Memory.APPLE, (24, 48, 64), 273, 7.5, _M4),
    Kind("M4 Max", Memory.APPLE, (36,), 410, 13.7, _M4),
    Kind("M4 Max", Memory.APPLE, (48, 64, 128), 546, 17.2, _M4),
)
_NVIDIA_KINDS = (
    Kind("RTX 3060", Memory.OWN, (12,), 360, 25.5, _GA106),
    Kind("RTX 3070", Memory.OWN, (8,), 448, 40.6, _GA102),
    Kind("RTX 3080", Memory.OWN, (10,), 760, 59.5, _GA102),
    Kind("RTX 3090", Memory.OWN, (24,), 936, 71, _GA102),
    Kind("RTX 3090 Ti", Memory.OWN, (24,), 1008, 80, _COMPARE),
    Kind("RTX A6000", Memory.OWN, (48,), 768, 154.8, _A6000),
    Kind("RTX 4060 Ti", Memory.OWN, (16, 8), 288, 44.1, _ADA),
    Kind("RTX 4070", Memory.OWN, (12,), 504, 58.3, _ADA),
    Kind("RTX 4070 Ti Super", Memory.OWN, (16,), 672, 88.2, _COMPARE),
    Kind("RTX 4080", Memory.OWN, (16,), 717, 97.5, _ADA),
    Kind("RTX 4080 Super", Memory.OWN, (16,), 736, 104.4, _COMPARE),
    Kind("RTX 4090", Memory.OWN, (24,), 1008, 165.2, _ADA),
    Kind("RTX 6000 Ada", Memory.OWN, (48,), 960, 364.2, _RTX_6000),
    Kind("RTX 5070", Memory.OWN, (12,), 672, 61.7, _BLACKWELL),
    Kind("RTX 5070 Ti", Memory.OWN, (16,), 896, 87.9, _BLACKWELL),
    Kind("RTX 5080", Memory.OWN, (16,), 960, 112.6, _BLACKWELL),
    Kind("RTX 5090", Memory.OWN, (32,), 1792, 209.5, _BLACKWELL),
    Kind("L4", Memory.OWN, (24,), 300, 121, _L4),
    Kind("A100", Memory.OWN, (40,), 1555, 312, _A100),
    Kind("A100", Memory.OWN, (80,), 1935, 312, _A100),
    Kind("H100 PCIe", Memory.OWN, (80,), 2000, 756, _H100, ("H100",)),
    Kind("H100 SXM", Memory.OWN, (80,), 3350, 989, _H100),
    Kind("DGX Spark", Memory.SHARED, (128,), 273, 62, _SPARK),
)
_OTHER_KINDS = (
    Kind("RX 7900 XT", Memory.OWN, (20,), 800, 103, _7900),
    Kind("RX 7900 XTX", Memory.OWN, (24,), 960, 122.8, _7900),
    Kind("RX 9070", Memory.OWN, (16,), 640, 145, _9070),
    Kind("RX 9070 XT", Memory.OWN, (16,), 640, 195, _9070),
    Kind("Ryzen AI Max 395", Memory.SHARED, (128, 64, 96, 32), 256, 59.4, _STRIX, ("Strix Halo", "AI Max 395")),
    Kind("Arc A770", Memory.OWN, (16,), 560, 131, _ARC),
    Kind("Arc B580", Memory.OWN, (12,), 456, 116.5, _ARC),
)
_CPU_KINDS = (
    Kind("DDR4-3200 dual channel", Memory.SYSTEM, (), 51.2, 0.77, _JEDEC, ("DDR4-3200", "DDR4")),
    Kind("DDR5-4800 dual channel", Memory.SYSTEM, (), 76.8, 0.77, _JEDEC, ("DDR5-4800", "DDR5")),
    Kind("DDR5-5600 dual channel", Memory.SYSTEM, (), 89.6, 0.77, _JEDEC, ("DDR5-5600",)),
    Kind("DDR5-6000 dual channel", Memory.SYSTEM, (), 96, 0.77, _JEDEC, ("DDR5-6000",)),
    Kind("N100", Memory.SYSTEM, (), 38.4, 0.05, f"{_ARK} (one channel of DDR5-4800)"),
    Kind("Core i5-12400", Memory.SYSTEM, (), 76.8, 0.48, _ARK, ("i5-12400",)),
    Kind("Core i7-13700K", Memory.SYSTEM, (), 89.6, 0.87, _ARK, ("i7-13700K",)),
    Kind("Core i9-14900K", Memory.SYSTEM, (), 89.6, 0.82, _ARK, ("i9-14900K",)),
    Kind("Ryzen 5 5600", Memory.SYSTEM, (), 51.2, 0.67, _RYZEN),
    Kind("Ryzen 7 5800X", Memory.SYSTEM, (), 51.2, 0.97, _RYZEN),
    Kind("Ryzen 7 7700", Memory.SYSTEM, (), 83.2, 0.97, _RYZEN),
    Kind("Ryzen 9 7950X", Memory.SYSTEM, (), 83.2, 2.3, _RYZEN),
)
KINDS = (*_APPLE_KINDS, *_NVIDIA_KINDS, *_OTHER_KINDS, *_CPU_KINDS)
