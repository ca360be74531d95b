#!/usr/bin/env python3
"""Makes inputs.json: rows of activations, and what compressed-tensors rounds them to. Floats are given as their bits.

"fp8 bounded" is FBGEMM's rounding (quantize_fp8_row with its scale_ub), "fp8 powers" that of DeepSeek's act_quant with
scale_fmt "ue8m0", both as formulas, for their own kernels want a GPU.

Needs: pip install torch compressed-tensors==0.19.0
"""
import json
import os

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

torch.manual_seed(1)
x = torch.randn(1, 3, 128)
x[0, 1] *= torch.exp(2 * torch.randn(128))
x[0, 2] = torch.arange(-64, 64) / 64.0 * 3.7  # many values between two steps


def bits(t):
    return t.float().view(torch.int32).flatten().tolist()


CASES = {
    "int8 token": ({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}, None, None),
    "fp8 token": ({"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}, None, None),
    "fp8 group": ({"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "dynamic": True}, None, None),
    "int8 static": ({"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": False}, 0.0271, -9),
    "fp8 static": ({"num_bits": 8, "type": "float", "strategy": "tensor"}, 0.0107, 0),
}
out = {"x": bits(x), "cases": {}}
for name, (settings, scale, zero) in CASES.items():
    args = QuantizationArgs(**settings)
    if scale is None:
        scales, zeros = compute_dynamic_scales_and_zp(value=x, args=args, module=None)
    else:
        scales, zeros = torch.tensor([scale]), torch.tensor([zero], dtype=torch.int8 if zero else torch.float32)
    rounded = fake_quantize(x=x, scale=scales, zero_point=zeros, args=args)
    out["cases"][name] = {"group": settings.get("group_size", 0), "dynamic": scale is None, "rounded": bits(rounded),
                          "scale": bits(torch.tensor([scale or 0.0]))[0], "zero": zero or 0}
def add_fp8(name, group, limit, powers):
    blocks = x.view(-1, group)
    scales = blocks.abs().amax(-1, keepdim=True).clamp(max=limit) / 448
    if powers:
        scales = torch.exp2(torch.ceil(torch.log2(scales)))
    codes = (blocks / scales).clamp(-448, 448).to(torch.float8_e4m3fn)
    out["cases"][name] = {"group": group if group < 128 else 0, "dynamic": True, "scale": 0, "zero": 0,
                          "rounded": bits(codes.float() * scales), "powers": powers}
    if limit < 1e9:
        out["cases"][name]["limit"] = bits(torch.tensor([limit]))[0]


add_fp8("fp8 bounded", 128, 2.5, False)
add_fp8("fp8 powers", 32, 1e9, True)
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "inputs.json"), "w") as f:
    json.dump(out, f, separators=(",", ":"))
