#!/usr/bin/env python3
"""Makes <type>.bin for tests/quant: blocks with random contents and what the gguf package (0.19, numpy) decodes them to.

A file is: u32 number of blocks, the blocks, the values as float32 (little-endian). Needs: pip install gguf==0.19.0 numpy
"""
import os
import struct

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(20240501)

# Where a block holds half-precision numbers; they are made finite, the rest is random bytes.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ1_S: [0], T.IQ1_M: [], T.IQ2_XXS: [0], T.IQ2_XS: [0],
    T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0], T.IQ4_NL: [0], T.IQ4_XS: [0], T.TQ1_0: [52], T.TQ2_0: [64],
    T.MXFP4: [], T.NVFP4: [],
}
# Enough blocks to use every vector of a grid once.
BLOCKS = {T.IQ1_S: 64, T.IQ1_M: 4, T.IQ2_XXS: 8, T.IQ2_XS: 16, T.IQ2_S: 32, T.IQ3_XXS: 4, T.IQ3_S: 8}


def halves(n):
    """Finite halves: usual sizes, zeros of both signs, subnormals."""
    h = (rng.standard_normal(n) * 0.05).astype(np.float16)
    special = np.array([0.0, -0.0, 2**-24, -(2**-20), 2**-14, 65504.0], np.float16)
    return np.where(rng.random(n) < 0.2, rng.choice(special, n), h).astype(np.float16)


def sweep(kind, b):
    """Overwrites the grid indices so that each vector of the grid occurs."""
    n = len(b)
    if kind in (T.IQ1_S, T.IQ2_S):
        v = np.arange(n * 32).reshape(n, 32)
        b[:, 2:34] = v & 255
        if kind == T.IQ1_S:
            words = b[:, 34:50].copy().view("<u2") & 0xF000
            high = (v >> 8).reshape(n, 8, 4)
            for k in range(4):
                words |= (high[..., k] << (3 * k)).astype(np.uint16)
            b[:, 34:50] = words.view(np.uint8)
        else:
            high = (v >> 8).reshape(n, 8, 4)
            b[:, 66:74] = sum(high[..., k] << (2 * k) for k in range(4))
    elif kind == T.IQ2_XXS:
        b[:, 2:66].reshape(n, 8, 8)[..., :4] = np.arange(n * 32).reshape(n, 8, 4) & 255
    elif kind == T.IQ2_XS:
        words = b[:, 2:66].copy().view("<u2") & 0xFE00
        b[:, 2:66] = (words | (np.arange(n * 32).reshape(n, 32) & 511).astype(np.uint16)).view(np.uint8)
    elif kind == T.IQ3_XXS:
        b[:, 2:66] = np.arange(n * 64).reshape(n, 64) & 255
    elif kind == T.IQ3_S:
        v = np.arange(n * 64).reshape(n, 64)
        b[:, 2:66] = v & 255
        b[:, 66:74] = np.packbits((v >> 8).astype(np.uint8), axis=-1, bitorder="little")


def make(kind):
    values, size = GGML_QUANT_SIZES[kind]
    if kind == T.F32:
        b = (rng.standard_normal(64) * 10.0 ** rng.integers(-40, 38, 64)).astype(np.float32).reshape(-1, 1).view(np.uint8)
    elif kind == T.F16:
        b = np.concatenate([halves(500), np.array([np.inf, -np.inf], np.float16)]).reshape(-1, 1).view(np.uint8)
    elif kind == T.BF16:
        b = (rng.standard_normal(64) * 10.0 ** rng.integers(-40, 38, 64)).astype(np.float32).view(np.uint16)[1::2]
        b = b.copy().reshape(-1, 1).view(np.uint8)
    else:
        n = BLOCKS.get(kind, 4 if values == 256 else 16)
        b = rng.integers(0, 256, (n, size), dtype=np.uint8)
        sweep(kind, b)
        for at in HALVES[kind]:
            b[:, at:at + 2] = halves(n).reshape(-1, 1).view(np.uint8)
        if kind == T.IQ1_M:  # its half lies in the top nibbles of four words
            words = b[:, 48:56].copy().view("<u2") & 0x0FFF
            for i, h in enumerate(halves(n).view(np.uint16)):
                words[i] |= np.array([(int(h) >> (4 * k) & 15) << 12 for k in range(4)], np.uint16)
            b[:, 48:56] = words.view(np.uint8)
        if kind == T.MXFP4:  # every exponent matters at the ends of the range
            b[:6, 0] = [0, 1, 2, 127, 254, 255]
        if kind == T.NVFP4:
            b[0, :4] = [0x00, 0x7F, 0xFF, 0x07]
    with np.errstate(over="ignore", invalid="ignore"):
        out = dequantize(b, kind).astype("<f4").reshape(-1)
    assert not np.isnan(out).any() and len(out) == len(b) * values
    with open(os.path.join(HERE, kind.name.lower() + ".bin"), "wb") as f:
        f.write(struct.pack("<I", len(b)) + b.tobytes() + out.tobytes())


for kind in [T.F32, T.F16, T.BF16, *HALVES]:
    make(kind)
