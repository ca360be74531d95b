#!/usr/bin/env python3
"""Writes GGUF checkpoints with random weights and the shapes of real models, in any weight format, for benchmarks.

  bench/make_synthetic.py --model qwen2.5-1.5b --type Q4_K_M --tokenizer MODEL.gguf OUT.gguf
  bench/make_synthetic.py --list

Speed depends on shapes and formats, not on what the weights say, so such a file measures like the real one; its text is
noise. The values have a standard deviation of 0.02, which keeps activations in range. --layers cuts the model down for
quick runs, --context and --window make one for long contexts. Which tensor gets which type follows what llama-quantize
does without an importance matrix; --pure gives all the same. The tokenizer is that of another GGUF file with a
byte-level BPE vocabulary, cut or padded to the model's size.

Needs the Python packages gguf (0.19) and numpy. Files are written whole or not at all.
"""
import argparse
import math
import os
import sys
from dataclasses import dataclass, replace

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

STD = 0.02


@dataclass(frozen=True)
class Model:
    arch: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_base: float
    eps: float
    tied: bool  # the output matrix is the embedding table
    llama3_rope: bool = False  # rotary frequencies are stretched, by the factors of Llama 3.1 and later
    experts: int = 0  # in each layer; then `ffn` is the width of one
    used: int = 0
    window: int = 0  # tokens that each layer sees, its own included; 0: all


MODELS = {
    "smollm2-135m": Model("llama", 576, 1536, 30, 9, 3, 64, 49152, 8192, 1e5, 1e-5, True),
    "qwen2.5-0.5b": Model("qwen2", 896, 4864, 24, 14, 2, 64, 151936, 32768, 1e6, 1e-6, True),
    "qwen2.5-1.5b": Model("qwen2", 1536, 8960, 28, 12, 2, 128, 151936, 32768, 1e6, 1e-6, True),
    "llama-3.2-3b": Model("llama", 3072, 8192, 28, 24, 8, 128, 128256, 131072, 5e5, 1e-5, True, True),
    "olmoe-1b-7b": Model("olmoe", 2048, 1024, 16, 16, 16, 128, 50304, 4096, 1e4, 1e-5, False, experts=64, used=8),
    "qwen3-30b-a3b": Model("qwen3moe", 2048, 768, 48, 32, 4, 128, 151936, 40960, 1e6, 1e-6, False, experts=128, used=8),
    "gpt-oss-20b": Model("gpt-oss", 2880, 2880, 24, 64, 8, 64, 201088, 131072, 15e4, 1e-5, False, experts=32, used=4),
    "mistral-7b": Model("llama", 4096, 14336, 32, 32, 8, 128, 32768, 32768, 1e6, 1e-5, False),
}

# File types that mix tensor types, and the type that most of their tensors have. Any other name is that of the one type.
MIXES = {"Q3_K_S": T.Q3_K, "Q3_K_M": T.Q3_K, "Q4_K_S": T.Q4_K, "Q4_K_M": T.Q4_K, "Q5_K_S": T.Q5_K, "Q5_K_M": T.Q5_K}

# What replaces a type of 256-value blocks in a matrix whose rows are no multiple of 256.
FALLBACK = {T.Q2_K: T.Q4_0, T.Q3_K: T.Q4_0, T.TQ1_0: T.Q4_0, T.TQ2_0: T.Q4_0, T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}

# Where a block keeps its scales. f16: bytes of scales drawn around one size. min: the place of an f16 that holds the
# scale times a factor, which centres the block's values on zero.
SCALES = {
    T.Q4_0: {"f16": [0]}, T.Q4_1: {"f16": [0], "min": (2, -7.5)}, T.Q5_0: {"f16": [0]},
    T.Q5_1: {"f16": [0], "min": (2, -15.5)}, T.Q8_0: {"f16": [0]}, T.IQ4_NL: {"f16": [0]}, T.IQ4_XS: {"f16": [0]},
    T.Q2_K: {"f16": [80], "min": (82, 1.5)}, T.Q3_K: {"f16": [108]}, T.Q4_K: {"f16": [0], "min": (2, 7.5)},
    T.Q5_K: {"f16": [0], "min": (2, 15.5)}, T.Q6_K: {"f16": [208]}, T.TQ1_0: {"f16": [52]}, T.TQ2_0: {"f16": [64], "ternary": 64},
    T.IQ1_S: {"f16": [0]}, T.IQ2_XXS: {"f16": [0]}, T.IQ2_XS: {"f16": [0]}, T.IQ2_S: {"f16": [0]},
    T.IQ3_XXS: {"f16": [0]}, T.IQ3_S: {"f16": [0]},
    T.IQ1_M: {"nibbles": 48}, T.MXFP4: {"e8m0": 0}, T.NVFP4: {"ue4m3": (0, 4)},
}


