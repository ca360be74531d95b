#!/usr/bin/env python3
"""Makes sparse.safetensors: layers with zeros as compressed-tensors stores them, "CASE/TENSOR".

Elements, masks and scales are formulas that the test knows. Needs: pip install torch transformers compressed-tensors==0.12.2
"sparse-bitmask, whole names" is what compressed-tensors 0.8.1 gives for the same; give its installation's folder as argument.
"""
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
PAIRS = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])


def kept_of_four(n, k):
    pair = (n * 5 + k // 4 * 3 + n // 3) % 6
    return (PAIRS[pair, 0] == k % 4) | (PAIRS[pair, 1] == k % 4)


def kept_anywhere(n, k):
    return (n * 7 + k * 5 + n * k // 3) % 4 == 0


def codes(rows, cols, limit, kept):
    n, k = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    magnitude = (n * 7 + k * 3 + n // 8 * (k // 16)) % limit + 1
    return np.where(kept(n, k), np.where((n + k // 2) % 2 == 0, magnitude, -magnitude), 0)


if __name__ == "__main__" and len(sys.argv) > 2:  # in a process of its own
    sys.path.insert(0, sys.argv[1])
    from compressed_tensors.compressors.sparse_compressors.sparse_bitmask import BitmaskCompressor

    weights = {"x.weight": torch.tensor(codes(6, 20, 100, kept_anywhere) / 8).to(torch.bfloat16),
               "norm.weight": torch.tensor(codes(1, 20, 100, kept_anywhere)[0] / 8).to(torch.bfloat16)}
    torch.save(BitmaskCompressor().compress(weights), sys.argv[2])
    sys.exit(0)

from compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask import Sparse24BitMaskTensor  # noqa: E402
from compressed_tensors.compressors.sparse_compressors.sparse_bitmask import BitmaskTensor  # noqa: E402
from compressed_tensors.compressors.sparse_quantized_compressors.marlin_24 import Marlin24Compressor  # noqa: E402
from compressed_tensors.config import CompressionFormat  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

out = {}


def add(case, tensors):
    out.update({f"{case}/{name}": tensor.contiguous() for name, tensor in tensors.items()})


def marlin(case, rows, cols, bits, group):
    groups = cols // group if group else 1
    c = codes(rows, cols, 2 ** (bits - 1) - 1, kept_of_four)
    scales = ((1 + np.arange(rows)[:, None] + 64 * np.arange(groups)[None]) / 1024).astype(np.float32)
    weight = c * np.repeat(scales, cols // groups, 1)
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group" if group else "channel",
                            group_size=group or None)
    state = {"x.weight": torch.tensor(weight, dtype=torch.float32), "x.weight_scale": torch.tensor(scales)}
    add(case, Marlin24Compressor().compress(state, {"x": QuantizationScheme(targets=["Linear"], weights=args)}))


marlin("marlin-24, 4 bits, groups", 64, 384, 4, 128)
marlin("marlin-24, 4 bits, groups as long as what is kept", 64, 256, 4, 128)
marlin("marlin-24, 8 bits", 128, 64, 8, 0)
for case, dtype in (("bf16", torch.bfloat16), ("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
    limit = 100 if case != "fp8" else 16
    for form, kept, tensor in (("sparse-24-bitmask", kept_of_four, Sparse24BitMaskTensor),
                               ("sparse-bitmask", kept_anywhere, BitmaskTensor)):
        values = torch.tensor(codes(6, 20, limit, kept), dtype=torch.float32)
        add(f"{form}, {case}", tensor.from_dense((values if case != "bf16" else values / 8).to(dtype)).dict("x"))
        if case != "bf16":
            out[f"{form}, {case}/x.weight_scale"] = torch.arange(1, 7, dtype=torch.float32)[:, None] / 64
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "whole-names.pt")
    subprocess.run([sys.executable, __file__, sys.argv[1], path], check=True)
    add("sparse-bitmask, whole names", torch.load(path))
save_file(out, os.path.join(HERE, "sparse.safetensors"))
