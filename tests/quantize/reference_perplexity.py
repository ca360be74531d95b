#!/usr/bin/env python3
"""Perplexity of models as the tools that read such models compute it, counted as llminfer-perplexity does.

Usage: reference_perplexity.py TEXT MODEL… [--tool gptqmodel|llama.cpp|modelopt] [--save FILE]
Chunks of 512 tokens by themselves, of which the second half is scored. GPTQ and AWQ are read by GPTQModel
(--tool gptqmodel), NVFP4 and MXFP4 of ModelOpt by its QTensor classes (--tool modelopt), GGUF files by llama.cpp
(--tool llama.cpp), which takes half a second for each scored token, all else by transformers with compressed-tensors or
bitsandbytes. Arithmetic is in float32, but for llama.cpp's; GPTQModel's layers, which have none, give their weights in
halves. --save writes a file for llminfer-perplexity --reference (of one model). No GPU is needed.
  pip install torch transformers==5.23.0 compressed-tensors==0.20.0 gptqmodel==7.7.0 bitsandbytes==0.50.2
  pip install nvidia-modelopt==0.47.0 xllamacpp==2026.10.11549
"""
import argparse
import json
import math
import os
import struct
import urllib.request

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig


def read_gptqmodel(directory):
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    settings = json.load(open(os.path.join(directory, "config.json")))["quantization_config"]
    awq = settings["quant_method"] == "awq"
    backend = BACKEND.TORCH_AWQ if awq else BACKEND.GPTQ_TORCH
    model = GPTQModel.load(directory, device="cpu", backend=backend, dtype=torch.float16).model.eval()
    for name, module in list(model.named_modules()):
        if not hasattr(module, "qweight"):
            continue
        linear = torch.nn.Linear(module.in_features, module.out_features, bias=False)
        weight = dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size) if awq \
            else module.dequantize_weight()
        with torch.no_grad():
            linear.weight.copy_(weight.T)
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


class Directory:
    """One that torch reads, by one of the functions above."""

    def __init__(self, directory, read):
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = read(directory)
        self.vocab = self.model.config.vocab_size

    def tokens(self, text):
        return self.tokenizer(text)["input_ids"]

    def logprobs(self, ids, first):
        """What follows ids[0] to ids[first], to ids[first + 1] and so on: a row for each but the last."""
        with torch.no_grad():
            return torch.log_softmax(self.model(torch.tensor([ids])).logits[0, first:-1].double(), -1).numpy()


class LlamaCpp:
    """A GGUF file in llama.cpp's server, in this process."""

    def __init__(self, path):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.verbosity = path, 2048, 1, 1
        self.server = xllamacpp.Server(params)
        self.vocab = self.post("/v1/models", None)["data"][0]["meta"]["n_vocab"]

    def post(self, path, body):
        request = urllib.request.Request(self.server.listening_address + path, body and json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokens(self, text):
        return self.post("/tokenize", {"content": text, "add_special": True})["tokens"]

    def logprobs(self, ids, first):
        rows = np.empty((len(ids) - 1 - first, self.vocab))
        for row, end in zip(rows, range(first + 1, len(ids))):
            answer = self.server.handle_completions({"prompt": ids[:end], "max_tokens": 1, "logprobs": self.vocab})
            found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            assert len(found) == self.vocab
            row[[entry["id"] for entry in found]] = [entry["logprob"] for entry in found]
        return rows


def load(path, tool):
    if tool == "llama.cpp":
        return LlamaCpp(path)
    return Directory(path, {"gptqmodel": read_gptqmodel, "modelopt": read_modelopt}.get(tool, read_transformers))


def save_row(file, logprobs):
    """As bench/reference_file.cpp has it."""
    lowest = np.float32(logprobs.min())
    file.write(lowest.tobytes() + np.rint(np.minimum(1, logprobs / lowest) * 65535).astype("<u2").tobytes())


def measure(model, text, ctx=512, chunks=None, save=None):
    """The perplexity, and of how many tokens. What is saved is read by llminfer-perplexity --reference."""
    ids = model.tokens(open(text, newline="").read())
    count = len(ids) // ctx
    ids = ids[:min(count, chunks or count) * ctx]
    file = open(save, "wb") if save else None
    if file:
        file.write(struct.pack("<8s3Q", b"llmppl01", model.vocab, ctx, len(ids)))
        file.write(np.array(ids, "<i4").tobytes())
    surprise, scored = 0.0, 0
    for begin in range(0, len(ids), ctx):
        chunk = ids[begin:begin + ctx]
        logprobs = model.logprobs(chunk, ctx // 2)
        wanted = logprobs[np.arange(len(logprobs)), chunk[ctx // 2 + 1:]]
        if file:
            for row in logprobs:
                save_row(file, row)
        surprise, scored = surprise - wanted.sum(), scored + wanted.size
    if file:
        file.close()
    return math.exp(surprise / scored), scored


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tool", default="transformers",
                        choices=["transformers", "gptqmodel", "llama.cpp", "modelopt"])
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--save")
    args = parser.parse_args()
    for path in args.models:
        perplexity, scored = measure(load(path, args.tool), args.text, args.ctx, args.chunks, args.save)
        print(f"{path}: perplexity {perplexity:.4f} of {scored} tokens, by {args.tool}", flush=True)


if __name__ == "__main__":
    main()
