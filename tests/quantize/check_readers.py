#!/usr/bin/env python3
"""Compares what other tools read in a directory, llminfer-quantize's or their own, with what llminfer reads in it.

Usage: check_readers.py autoawq|compressed-tensors|modelopt DIRECTORY DENSE, where DENSE is `llminfer-quantize
DIRECTORY DENSE -f dense --type F32`. Prints the largest difference of a weight, in units of the layer's largest; fails
above 1e-3, since AutoAWQ computes in halves; FP4 is expanded in floats, by the tools' own functions. No GPU is needed.
What GPTQModel, transformers and llama.cpp read, readers_test.py checks. Needs one of
  pip install torch transformers==4.51.3 autoawq==0.2.9        (AWQ)
  pip install torch compressed-tensors==0.19.0                 (NVFP4 and MXFP4)
  pip install torch nvidia-modelopt==0.47.0                    (the same of ModelOpt)
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


def read_compressed_tensors(directory):
    from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    settings = json.load(open(os.path.join(directory, "config.json")))["quantization_config"]
    scheme = QuantizationScheme.model_validate(next(iter(settings["config_groups"].values())))
    stored = tensors_of(directory)
    for name in [key[: -len(".weight_packed")] for key in stored if key.endswith(".weight_packed")]:
        packed, scale = stored[name + ".weight_packed"], stored[name + ".weight_scale"]
        values = unpack_fp4_from_uint8(packed, packed.shape[0], packed.shape[1] * 2, torch.float32)
        if scale.dtype == torch.uint8:
            scale = MXFP4PackedCompressor._decompress_scale(scale, torch.float32)
        yield name, dequantize(values, scale.float(), args=scheme.weights, dtype=torch.float32,
                               global_scale=stored.get(name + ".weight_global_scale"))


def read_modelopt(directory):
    from modelopt.torch.quantization.qtensor import MXFP4QTensor, NVFP4QTensor

    stored = tensors_of(directory)
    for name in [key[: -len("_scale")] for key in stored if key.endswith(".weight_scale")]:
        packed, factor = stored[name], stored.get(name + "_scale_2")
        shape = torch.Size([packed.shape[0], packed.shape[1] * 2])
        kind, block = (MXFP4QTensor, 32) if factor is None else (NVFP4QTensor, 16)
        yield name[: -len(".weight")], kind(shape, torch.float32, packed).dequantize(
            torch.float32, scale=stored[name + "_scale"], double_scale=factor, block_sizes={-1: block})


tool, directory, dense = sys.argv[1:]
readers = {"autoawq": read_autoawq, "compressed-tensors": read_compressed_tensors, "modelopt": read_modelopt}
expected, layers, worst = tensors_of(dense), 0, 0.0
for name, weight in readers[tool](directory):
    ours = expected[name + ".weight"]
    worst = max(worst, float((weight - ours.float()).abs().max() / ours.abs().max()))
    layers += 1
print(f"{tool}: {layers} layers, largest difference {worst:.1e}")
sys.exit(0 if layers > 0 and worst < 1e-3 else 1)