def more_bits(layer: int, layers: int) -> bool:
    """The layers that the mixes called _M favour: the first and last eighth and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensor_type(file_type: str, model: Model, kind: str, layer: int, columns: int, pure: bool) -> T:
    """The type of a matrix. kind: its GGUF name without "blk.N." and ".weight"."""
    base = MIXES.get(file_type) or T[file_type]
    if base == T.MXFP4 and not kind.startswith("ffn_"):  # as gpt-oss has it: experts only
        return T.Q8_0
    if base in (T.F32, T.F16, T.BF16):
        return base
    wide = model.heads // model.kv_heads >= 4  # few value heads: their matrix is small, so more bits cost little
    chosen = base
    if pure:
        pass
    elif kind == "output" or (kind == "token_embd" and model.tied):
        tiny = base.name.startswith(("IQ1", "IQ2", "IQ3_XXS"))
        if columns % gguf.GGML_QUANT_SIZES[base][0] or base == T.Q8_0:
            chosen = T.Q8_0
        else:
            chosen = T.Q5_K if tiny else T.Q6_K
    elif kind == "attn_v":
        if base in (T.IQ4_NL, T.IQ4_XS) and wide:
            chosen = T.Q5_K
        elif base == T.Q2_K:
            chosen = T.Q4_K if wide else T.Q3_K
        elif file_type == "Q3_K_M":
            chosen = T.Q5_K if layer < 2 else T.Q4_K
        elif file_type == "Q4_K_S" and layer < 4:
            chosen = T.Q5_K
        elif file_type in ("Q4_K_M", "Q5_K_M") and more_bits(layer, model.layers):
            chosen = T.Q6_K
    elif kind == "ffn_down":
        first = layer < model.layers // 8
        if base == T.Q2_K:
            chosen = T.Q3_K
        elif file_type == "Q3_K_M":
            chosen = T.Q5_K if layer < model.layers // 16 else T.Q4_K
        elif (base in (T.IQ4_NL, T.IQ4_XS) or file_type == "Q4_K_S") and first:
            chosen = T.Q5_K
        elif file_type in ("Q4_K_M", "Q5_K_M") and more_bits(layer, model.layers):
            chosen = T.Q6_K
    elif kind == "attn_output":
        if base == T.Q2_K:
            chosen = T.Q3_K
        elif file_type == "Q3_K_M":
            chosen = T.Q4_K
    if columns % gguf.GGML_QUANT_SIZES[chosen][0]:
        chosen = FALLBACK.get(chosen, T.IQ4_NL if chosen.name.startswith("IQ") else T.F16)
    return chosen


class Weights:
    """Random matrices. One of a shape and type serves all layers: the file is as large, and made faster."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.sizes: dict[T, float] = {}
        self.made: dict[tuple, np.ndarray] = {}

    def matrix(self, rows: int, columns: int, kind: T) -> np.ndarray:
        key = (rows, columns, kind)
        if key not in self.made:
            self.made[key] = self.make(rows, columns, kind)
        return self.made[key]

    def make(self, rows: int, columns: int, kind: T) -> np.ndarray:
        if kind in (T.F32, T.F16, T.BF16):
            values = self.random.standard_normal((rows, columns), dtype=np.float32)
            values *= STD
            return gguf.quantize(values, kind)
        if kind not in SCALES:
            sys.exit(f"make_synthetic: no layout for the weight format {kind.name}")
        if kind not in self.sizes:
            self.sizes[kind] = self.fit(kind)
        per_block, width = gguf.GGML_QUANT_SIZES[kind]
        blocks = self.blocks(rows * columns // per_block, kind, self.sizes[kind])
        return blocks.reshape(rows, columns // per_block * width)

    def fit(self, kind: T) -> float:
        """The scale at which dequantized values have the standard deviation STD."""
        trial = 1 / 64
        values = gguf.dequantize(self.blocks(2048, kind, trial), kind)
        return trial * STD / float(values.std())

    def blocks(self, count: int, kind: T, scale: float) -> np.ndarray:
        """uint8 [count, bytes of a block]: any bits for the values, scales spread by a quarter around `scale`."""
        width = gguf.GGML_QUANT_SIZES[kind][1]
        blocks = np.frombuffer(self.random.bytes(count * width), np.uint8).reshape(count, width).copy()
        layout = SCALES[kind]
        scales = (scale * self.random.uniform(0.75, 1.25, count)).astype(np.float16)
        for at in layout.get("f16", []):
            blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
        if "min" in layout:
            at, factor = layout["min"]
            minima = (scales.astype(np.float32) * factor).astype(np.float16)
            blocks[:, at : at + 2] = minima.view(np.uint8).reshape(count, 2)
        if "ternary" in layout:  # two bits for one of three values: 3 becomes 2
            codes = blocks[:, : layout["ternary"]]
            codes &= ~((codes >> 1) & codes & 0x55)
        if "nibbles" in layout:  # the f16's four nibbles are the high ones of four u16
            bits, at = scales.view(np.uint16), layout["nibbles"]
            for i in range(4):
                high = ((bits >> (4 * i)) & 15).astype(np.uint8) << 4
                blocks[:, at + 2 * i + 1] = (blocks[:, at + 2 * i + 1] & 15) | high
        if "e8m0" in layout:  # a power of two
            blocks[:, layout["e8m0"]] = 127 + round(math.log2(scale))
        if "ue4m3" in layout:  # exponent (bias 7) in bits 3 to 6, mantissa below
            first, last = layout["ue4m3"]
            exponent = min(max(7 + round(math.log2(scale)), 0), 14)
            blocks[:, first:last] = (exponent << 3) | (blocks[:, first:last] & 7)
        return blocks


def llama3_rope_factors(model: Model) -> np.ndarray:
    """f32 [head_dim / 2]: what each rotary frequency is divided by, with the constants of Llama 3.2's config."""
    factor, low, high, original = 32.0, 1.0, 4.0, 8192
    frequency = model.rope_base ** -(np.arange(0, model.head_dim, 2) / model.head_dim)
    turns = original * frequency / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def add_tokenizer(writer: gguf.GGUFWriter, path: str, vocab: int) -> None:
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()[:vocab]
    types = fields["tokenizer.ggml.token_type"].contents()[:vocab]
    kept = set(tokens)
    merges = [m for m in fields["tokenizer.ggml.merges"].contents()
              if all(p in kept for p in m.split(" ")) and m.replace(" ", "") in kept]
    for i in range(len(tokens), vocab):
        tokens.append(f"[PAD{i}]")
        types.append(int(gguf.TokenType.UNUSED))
    for key, field in fields.items():
        if not key.startswith("tokenizer."):
            continue
        if key == "tokenizer.ggml.tokens":
            writer.add_array(key, tokens)
        elif key == "tokenizer.ggml.token_type":
            writer.add_array(key, types)
        elif key == "tokenizer.ggml.merges":
            writer.add_array(key, merges)
        else:
            if field.types[0] == gguf.GGUFValueType.ARRAY:
                sys.exit(f"make_synthetic: {path}: {key}: expected a byte-level BPE vocabulary")
            writer.add_key_value(key, field.contents(), field.types[0])


def add_config(writer: gguf.GGUFWriter, name: str, model: Model, file_type: str, layers: int) -> None:
    writer.add_name(f"synthetic {name} {file_type}")
    writer.add_block_count(layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.ffn)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(model.rope_base)
    writer.add_layer_norm_rms_eps(model.eps)
    writer.add_vocab_size(model.vocab)
    if model.head_dim * model.heads != model.hidden:
        writer.add_key_length(model.head_dim)
        writer.add_value_length(model.head_dim)
    if model.window:
        writer.add_sliding_window(model.window)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(model.used)
        writer.add_expert_feed_forward_length(model.ffn)
    if model.arch == "gpt-oss":
        writer.add_sliding_window(128)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(32.0)
        writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    known = f"MOSTLY_{file_type}"
    if known in gguf.LlamaFileType.__members__:
        writer.add_file_type(gguf.LlamaFileType[known])


def add_tensors(writer: gguf.GGUFWriter, model: Model, file_type: str, layers: int, seed: int, pure: bool) -> None:
    weights = Weights(seed)

    def matrix(name: str, kind: str, rows: int, columns: int, layer: int = 0) -> None:
        chosen = tensor_type(file_type, model, kind, layer, columns, pure)
        if model.experts and kind.startswith("ffn_"):
            stack = weights.matrix(model.experts * rows, columns, chosen)
            name = name.replace(kind, kind + "_exps")
            writer.add_tensor(name, stack.reshape(model.experts, rows, -1), raw_dtype=chosen)
        else:
            writer.add_tensor(name, weights.matrix(rows, columns, chosen), raw_dtype=chosen)

    ones = np.ones(model.hidden, np.float32)
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    gpt_oss = model.arch == "gpt-oss"

    def bias(name: str, *shape: int) -> None:
        values = weights.random.standard_normal(shape, dtype=np.float32) * np.float32(STD)
        writer.add_tensor(name, values)

    matrix("token_embd.weight", "token_embd", model.vocab, model.hidden)
    writer.add_tensor("output_norm.weight", ones)
    if not model.tied:
        matrix("output.weight", "output", model.vocab, model.hidden)
    if model.llama3_rope:
        writer.add_tensor("rope_freqs.weight", llama3_rope_factors(model))
    for layer in range(layers):
        b = f"blk.{layer}."
        writer.add_tensor(b + "attn_norm.weight", ones)
        writer.add_tensor(b + ("post_attention_norm" if gpt_oss else "ffn_norm") + ".weight", ones)
        for kind, rows, columns in (("attn_q", q, model.hidden), ("attn_k", kv, model.hidden),
                                    ("attn_v", kv, model.hidden), ("attn_output", model.hidden, q),
                                    ("ffn_gate", model.ffn, model.hidden), ("ffn_up", model.ffn, model.hidden),
                                    ("ffn_down", model.hidden, model.ffn)):
            matrix(b + kind + ".weight", kind, rows, columns, layer)
        if model.experts:
            writer.add_tensor(b + "ffn_gate_inp.weight", weights.matrix(model.experts, model.hidden, T.F32))
        if model.arch in ("olmoe", "qwen3moe"):  # norms on all of q and k, or on each head
            for kind, columns in (("attn_q_norm", q), ("attn_k_norm", kv)):
                writer.add_tensor(b + kind + ".weight", np.ones(columns if model.arch == "olmoe" else model.head_dim, np.float32))
        if model.arch == "qwen2" or gpt_oss:
            for kind, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
                bias(b + kind + ".bias", rows)
        if gpt_oss:
            bias(b + "attn_output.bias", model.hidden)
            bias(b + "attn_sinks.weight", model.heads)
            bias(b + "ffn_gate_inp.bias", model.experts)
            for kind, rows in (("ffn_gate", model.ffn), ("ffn_up", model.ffn), ("ffn_down", model.hidden)):
                bias(b + kind + "_exps.bias", model.experts, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", help="file to write")
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--type", default="Q4_0", help="weight format, or a mix as Q4_K_M")
    parser.add_argument("--tokenizer", help="GGUF file to take the vocabulary from")
    parser.add_argument("--layers", type=int, help="write only so many layers")
    parser.add_argument("--context", type=int, help="context length, instead of the model's own")
    parser.add_argument("--window", type=int, help="sliding window of all layers (models of architecture llama)")
    parser.add_argument("--pure", action="store_true", help="all matrices in one format (where their shape allows)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the models and formats")
    o = parser.parse_args()
    formats = [t.name for t in (T.F32, T.F16, T.BF16, *SCALES)] + list(MIXES)
    if o.list:
        print("models:", *MODELS, "\nformats:", *formats)
        return
    if not (o.out and o.model and o.tokenizer):
        parser.error("--model, --tokenizer and the file to write are needed")
    if o.type not in formats:
        parser.error(f"--type {o.type}: expected one of {' '.join(formats)}")
    model = MODELS[o.model]
    layers = model.layers if o.layers is None else o.layers
    if not 1 <= layers <= model.layers:
        parser.error(f"--layers: expected 1 to {model.layers}")

    if o.context is not None and not 1 <= o.context <= 1 << 24:
        parser.error(f"--context: expected 1 to {1 << 24}")
    if o.window is not None and (o.window < 1 or model.arch != "llama"):
        parser.error("--window: expected 1 or more, and a model of architecture llama")
    model = replace(model, context=o.context or model.context, window=o.window or 0)

    partial = o.out + ".partial"
    writer = gguf.GGUFWriter(partial, model.arch)
    add_config(writer, o.model, model, o.type, layers)
    add_tokenizer(writer, o.tokenizer, model.vocab)
    add_tensors(writer, model, o.type, layers, o.seed, o.pure)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, o.out)
    print(f"{o.out}: {os.path.getsize(o.out) / 1e6:.0f} MB")


main()
