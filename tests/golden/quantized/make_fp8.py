#!/usr/bin/env python3
"""Makes fp8.json: layers of random weights in FP8 as tools make them: "settings", "tensors" and, as bits of floats, the
"values" that they stand for.

"ue8m0" is transformers' (its quantizer for DeepSeek's form), also with its scales as floats, as DeepSeek V3.1 has them;
"fbgemm" is FBGEMM's own function for rows, in its version for the CPU, under the names that transformers gives.
Usage: make_fp8.py FOLDER, where the wheel fbgemm-gpu-genai 1.9.0 is unpacked: its libraries want a GPU, this file not.
Needs: pip install torch==2.15.0 triton transformers==5.17.0
"""
import json
import os
import sys
import types

import torch
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

KINDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e8m0fnu: "F8_E8M0"}


def numbers(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes().hex()


def entry(settings, tensors, values):
    return {"settings": settings, "values": numbers(values.float()),
            "tensors": {f"x.{name}": {"type": KINDS[t.dtype], "shape": list(t.shape), "bytes": numbers(t)}
                        for name, t in tensors.items()}}


def quantize_fp8_row(folder):
    for name in ("fbgemm_gpu", "fbgemm_gpu.experimental", "fbgemm_gpu.experimental.gemm"):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(folder, *name.split("."))]
        sys.modules[name] = package
    from fbgemm_gpu.experimental.gemm.triton_gemm import fp8_gemm
    return fp8_gemm.quantize_fp8_row


def main(folder):
    torch.manual_seed(11)
    weight = torch.randn(8, 64) * torch.exp(torch.randn(8, 1))
    out = {}
    config = FineGrainedFP8Config(weight_block_size=(4, 32), scale_fmt="ue8m0")
    quantizer = types.SimpleNamespace(quantization_config=config)
    made = Fp8Quantize(quantizer).convert({"x.weight": weight})
    code, scale = made["x.weight"], made["x.weight_scale_inv"]
    values = Fp8Dequantize(quantizer)._dequantize_one(code, scale, torch.float32)
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "scale_fmt": "ue8m0",
                "weight_block_size": [4, 32]}
    out["ue8m0"] = entry(settings, {"weight": code, "weight_scale_inv": scale}, values)
    out["ue8m0 as floats"] = entry(settings, {"weight": code, "weight_scale_inv": scale.float()}, values)

    code, scale = quantize_fp8_row(folder)(weight)
    settings = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}
    tensors = {"weight": code, "weight_scale": scale.view(-1, 1), "input_scale_ub": torch.tensor([1200.0])}
    out["fbgemm"] = entry(settings, tensors, code.float() * scale.view(-1, 1))
    for name, e in out.items():  # near what they were made of
        values = torch.frombuffer(bytearray.fromhex(e["values"]), dtype=torch.float32).view(8, 64)
        assert ((values - weight).norm() / weight.norm()) < 0.04, name
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "fp8.json"), "w") as f:
        json.dump(out, f, separators=(",", ":"))


main(sys.argv[1])
