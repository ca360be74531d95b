#!/usr/bin/env python3
"""Makes forms/NAME.safetensors and forms.json: two layers of some of make.py's checkpoints.

Usage: make_forms.py FOLDER, where FOLDER holds the same tiny checkpoints as for make.py (of bitsandbytes 0.50, GPTQModel
7.7.0, llm-compressor 0.14), and reference.json with a row and sums of their weights, from the tools. The sums of all rows
and columns are of the weights that dequantize.py gives. Needs: pip install numpy
"""
import json
import os
import struct
import sys

import numpy as np

import dequantize as D

HERE = os.path.dirname(os.path.abspath(__file__))
FORMS = {
    "bnb-fp4": lambda st, p: D.bnb4(st, p, "fp4"),
    "bnb-nf4": lambda st, p: D.bnb4(st, p, "nf4"),
    "ct-fp8-block": D.ct_fp8,
    "ct-fp8-dynamic": D.ct_fp8,
    "ct-fp8-static": D.ct_fp8,
    "ct-w4a16-g64-asym": lambda st, p: D.ct_packed(st, p, 4),
    "ct-w4a16-g64-gptq": lambda st, p: D.ct_packed(st, p, 4),
    "ct-w8a16-g64": lambda st, p: D.ct_packed(st, p, 8),
    "ct-w8a8-dynamic": D.ct_int8,
    "gptq-w4-channel": lambda st, p: D.gptq(st, p, 4),
    "gptq-w4g128-asym": lambda st, p: D.gptq(st, p, 4),
    "gptq-w8g64-sym": lambda st, p: D.gptq(st, p, 8),
}
LAYERS = ["layers.1.self_attn.k_proj", "layers.1.mlp.down_proj"]


def parts(path):
    """The file's tensors that make up the layers: a smaller file of them."""
    with open(path, "rb") as f:
        data = f.read()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header, body = {}, b""
    for name, entry in json.loads(data[8:start]).items():
        if name.startswith(tuple(f"model.{layer}." for layer in LAYERS)):
            begin, end = entry["data_offsets"]
            header[name] = entry | {"data_offsets": [len(body), len(body) + end - begin]}
            body += data[start + begin:start + end]
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + body


def main(folder):
    with open(os.path.join(folder, "reference.json")) as f:
        references = json.load(f)["checkpoints"]
    forms = {}
    os.makedirs(os.path.join(HERE, "forms"), exist_ok=True)
    for name, dequantize in FORMS.items():
        directory = os.path.join(folder, "tiny-" + name)
        with open(os.path.join(directory, "config.json")) as f:
            settings = json.load(f)["quantization_config"]
        settings.pop("meta", None)
        forms[name] = {"settings": settings}
        for layer in LAYERS:
            weight = dequantize(D.ST(directory), "model." + layer).astype(np.float64)
            sums = {f"sums_of_{what}": [round(x, 6) for x in weight.sum(axis).tolist()]
                    for what, axis in (("rows", 1), ("columns", 0))}
            forms[name][layer] = references["tiny-" + name][layer] | sums
        with open(os.path.join(HERE, "forms", name + ".safetensors"), "wb") as f:
            f.write(parts(os.path.join(directory, "model.safetensors")))
    with open(os.path.join(HERE, "forms.json"), "w") as f:
        json.dump(forms, f, separators=(",", ":"))


main(sys.argv[1])
