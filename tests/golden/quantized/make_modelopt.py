#!/usr/bin/env python3
"""Makes modelopt.json and modelopt/NAME.safetensors: a layer of a tiny Llama in each algorithm of NVIDIA ModelOpt, as
ModelOpt exports it, and what numpy makes of the tensors again, in the effective weights, of inputs without factors.

Of pre_quant_scale the columns are multiplied by the factors, which is what y = W (x * factors) means. Only the layers
in KEEP are kept. ModelOpt fakes blocks of 4-bit and 8-bit floats on GPUs alone, and its searches (AWQ) want that fake:
a stand-in is put in its place. What is exported is packed by ModelOpt's own functions.
Needs: pip install torch==2.15.0 transformers==4.57.6 nvidia-modelopt==0.47.0 numpy
"""
import copy
import glob
import json
import os
import struct
import tempfile
import warnings

warnings.filterwarnings("ignore")
import modelopt.torch.quantization as mtq  # noqa: E402
import modelopt.torch.quantization.tensor_quant as tensor_quant  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from modelopt.torch.export import export_hf_checkpoint  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
KEEP = ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def fake_blocks(inputs, block_size, amax, num_bits, exponent_bits, scale_num_bits, scale_exponent_bits):
    x = inputs.float().reshape(-1, block_size)
    most = x.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    if num_bits == 4 and scale_exponent_bits == 4:
        shared = amax.float().amax() / (6 * 448)
        scale = (most / 6 / shared).clamp(max=448).to(torch.float8_e4m3fn).float().clamp(min=2**-9) * shared
    else:
        scale = torch.exp2(torch.ceil(torch.log2(most / (6 if num_bits == 4 else 448))))
    if num_bits == 4:
        table = torch.tensor(E2M1[:8])
        rounded = table[(((x / scale).abs()[..., None] - table).abs()).argmin(-1)] * x.sign()
    else:
        rounded = (x / scale).to(torch.float8_e4m3fn).float()
    return (rounded * scale).reshape(inputs.shape).to(inputs.dtype)


def e4m3(codes):
    return torch.from_numpy(codes.copy()).view(torch.float8_e4m3fn).float().numpy()


def nibbles(weight):
    return np.stack([weight & 15, weight >> 4], -1)


