#!/usr/bin/env python3
"""Compares what other tools read in a directory that llminfer-quantize wrote with what llminfer reads in it.

Usage: check_readers.py gptqmodel|autoawq DIRECTORY DENSE, where DENSE is `llminfer-quantize DIRECTORY DENSE -f dense
--type F32`. Prints the largest difference of a weight, in units of the layer's largest; fails above 1e-3, since the
tools compute in halves. No GPU is needed. Needs one of
  pip install torch transformers==5.23.0 gptqmodel==7.7.0      (GPTQ)
  pip install torch transformers==4.51.3 autoawq==0.2.9        (AWQ)
"""
import json
import os
import sys

import torch
from safetensors import safe_open


def tensors_of(directory):
    found = {}
    for name in sorted(os.listdir(directory)):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(directory, name), "pt") as f:
                found.update({key: f.get_tensor(key) for key in f.keys()})
    return found


def read_gptqmodel(directory):
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    model = GPTQModel.load(directory, device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16)
    for name, module in model.model.named_modules():
        if isinstance(module, TorchLinear):
            yield name, module.dequantize_weight().T.float()


def read_autoawq(directory):
    from awq.modules.linear import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    settings = json.load(open(os.path.join(directory, "config.json")))["quantization_config"]
    bits, group = settings["bits"], settings["group_size"]
    stored = tensors_of(directory)
    for name in [key[: -len(".qweight")] for key in stored if key.endswith(".qweight")]:
        part = {key: stored[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales")}
        out_features, in_features = part["scales"].shape[1], part["qweight"].shape[0]
        layer = WQLinear_GEMM(bits, group, in_features, out_features, False, "cpu")
        layer.load_state_dict(part)  # the module's own names and shapes
        yield name, dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, bits, group).T.float()


tool, directory, dense = sys.argv[1:]
expected, layers, worst = tensors_of(dense), 0, 0.0
for name, weight in {"gptqmodel": read_gptqmodel, "autoawq": read_autoawq}[tool](directory):
    ours = expected[name + ".weight"]
    worst = max(worst, float((weight - ours.float()).abs().max() / ours.abs().max()))
    layers += 1
print(f"{tool}: {layers} layers, largest difference {worst:.1e}")
sys.exit(0 if layers > 0 and worst < 1e-3 else 1)
