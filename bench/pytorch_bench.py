#!/usr/bin/env python3
"""Prompts, and sequences that decode together, with PyTorch's own kernels: a model of the same shapes, of random bf16 weights.

  bench/pytorch_bench.py MODEL [-p 512] [-n 64] [--batch 64] [-r 3] [--device cuda]

MODEL is a GGUF file or a Hugging Face directory of a dense model of the kind of Llama (Mistral, Qwen2), whatever its weights'
type. Attention is scaled_dot_product_attention over a cache of fixed size, matrices are torch.nn.functional.linear's. Each
test is run as PyTorch runs it by itself, as one CUDA graph, and as one CUDA graph of layers that torch.compile has compiled;
the fastest of those that work here counts. Prints a line of JSON for each test as bench/gpu_bench does, and on standard error
what did not work. Needs PyTorch 2.5 or later, and nothing else.
"""
import argparse
import json
import os
import struct
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class Shape:
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    bias: bool  # of queries, keys and values
    tied: bool  # the output matrix is the embedding table


KINDS = ("llama", "mistral", "qwen2")


def gguf_shape(path: str) -> Shape:
    with open(path, "rb") as file:
        def number(code: str):
            return struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0]

        def text() -> str:
            return file.read(number("Q")).decode()

        def value(kind: int):
            if kind == 8:
                return text()
            if kind == 9:
                of, count = number("I"), number("Q")
                return [value(of) for _ in range(count)]
            return number("BbHhIif?QqdQqd"[kind] if kind < 8 else {10: "Q", 11: "q", 12: "d"}[kind])

        if file.read(4) != b"GGUF" or number("I") not in (2, 3):
            sys.exit(f"{path}: no GGUF file of version 2 or 3")
        tensors, keys = number("Q"), number("Q")
        data = {}
        for _ in range(keys):
            key = text()
            data[key] = value(number("I"))
        sizes = {}
        for _ in range(tensors):
            name = text()
            sizes[name] = [number("Q") for _ in range(number("I"))]
            file.seek(12, os.SEEK_CUR)  # its type and place
    kind = data["general.architecture"]
    if kind not in KINDS or f"{kind}.expert_count" in data:
        sys.exit(f"{path}: not possible with a model of the kind {kind}")
    heads, queries = data[f"{kind}.attention.head_count"], sizes["blk.0.attn_q.weight"][1]
    head_dim = queries // heads
    return Shape(data[f"{kind}.embedding_length"], data[f"{kind}.feed_forward_length"], data[f"{kind}.block_count"], heads,
                 sizes["blk.0.attn_k.weight"][1] // head_dim, head_dim, sizes["token_embd.weight"][1],
                 "blk.0.attn_q.bias" in sizes, "output.weight" not in sizes)


def directory_shape(path: str) -> Shape:
    with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    kind = config["model_type"]
    if kind not in KINDS or config.get("mlp_bias"):
        sys.exit(f"{path}: not possible with a model of the kind {kind}")
    heads = config["num_attention_heads"]
    return Shape(config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"], heads,
                 config.get("num_key_value_heads") or heads, config.get("head_dim") or config["hidden_size"] // heads,
                 config["vocab_size"], kind == "qwen2", config.get("tie_word_embeddings", False))


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Heads [batch, heads, tokens, head_dim] by the tokens' cosines and sines [2, tokens, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat((-high, low), dim=-1) * rotation[1]


