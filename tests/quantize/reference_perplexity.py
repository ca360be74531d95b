#!/usr/bin/env python3
"""Perplexity of directories as the tools that read such directories compute it, counted as llminfer-perplexity does.

Usage: reference_perplexity.py TEXT DIRECTORY… [--tool gptqmodel|modelopt] [--save FILE]
Chunks of 512 tokens by themselves, of which the second half is scored. GPTQ and AWQ are read by GPTQModel
(--tool gptqmodel), NVFP4 and MXFP4 of ModelOpt by its QTensor classes (--tool modelopt), all else by transformers with
compressed-tensors or bitsandbytes. Arithmetic is in float32; GPTQModel's layers, which have none, give their weights in
halves. --save writes a file for llminfer-perplexity --reference (of one directory). No GPU is needed.
  pip install torch transformers==5.23.0 compressed-tensors==0.20.0 gptqmodel==7.7.0 bitsandbytes==0.50.2
  pip install nvidia-modelopt==0.47.0
"""
import argparse
import json
import math
import os
import struct

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

parser = argparse.ArgumentParser()
parser.add_argument("text")
parser.add_argument("directories", nargs="+")
parser.add_argument("--tool", default="transformers", choices=["transformers", "gptqmodel", "modelopt"])
parser.add_argument("--ctx", type=int, default=512)
parser.add_argument("--chunks", type=int, default=1 << 24)
parser.add_argument("--save")
args = parser.parse_args()


def read_gptqmodel(directory):
    from gptqmodel import BACKEND, GPTQModel

    settings = json.load(open(os.path.join(directory, "config.json")))["quantization_config"]
    backend = BACKEND.TORCH_AWQ if settings["quant_method"] == "awq" else BACKEND.GPTQ_TORCH
    model = GPTQModel.load(directory, device="cpu", backend=backend, dtype=torch.float16).model.eval()
    for name, module in list(model.named_modules()):
        if not hasattr(module, "qweight"):
            continue
        linear = torch.nn.Linear(module.in_features, module.out_features, bias=False)
        with torch.no_grad():  # one product a sum: the weights themselves
            linear.weight.copy_(module(torch.eye(module.in_features, dtype=torch.float16)).float().T)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, linear)
    return model.float()


def read_transformers(directory):
    config = AutoConfig.from_pretrained(directory)
    fp4 = "fp4" in str(getattr(config, "quantization_config", {}).get("format", ""))  # is expanded to BF16
    options = {"quantization_config": CompressedTensorsConfig(run_compressed=False)} if fp4 else {}
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, device_map="cpu", **options)
    return (torch.nn.Module.float(model) if fp4 else model).eval()


def read_modelopt(directory):
    from modelopt.torch.quantization.qtensor import MXFP4QTensor, NVFP4QTensor
    from safetensors.torch import load_file

    config = AutoConfig.from_pretrained(directory)
    del config.quantization_config
    stored, weights = load_file(os.path.join(directory, "model.safetensors")), {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.uint8 and name.endswith(".weight"):
            shape = torch.Size([tensor.shape[0], tensor.shape[1] * 2])
            factor = stored.get(name + "_scale_2")
            kind, block = (MXFP4QTensor, 32) if factor is None else (NVFP4QTensor, 16)
            tensor = kind(shape, torch.float32, tensor).dequantize(
                torch.float32, scale=stored[name + "_scale"], double_scale=factor, block_sizes={-1: block})
        weights[name] = tensor.float()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    wanted = model.load_state_dict(weights, strict=False).missing_keys
    assert set(wanted) <= {"lm_head.weight"}, wanted
    model.tie_weights()
    return model.eval()


def save_row(file, logprobs):
    """As bench/reference_file.cpp has it."""
    lowest = np.float32(logprobs.min())
    file.write(lowest.tobytes() + np.rint(np.minimum(1, logprobs / lowest) * 65535).astype("<u2").tobytes())


def measure(directory):
    ids = AutoTokenizer.from_pretrained(directory)(open(args.text, newline="").read())["input_ids"]
    model = {"gptqmodel": read_gptqmodel, "modelopt": read_modelopt}.get(args.tool, read_transformers)(directory)
    surprise, scored = 0.0, 0
    ids = ids[:min(len(ids) // args.ctx, args.chunks) * args.ctx]
    file = open(args.save, "wb") if args.save else None
    if file:
        file.write(struct.pack("<8s3Q", b"llmppl01", model.config.vocab_size, args.ctx, len(ids)))
        file.write(np.array(ids, "<i4").tobytes())
    for begin in range(0, len(ids), args.ctx):
        chunk = torch.tensor([ids[begin:begin + args.ctx]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(chunk).logits[0].double(), -1)
        wanted = logprobs[args.ctx // 2:args.ctx - 1].gather(1, chunk[0, args.ctx // 2 + 1:, None])
        if file:
            for row in logprobs[args.ctx // 2:args.ctx - 1].numpy():
                save_row(file, row)
        surprise, scored = surprise - wanted.sum().item(), scored + wanted.numel()
    return f"perplexity {math.exp(surprise / scored):.4f} of {scored} tokens, by {args.tool}"


for directory in args.directories:
    print(f"{directory}: {measure(directory)}", flush=True)
