#!/usr/bin/env python3
"""Makes packings.json: one layer [64, 64] of 4 bits, groups of 32, as several tools pack it.

"auto_round…" are AutoRound's own packers; "marlin" follows the description of Marlin's layout: 16 x 16 tiles, four of
which are permuted together for the tensor cores. Code, zero point and scale of each place are formulas that the test
knows. Needs: pip install torch auto-round==0.16.1
"""
import json
import os

import numpy as np
import torch

N = K = 64
G = 32
n, k = np.meshgrid(np.arange(N), np.arange(K), indexing="ij")
codes = ((n * 7 + k * 3 + n // 8 * (k // 16)) % 16).astype(np.int64)
zeros = ((np.arange(N)[:, None] + 5 * np.arange(K // G)[None]) % 13 + 1).astype(np.int64)
scales = ((1 + np.arange(N)[:, None] + 64 * np.arange(K // G)[None]) / 1024).astype(np.float32)
out = {}


def words(a):
    return {"shape": list(a.shape), "words": np.ascontiguousarray(a).view(np.int32).flatten().tolist()}


def halves(a):
    return {"shape": list(a.shape), "halves": np.ascontiguousarray(a.astype(np.float16)).view(np.uint16).flatten().tolist()}


def auto_round(name, module):
    z = zeros
    weight = (codes - np.repeat(z, G, 1)) * np.repeat(scales, G, 1)
    linear = torch.nn.Linear(K, N, bias=False)
    linear.weight.data = torch.tensor(weight.astype(np.float32))
    packed = module.QuantLinear(4, G, K, N, False)
    packed.device = "cpu"
    packed.pack(linear, torch.tensor(scales), torch.tensor(z, dtype=torch.float32), None, device="cpu")
    out[name] = {"x.qweight": words(packed.qweight.numpy()), "x.qzeros": words(packed.qzeros.numpy()),
                 "x.scales": halves(packed.scales.float().numpy())}


from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp  # noqa: E402

auto_round("auto_round", qlinear_torch)
auto_round("auto_round:auto_gptq", qlinear_torch_zp)

# Marlin: codes of [K, N] in tiles, then in the order of the fragments that a warp loads.
order = np.array([[[16 * row + i // 4 + 8 * half + 256 * tile for half in (0, 1)
                    for row in (2 * (i % 4), 2 * (i % 4) + 1, 2 * (i % 4 + 4), 2 * (i % 4 + 4) + 1)]
                   for tile in range(4)] for i in range(32)]).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].ravel()
for name, groups in (("marlin", K // G), ("marlin, one group", 1)):
    tiles = codes.T.reshape(K // 16, 16, N // 16, 16).transpose(0, 2, 1, 3).reshape(K // 16, N * 16)
    tiles = tiles.reshape(-1, order.size)[:, order].reshape(tiles.shape).astype(np.uint32)
    packed = np.zeros((K // 16, N * 2), np.uint32)
    for i in range(8):
        packed |= tiles[:, i::8] << np.uint32(4 * i)
    if groups > 1:
        by_place = np.array([i + 8 * j for i in range(8) for j in range(8)])
    else:
        by_place = np.array([2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)])
    s = scales.T[:groups].reshape(-1, by_place.size)[:, by_place].reshape(groups, N)
    out[name] = {"x.B": words(packed), "x.s": halves(s)}

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "packings.json"), "w") as f:
    json.dump(out, f, separators=(",", ":"))
