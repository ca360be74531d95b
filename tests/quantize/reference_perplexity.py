#!/usr/bin/env python3
"""Perplexity of directories as the tools that read such directories compute it, counted as llminfer-perplexity does.

Usage: reference_perplexity.py TEXT DIRECTORY… [--tool gptqmodel]
Chunks of 512 tokens by themselves, of which the second half is scored. GPTQ and AWQ are read by GPTQModel
(--tool gptqmodel), all else by transformers with compressed-tensors or bitsandbytes. Arithmetic is in float32; GPTQModel's layers, which
have none, give their weights in halves. No GPU is needed.
  pip install torch transformers==5.23.0 compressed-tensors==0.20.0 gptqmodel==7.7.0 bitsandbytes==0.50.2
"""
import argparse
import json
import math
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("text")
parser.add_argument("directories", nargs="+")
parser.add_argument("--tool", default="transformers", choices=["transformers", "gptqmodel"])
parser.add_argument("--ctx", type=int, default=512)
parser.add_argument("--chunks", type=int, default=1 << 24)
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
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, device_map="cpu").eval()


def measure(directory):
    ids = AutoTokenizer.from_pretrained(directory)(open(args.text, newline="").read())["input_ids"]
    model = read_gptqmodel(directory) if args.tool == "gptqmodel" else read_transformers(directory)
    surprise, scored = 0.0, 0
    for begin in range(0, min(len(ids) // args.ctx, args.chunks) * args.ctx, args.ctx):
        chunk = torch.tensor([ids[begin:begin + args.ctx]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(chunk).logits[0].double(), -1)
        wanted = logprobs[args.ctx // 2:args.ctx - 1].gather(1, chunk[0, args.ctx // 2 + 1:, None])
        surprise, scored = surprise - wanted.sum().item(), scored + wanted.numel()
    return f"perplexity {math.exp(surprise / scored):.4f} of {scored} tokens, by {args.tool}"


for directory in args.directories:
    print(f"{directory}: {measure(directory)}", flush=True)
