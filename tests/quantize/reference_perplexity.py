#!/usr/bin/env python3
"""Perplexity of a directory as the tools that read such directories compute it, counted as llminfer-perplexity does.

Usage: reference_perplexity.py DIRECTORY TEXT [--tool gptqmodel] [--dtype float32] [--logits FILE]
Chunks of 512 tokens by themselves, of which the second half is scored. GPTQ and AWQ are read by GPTQModel
(--tool gptqmodel), all else by transformers with compressed-tensors, bitsandbytes or hqq. No GPU is needed. --logits keeps the logits of
the first chunk, for comparisons.
  pip install torch transformers==5.23.0 compressed-tensors==0.20.0 gptqmodel==7.7.0 bitsandbytes==0.50.2 hqq==0.2.8.post1
"""
import argparse
import math

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("directory")
parser.add_argument("text")
parser.add_argument("--tool", default="transformers", choices=["transformers", "gptqmodel"])
parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
parser.add_argument("--ctx", type=int, default=512)
parser.add_argument("--logits")
args = parser.parse_args()
dtype = getattr(torch, args.dtype)


def load():
    if args.tool == "transformers":
        return AutoModelForCausalLM.from_pretrained(args.directory, dtype=dtype, device_map="cpu").eval()
    import json
    import os

    from gptqmodel import BACKEND, GPTQModel

    settings = json.load(open(os.path.join(args.directory, "config.json")))["quantization_config"]
    backend = BACKEND.TORCH_AWQ if settings["quant_method"] == "awq" else BACKEND.GPTQ_TORCH
    return GPTQModel.load(args.directory, device="cpu", backend=backend, dtype=dtype).model.eval()


ids = AutoTokenizer.from_pretrained(args.directory)(open(args.text, newline="").read())["input_ids"]
model, surprise, scored = load(), 0.0, 0
for begin in range(0, len(ids) // args.ctx * args.ctx, args.ctx):
    chunk = torch.tensor([ids[begin:begin + args.ctx]])
    with torch.no_grad():
        logits = model(chunk).logits[0].float()
    if args.logits and begin == 0:
        np.save(args.logits, logits.numpy())
    wanted = torch.log_softmax(logits.double(), -1)[args.ctx // 2:args.ctx - 1].gather(1, chunk[0, args.ctx // 2 + 1:, None])
    surprise, scored = surprise - wanted.sum().item(), scored + wanted.numel()
print(f"{args.directory}: perplexity {math.exp(surprise / scored):.4f} of {scored} tokens ({args.tool}, {args.dtype})")
