#!/usr/bin/env python3
"""Makes presets.json: a layer of random weights in each scheme that compressed-tensors has a name for, and in some more
that its settings allow, as it packs them: "settings", "tensors" and, as bits of floats, the "values" that it makes of
them again. The schemes that round inputs to 4-bit integers, which llminfer does not read, are among them.
Needs: pip install torch==2.10.0 compressed-tensors==0.20.0 transformers
"""
import json
import os

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization import apply_quantization_config
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

ROWS, COLS = 2, 128


def schemes():
    for name in sorted(PRESET_SCHEMES):
        yield name, preset_name_to_scheme(name, ["Linear"])
    for bits in (2, 3, 5, 6, 7, 8):  # with zero points
        weights = QuantizationArgs(num_bits=bits, type="int", strategy="group", group_size=32, symmetric=False)
        yield f"W{bits}A16 asymmetric", QuantizationScheme(targets=["Linear"], weights=weights)
    weights = QuantizationArgs(num_bits=6, type="int", strategy="channel", symmetric=True)
    yield "W6A16 by row", QuantizationScheme(targets=["Linear"], weights=weights)
    inputs = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
    yield "inputs alone", QuantizationScheme(targets=["Linear"], input_activations=inputs)
    inputs = QuantizationArgs(num_bits=8, type="float", strategy="tensor")
    yield "static inputs alone", QuantizationScheme(targets=["Linear"], input_activations=inputs)
    weights = QuantizationArgs(num_bits=8, type="int", strategy="channel", symmetric=True)
    inputs = QuantizationArgs(num_bits=8, type="int", strategy="tensor", dynamic=True)
    yield "W8A8 by batch", QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    for strategy in ("channel", "tensor"):
        weights = QuantizationArgs(num_bits=8, type="int", strategy=strategy, symmetric=False)
        inputs = QuantizationArgs(num_bits=8, type="int", strategy="tensor", symmetric=False)
        yield f"W8A8 asymmetric by {strategy}", QuantizationScheme(targets=["Linear"], weights=weights,
                                                                   input_activations=inputs)
    weights = QuantizationArgs(num_bits=8, type="int", strategy="group", group_size=32, symmetric=False)
    inputs = QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True)
    yield "W8A8 asymmetric by group", QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)


def set_scales(module):
    """Scales (and zero points) that reach the greatest weights; 0.5 for inputs."""
    scheme = module.quantization_scheme
    if hasattr(module, "input_scale"):
        module.input_scale.data.fill_(0.5)
    if hasattr(module, "input_zero_point"):
        module.input_zero_point.data.fill_(-7 if module.input_zero_point.dtype == torch.int8 else 0)
    if hasattr(module, "input_global_scale"):
        module.input_global_scale.data.fill_(0.5)
    args = scheme.weights
    if args is None:
        return
    weight = module.weight.data
    if args.strategy == "tensor":
        groups = weight.reshape(1, -1)
    elif args.strategy == "block":
        groups = weight.reshape(1, 1, -1)  # one block
    elif args.strategy == "channel":
        groups = weight.unsqueeze(1)
    else:
        groups = weight.unflatten(1, (-1, args.group_size))
    low, high = groups.amin(-1), groups.amax(-1)
    factor = None
    if hasattr(module, "weight_global_scale"):
        factor = generate_gparam(weight.amin().reshape(1), weight.amax().reshape(1))
        module.weight_global_scale.data = factor
    scale, zero = calculate_qparams(low, high, args, global_scale=factor)
    module.weight_scale.data = scale
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)


def numbers(tensor):
    return tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy().tobytes().hex()


KINDS = {torch.int32: "I32", torch.int64: "I64", torch.float32: "F32", torch.int8: "I8", torch.uint8: "U8",
         torch.float8_e4m3fn: "F8_E4M3", torch.bfloat16: "BF16"}


def main():
    torch.manual_seed(5)
    out = {}
    for name, scheme in schemes():
        model = torch.nn.ModuleDict({"x": torch.nn.Linear(COLS, ROWS, bias=False)})
        config = QuantizationConfig(config_groups={"group_0": scheme}, quantization_status="frozen")
        apply_quantization_config(model, config)
        if hasattr(model["x"], "quantization_scheme"):
            set_scales(model["x"])
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        settings = compressor.quantization_config.to_dict() if compressor.quantization_config else config.to_dict()
        tensors = {key: {"type": KINDS[t.dtype], "shape": list(t.shape), "bytes": numbers(t)}
                   for key, t in model.state_dict().items()}
        compressor.decompress_model(model)
        out[name] = {"settings": json.loads(json.dumps(settings, default=str)) | {"quant_method": "compressed-tensors"},
                     "tensors": tensors, "values": numbers(model["x"].weight.data.float())}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "presets.json")
    with open(path, "w") as f:
        json.dump(out, f, separators=(",", ":"))


main()