def layer(x, weights, keys, values, rotation, place, mask, shape: Shape):
    """x [batch, tokens, hidden] after a layer. `place`: of the tokens in the cache. `mask`: which places of it one token sees;
    None: the tokens are a whole prompt, which see each other."""
    norm, qkv, bias, out, ffn_norm, gate_up, down = weights
    batch, tokens, hidden = x.shape
    heads, kv, dim = shape.heads, shape.kv_heads, shape.head_dim
    all_heads = F.linear(F.rms_norm(x, (hidden,), norm), qkv, bias).view(batch, tokens, heads + 2 * kv, dim).transpose(1, 2)
    q, k, v = all_heads.split((heads, kv, kv), dim=1)
    q, k = rotate(q, rotation), rotate(k, rotation)
    keys.index_copy_(2, place, k)
    values.index_copy_(2, place, v)
    if mask is None:
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv)
    else:  # the heads of a group as tokens of one, so that keys and values are read once
        group = q.reshape(batch, kv, heads // kv, dim)
        mixed = F.scaled_dot_product_attention(group, keys, values, attn_mask=mask).view(batch, heads, tokens, dim)
    x = x + F.linear(mixed.transpose(1, 2).reshape(batch, tokens, heads * dim), out)
    gate, up = F.linear(F.rms_norm(x, (hidden,), ffn_norm), gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, down)


class Model:
    def __init__(self, shape: Shape, device: str, dtype=torch.bfloat16):
        self.shape, self.device, self.dtype, self.layer = shape, device, dtype, layer
        s = shape

        def random(*size):
            return torch.empty(size, device=device, dtype=dtype).normal_(std=0.02)

        heads = s.heads * s.head_dim
        wide = heads + 2 * s.kv_heads * s.head_dim
        self.embedding, self.norm = random(s.vocab, s.hidden), 1 + random(s.hidden)
        self.output = self.embedding if s.tied else random(s.vocab, s.hidden)
        self.layers = [(1 + random(s.hidden), random(wide, s.hidden), random(wide) if s.bias else None, random(s.hidden, heads),
                        1 + random(s.hidden), random(2 * s.ffn, s.hidden), random(s.hidden, s.ffn)) for _ in range(s.layers)]

    def parameters(self) -> int:
        tensors = [self.embedding, self.norm] + ([] if self.shape.tied else [self.output])
        return sum(t.numel() for t in tensors) + sum(t.numel() for w in self.layers for t in w if t is not None)

    def start(self, batch: int, places: int):
        """An empty cache of so many places. A multiple of 8, as PyTorch's kernels want masks."""
        s = self.shape
        self.places = torch.arange((places + 7) // 8 * 8, device=self.device)
        half = torch.arange(0, s.head_dim, 2, device=self.device) / s.head_dim
        angles = torch.outer(self.places.float(), 10000.0 ** -half).repeat(1, 2)
        self.rotations = torch.stack((angles.cos(), angles.sin())).to(self.dtype)
        size = (batch, s.kv_heads, len(self.places), s.head_dim)
        self.cache = [tuple(torch.zeros(size, device=self.device, dtype=self.dtype) for _ in range(2)) for _ in range(s.layers)]

    def forward(self, tokens: torch.Tensor, place: torch.Tensor, mask) -> torch.Tensor:
        """The logits of each sequence's last token."""
        x = F.embedding(tokens, self.embedding)
        rotation = self.rotations.index_select(1, place)
        for weights, (keys, values) in zip(self.layers, self.cache):
            x = self.layer(x, weights, keys, values, rotation, place, mask, self.shape)
        return F.linear(F.rms_norm(x[:, -1], (self.shape.hidden,), self.norm), self.output)

    def prompt(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.forward(tokens, self.places[:tokens.shape[1]], None)

    def step(self, tokens: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """A token of each sequence, [batch, 1], at the place [1]."""
        return self.forward(tokens, place, (self.places <= place).view(1, 1, 1, -1))


def graph_of(work):
    """The same work as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def seconds(work, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def fastest(model: Model, make, repetitions: int) -> tuple[float, str]:
    """Seconds, and how: of make(in a graph) -> work, the mean of its repetitions."""
    found = []
    for how in ("eager", "graph", "compiled, graph"):
        if how != "eager" and model.device != "cuda":
            continue
        try:
            model.layer = torch.compile(layer) if how.startswith("compiled") else layer
            work = make(how != "eager")
            work()
            times = [seconds(work, model.device) for _ in range(repetitions)]
            found.append((sum(times) / len(times), how))
        except Exception as error:  # torch.compile has many reasons
            print(f"PyTorch, {how}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    if not found:
        sys.exit("none of the ways works here")
    return min(found)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-p", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("-n", type=int, default=64, help="tokens that each sequence decodes")
    parser.add_argument("--batch", type=int, default=64, help="sequences that decode together")
    parser.add_argument("-r", type=int, default=3, help="repetitions")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    o = parser.parse_args()
    shape = directory_shape(o.model) if os.path.isdir(o.model) else gguf_shape(o.model)
    torch.manual_seed(1)
    model = Model(shape, o.device)
    name = os.path.basename(os.path.normpath(o.model))

    def report(test: str, tokens: int, make) -> None:
        took, how = fastest(model, make, o.r)
        print(json.dumps({"bench": f"{name}, PyTorch {torch.__version__}, {test}", "value": tokens / took, "unit": "tokens/s",
                          "share": 0, "ran": how, "model": name, "test": test, "parameters": model.parameters()}), flush=True)

    def prompt(in_graph: bool):
        model.start(1, o.p)
        tokens = torch.randint(shape.vocab, (1, o.p), device=o.device)
        return graph_of(lambda: model.prompt(tokens)) if in_graph else lambda: model.prompt(tokens)

    def decode(in_graph: bool):
        # As llminfer-bench's: from a token each, and the first ones run ahead of the last by up to 64.
        model.start(o.batch, 64 + o.n + 1)
        tokens = torch.randint(shape.vocab, (o.batch, 1), device=o.device)
        place = torch.zeros(1, dtype=torch.long, device=o.device)

        def step():
            tokens.copy_(model.step(tokens, place).argmax(dim=-1, keepdim=True))
            place.add_(1)

        one = graph_of(step) if in_graph else step

        def work():
            place.fill_(32)
            for _ in range(o.n):
                one()
        return work

    report(f"prefill {o.p}", o.p, prompt)
    report(f"decode {o.n}, {o.batch} at once", o.n * o.batch, decode)


if __name__ == "__main__":
    main()