def dequantize(t, prefix, algorithm):
    """The effective weight of a layer, from the exported tensors: {name: (dtype, array)}."""
    get = lambda part: t[f"{prefix}.{part}"][1] if f"{prefix}.{part}" in t else None
    kind, weight = t[f"{prefix}.weight"]
    scale = get("weight_scale")
    if algorithm in ("W4A16_AWQ", "W4A8_AWQ"):  # two rows to a row of bytes
        signed = nibbles(weight).transpose(0, 2, 1).reshape(-1, weight.shape[1]).astype(np.int32)
        signed = np.where(signed > 7, signed - 16, signed)
        out = signed * np.repeat(scale, weight.shape[1] // scale.shape[1], 1)
    elif kind == "U8":
        table = E2M1[nibbles(weight).reshape(weight.shape[0], -1)]
        if "MXFP4" in algorithm.upper():
            scale = np.exp2(scale.astype(np.float32) - 127)
        else:
            scale = e4m3(scale) * get("weight_scale_2")
        out = table * np.repeat(scale, table.shape[1] // scale.shape[1], 1)
    else:
        out = e4m3(weight) if kind == "F8_E4M3" else weight.view(np.int8).astype(np.float32)
        if algorithm == "MXFP8":
            out = out * np.repeat(np.exp2(scale.astype(np.float32) - 127), 32, 1)
        elif scale.ndim == 4:
            blocks = np.repeat(np.repeat(scale[:, 0, :, 0], 128, 0), 128, 1)
            out = out * blocks[:out.shape[0], :out.shape[1]]
        else:
            out = out * (scale[:, None] if scale.ndim == 1 else scale)
    factors = get("pre_quant_scale")
    if factors is not None:
        out = out * factors
    return out.astype(np.float32)


def sums(w):
    """What tests/load/reference_weight.hpp compares a weight with."""
    wide = w.astype(np.float64)
    return {"shape": list(w.shape), "row5": [round(float(x), 6) for x in w[5]], "sum": float(wide.sum()),
            "sum_sq": float((wide**2).sum()), "sums_of_rows": wide.sum(1).tolist(),
            "sums_of_columns": wide.sum(0).tolist()}


def read(path):
    with open(path, "rb") as f:
        data = f.read()
    size = struct.unpack("<Q", data[:8])[0]
    kinds = {"F32": np.float32, "U8": np.uint8, "I8": np.uint8, "F8_E4M3": np.uint8}
    raw, arrays = {}, {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw[name] = entry["dtype"], entry["shape"], data[8 + size + begin:8 + size + end]
        if entry["dtype"] == "BF16":
            array = (np.frombuffer(raw[name][2], np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(raw[name][2], kinds[entry["dtype"]])
        arrays[name] = entry["dtype"], array.reshape(entry["shape"])
    return raw, arrays


def save(path, tensors):
    header, at = {}, 0
    for key, (dtype, shape, data) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def blocks_of(config, size):
    """Blocks as small as the model."""
    config = copy.deepcopy(config)
    text = json.dumps(config, default=str)
    assert "block_sizes" in text

    def visit(node):
        if isinstance(node, dict):
            if isinstance(node.get("block_sizes"), dict) and -1 in node["block_sizes"]:
                node["block_sizes"][-1] = size
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit(config)
    return config


def mixed():
    """FP8 for attention, NVFP4 for the rest."""
    config = copy.deepcopy(mtq.NVFP4_DEFAULT_CFG)
    fp8 = copy.deepcopy(mtq.FP8_DEFAULT_CFG)
    quantizers = config["quant_cfg"]
    if isinstance(quantizers, list):
        for rule in fp8["quant_cfg"]:
            name = rule.get("quantizer_name", "")
            if name in ("*weight_quantizer", "*input_quantizer"):
                quantizers.append(rule | {"quantizer_name": "*self_attn*" + name[1:]})
    else:
        for name in ("*weight_quantizer", "*input_quantizer"):
            quantizers["*self_attn*" + name[1:]] = fp8["quant_cfg"][name]
    return config


CASES = {
    "FP8": mtq.FP8_DEFAULT_CFG, "FP8 per channel": mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG,
    "FP8 blocks": mtq.FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG, "W8A16": mtq.INT8_WEIGHT_ONLY_CFG,
    "W8A8 SmoothQuant": mtq.INT8_SMOOTHQUANT_CFG, "W4A16 AWQ": blocks_of(mtq.INT4_AWQ_CFG, 32),
    "W4A16": blocks_of(mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG, 16), "W4A8 AWQ": blocks_of(mtq.W4A8_AWQ_BETA_CFG, 64),
    "NVFP4": mtq.NVFP4_DEFAULT_CFG, "NVFP4 AWQ": mtq.NVFP4_AWQ_LITE_CFG, "W4A8 NVFP4 FP8": mtq.W4A8_NVFP4_FP8_CFG,
    "MXFP4": mtq.MXFP4_DEFAULT_CFG, "W4A8 MXFP4 FP8": mtq.W4A8_MXFP4_FP8_CFG, "MXFP8": mtq.MXFP8_DEFAULT_CFG,
    "mixed": mixed(),
}
# As many heads of keys as of queries, so that values can take all factors; elsewhere half as many.
WHOLE_HEADS = ("W4A8 AWQ", "W8A8 SmoothQuant")


def main():
    tensor_quant.dynamic_block_quantize_op = fake_blocks
    out = {}
    for name, config in CASES.items():
        torch.manual_seed(4)
        kv_heads = 4 if name in WHOLE_HEADS else 2
        shape = dict(hidden_size=64, intermediate_size=192 if name == "FP8 blocks" else 64, num_hidden_layers=1,
                     num_attention_heads=4, num_key_value_heads=kv_heads, head_dim=16, vocab_size=64)
        model = LlamaForCausalLM(LlamaConfig(initializer_range=0.5, **shape)).to(torch.bfloat16)
        model.config.architectures = ["LlamaForCausalLM"]

        original = {k: v.float().numpy() for k, v in model.state_dict().items()}

        def calibrate(m):
            torch.manual_seed(1)
            for _ in range(4):
                m(torch.randint(0, 64, (2, 32)))

        mtq.quantize(model, config, calibrate)
        folder = tempfile.mkdtemp()
        with torch.inference_mode():
            export_hf_checkpoint(model, export_dir=folder)
        settings = json.load(open(folder + "/config.json"))["quantization_config"]
        raw, arrays = read(glob.glob(folder + "/*.safetensors")[0])
        layer = lambda part: "model.layers.0." + part
        entry = {"settings": settings, "kv_heads": kv_heads, "layers": {}}
        for part in KEEP:
            algorithm = settings["quant_algo"]
            if algorithm == "MIXED_PRECISION":
                algorithm = settings["quantized_layers"][layer(part)]["quant_algo"]
            w = dequantize(arrays, layer(part), algorithm).astype(np.float32)
            # Near what it was made of, but for factors that ModelOpt moved from down_proj's columns to up_proj's rows.
            axis = 0 if part in ("self_attn.o_proj", "mlp.down_proj") else 1
            base = original[layer(part) + ".weight"]
            cosine = (w * base).sum(axis) / np.sqrt((w * w).sum(axis) * (base * base).sum(axis))
            assert cosine.mean() > 0.97, (name, part, cosine.mean())
            assert "AWQ" in name or abs(np.linalg.norm(w - base) / np.linalg.norm(base)) < 0.2, (name, part)
            entry["layers"][layer(part)] = sums(w)
            factors = layer(part) + ".pre_quant_scale"
            if factors in arrays:
                entry["layers"][layer(part)]["factors"] = [float(x) for x in arrays[factors][1]]
        save(os.path.join(HERE, "modelopt", name.replace(" ", "-") + ".safetensors"),
             {k: v for k, v in sorted(raw.items()) if any(k.startswith(layer(part) + ".") for part in KEEP)})
        out[name] = entry
    with open(os.path.join(HERE, "modelopt.json"), "w") as f:
        json.dump(out, f, separators=(",", ":"))


if __name__ == "__main__":
    main()
