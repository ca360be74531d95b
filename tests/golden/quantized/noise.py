#!/usr/bin/env python3
"""Prints how far the logits of checkpoints with dynamic rounding of inputs move when nothing but float noise changes.

Usage: noise.py FOLDER, where FOLDER holds tiny-ct-w8a8-dynamic, tiny-ct-fp8-dynamic, tiny-ct-fp8-block and their
reference.json. Each embedding is moved by one unit in its last place, up or down by chance; compared are the logits after
the prompt, as relative squared error, with those of the file and with those of the unmoved model.
Needs: pip install torch transformers==5.23.0 numpy
"""
import json
import sys

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import dequantize as D

FOLDER = sys.argv[1]
REFERENCE = json.load(open(f"{FOLDER}/reference.json"))


def int8(x):
    scale = x.abs().amax(-1, keepdim=True) / 127.5
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


def fp8(x, group):
    groups = x.reshape(*x.shape[:-1], -1, group or x.shape[-1])
    scale = groups.abs().amax(-1, keepdim=True) / 448.0
    return (torch.clamp(groups / scale, -448, 448).to(torch.float8_e4m3fn).float() * scale).reshape(x.shape)


def logits(name, dequantize, rounding, seed=None):
    config = json.load(open(f"{FOLDER}/{name}/config.json"))
    skipped = ("quantization_config", "architectures", "model_type", "dtype")
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k not in skipped})).float().eval()
    st = D.ST(f"{FOLDER}/{name}")
    plain = lambda key: key in st.h and st.h[key]["dtype"] in ("BF16", "F16", "F32")
    model.load_state_dict({key: torch.tensor(np.array(st.get(key) if plain(key) else dequantize(st, key[:-7]), np.float32))
                           for key in model.state_dict()})
    if seed is not None:
        torch.manual_seed(seed)
        table = model.model.embed_tokens.weight
        with torch.no_grad():
            table.mul_(1 + 2.0**-23 * (2 * torch.randint(0, 2, table.shape) - 1))
    for key, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and key != "lm_head":
            module.register_forward_pre_hook(lambda _, inputs: (rounding(inputs[0]),))
    with torch.no_grad():
        return model(torch.tensor([REFERENCE["prompt_ids"]])).logits[0, -1].double()


def apart(a, b):
    return float(((a - b) ** 2).sum() / (b**2).sum())


for name, dequantize, rounding in (("tiny-ct-w8a8-dynamic", D.ct_int8, int8),
                                   ("tiny-ct-fp8-dynamic", D.ct_fp8, lambda x: fp8(x, 0)),
                                   ("tiny-ct-fp8-block", D.ct_fp8, lambda x: fp8(x, 128))):
    reference = torch.tensor(REFERENCE["checkpoints"][name]["last_logits"]).double()
    still = logits(name, dequantize, rounding)
    print(name, "unmoved:", apart(still, reference))
    for seed in range(4):
        moved = logits(name, dequantize, rounding, seed)
        print("  moved, from the file:", apart(moved, reference), "from the unmoved:", apart(moved, still))
