#!/usr/bin/env python3
"""Makes mxfp4_encoded.bin: for each block 32 floats and the 17 bytes that ggml's encoder makes of them.

The bytes are those of the gguf package, whose quantizers give ggml's reference bytes. Needs: pip install gguf numpy
(made with gguf 0.19.0, numpy 2.4.6)
"""
import os

import gguf
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(5)


def block(values):
    return np.resize(np.asarray(values, np.float32), 32)


ordinary = rng.standard_normal((4, 32)).astype(np.float32) * np.float32(0.04)
quarters = np.arange(-16, 16, dtype=np.float32) / 4  # with a largest of 4, halfway between two codes or on one
halfway = block([6, 5, -5, 3.5, -3.5, 2.5, -2.5, 1.75, 1.25, 0.75, 0.25, -0.25, -0.75, 0, -0.0, 7])
below = [block([np.nextafter(np.float32(2.0**k), np.float32(0)), 0.3 * 2.0**k, -0.7 * 2.0**k]) for k in (0, 3, 5, -4)]
small = block([2.0**-125, 2.0**-127, -(2.0**-126)])
blocks = np.stack([*ordinary, quarters, halfway, *below, block([65504, -300, 9000]), small, block([0])])

codes = gguf.quants.quantize(blocks, gguf.GGMLQuantizationType.MXFP4)
with open(os.path.join(HERE, "mxfp4_encoded.bin"), "wb") as f:
    for floats, code in zip(blocks, codes):
        f.write(floats.tobytes() + code.tobytes())
