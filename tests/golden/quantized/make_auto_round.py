#!/usr/bin/env python3
"""Makes auto_round.json and auto_round/NAME.safetensors: a layer of a tiny Llama as AutoRound exports it in each scheme
of floats, and what numpy makes of its tensors. Needs: pip install torch==2.15.0 transformers==4.57.6 auto-round==0.16.1
Usage: make_auto_round.py FOLDER with a tiny Llama (128 x 384) and its tokenizer.json
"""
import glob
import json
import os
import sys
import tempfile

import numpy as np
import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from make_modelopt import E2M1, e4m3, nibbles, read, save, sums

HERE = os.path.dirname(os.path.abspath(__file__))
KEEP = {"FP8_STATIC": ["self_attn.k_proj"], "FP8_BLOCK": ["self_attn.k_proj", "mlp.down_proj"],
        "MXFP8": ["self_attn.k_proj"], "MXFP4": ["self_attn.k_proj"], "NVFP4": ["self_attn.k_proj"]}


def dequantize(t, prefix):
    get = lambda part: t.get(f"{prefix}.{part}", (None, None))
    kind, scale = get("weight_scale")
    if kind is None:  # blocks
        scale = np.repeat(np.repeat(get("weight_scale_inv")[1], 128, 0), 128, 1)
    elif kind == "U8":
        scale = np.repeat(np.exp2(scale.astype(np.float32) - 127), 32, 1)
    elif kind == "F8_E4M3":
        scale = np.repeat(e4m3(scale) / get("weight_global_scale")[1], 16, 1)
    else:
        scale = scale[:, None]
    packed = get("weight_packed")[1]
    codes = e4m3(get("weight")[1]) if packed is None else E2M1[nibbles(packed).reshape(len(packed), -1)]
    return (codes * scale[:codes.shape[0], :codes.shape[1]]).astype(np.float32)


def main(source):
    out, base = {}, AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.bfloat16).state_dict()
    os.makedirs(os.path.join(HERE, "auto_round"), exist_ok=True)
    for scheme, keep in KEEP.items():
        model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.bfloat16)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=source + "/tokenizer.json", eos_token="<|im_end|>",
                                            pad_token="<|im_end|>")
        folder = tempfile.mkdtemp()
        with open(folder + "/data.json", "w") as f:
            json.dump([{"text": f"The quick brown fox jumps over the lazy dog {i} times, and again. " * 40}
                       for i in range(16)], f)
        AutoRound(model, tokenizer, scheme=scheme, iters=0, dataset=folder + "/data.json", nsamples=4, seqlen=32,
                  device_map="cpu").quantize_and_save(folder + "/out", format="auto_round")
        made = os.path.dirname(glob.glob(folder + "/out/**/config.json", recursive=True)[0])
        raw, arrays = read(glob.glob(made + "/*.safetensors")[0])
        entry = {"settings": json.load(open(made + "/config.json"))["quantization_config"], "layers": {}}
        names = ["model.layers.0." + part for part in keep]
        for name in names:
            w = dequantize(arrays, name)
            original = base[name + ".weight"].float().numpy()
            assert np.linalg.norm(w - original) / np.linalg.norm(original) < 0.15, (scheme, name)
            entry["layers"][name] = sums(w)
            if name + ".input_scale" in arrays:
                entry["layers"][name]["input_scale"] = float(arrays[name + ".input_scale"][1][0])
        save(os.path.join(HERE, "auto_round", scheme + ".safetensors"),
             {k: v for k, v in sorted(raw.items()) if any(k.startswith(name + ".") for name in names)})
        out[scheme] = entry
    with open(os.path.join(HERE, "auto_round.json"), "w") as f:
        json.dump(out, f, separators=(",", ":"))


main(sys.argv[1])
