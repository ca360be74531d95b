#!/usr/bin/env python3
"""Makes <type>.bin for the block types that llminfer's loaders write (W2 … W8_MIN), in the layout of make.py.

The values are computed here in numpy from the definitions: integers, zero points and scales are drawn, packed, and
multiplied in float32. Scales have at most 11 significant bits, as those of checkpoints; FP8's tables are ml_dtypes'.
Needs: pip install numpy ml_dtypes
"""
import os
import struct

import ml_dtypes
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(7)
N = 16


def scales(*shape):
    return (rng.standard_normal(shape) * 0.05).astype(np.float16).astype(np.float32)


def stream(codes, bits):
    """[N, 32] codes to [N, 4 * bits] bytes, the lowest bits first."""
    planes = (codes[:, :, None] >> np.arange(bits)) & 1
    return np.packbits(planes.reshape(N, -1).astype(np.uint8), axis=1, bitorder="little")


def save(name, parts, values):
    blocks = np.concatenate([np.ascontiguousarray(p).view(np.uint8).reshape(N, -1) for p in parts], axis=1)
    with open(os.path.join(HERE, name + ".bin"), "wb") as f:
        f.write(struct.pack("<I", N) + blocks.tobytes() + values.astype(np.float32).tobytes())


NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
                1.0], np.float32)
FP4 = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4], np.float32)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def signed(table):
    return np.concatenate([table, -table])


for bits in (2, 3, 4, 8):
    s, codes = scales(N, 1), rng.integers(0, 1 << bits, (N, 32))
    zero = rng.integers(0, 1 << bits, (N, 1))
    center = 128 if bits == 8 else 0
    save(f"w{bits}", [s, (zero - center).astype(np.int8), stream(codes, bits)], s * (codes - zero).astype(np.float32))
s, codes = scales(N, 1), rng.integers(0, 16, (N, 32))
save("w4_sym", [s, stream(codes, 4)], s * (codes - 8).astype(np.float32))
save("nf4", [s, stream(codes, 4)], s * NF4[codes])
save("fp4", [s, stream(codes, 4)], s * signed(FP4)[codes])
codes = rng.integers(-128, 128, (N, 32)).astype(np.int8)
save("w8_sym", [s, codes], s * codes.astype(np.float32))
s, codes = scales(N, 2), rng.integers(0, 16, (N, 32))
save("fp4_16", [s, stream(codes, 4)], np.repeat(s, 16, 1) * (signed(E2M1) + 0.0)[codes])
s, codes = scales(N, 1), np.arange(N * 32, dtype=np.uint8).reshape(N, 32)
codes = np.where(codes & 0x7F == 0x7F, codes - 1, codes).astype(np.uint8)
save("fp8", [s, codes], s * codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
for bits in (2, 3, 4, 8):
    s, minimum, codes = scales(N, 1), scales(N, 1), rng.integers(0, 1 << bits, (N, 32))
    center = 128 if bits == 8 else 0
    save(f"w{bits}_min", [s, minimum, stream(codes, bits)], s * (codes - center).astype(np.float32) - minimum)
