#!/usr/bin/env python3
"""Makes NAME.safetensors, NAME.json, base.safetensors and reference.json for the tests of quantized checkpoints.

Usage: make.py FOLDER, where FOLDER holds tiny Llama-shaped checkpoints as GPTQModel 7.7.0 (gptq*, awq-*),
llm-compressor 0.14 and 0.8 (ct-*), bitsandbytes 0.50 (bnb-*) and hqq 0.2.8 (hqq-*, make_hqq.py) wrote them; what it
does not hold stays as it is. Of each only the first layer and 256 tokens are kept; base.safetensors has what all share.
The references are numpy in float32 on weights that dequantize.py gives, with inputs rounded as the checkpoint declares.
Needs: pip install numpy
"""
import json
import os
import struct
import sys

import numpy as np

import dequantize as D

HERE = os.path.dirname(os.path.abspath(__file__))
VOCAB, GREEDY = 256, 16
LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj"]
FORMATS = {
    "gptq-w2g32-asym": lambda st, p: D.gptq(st, p, 2),
    "gptq-w3g64-sym": lambda st, p: D.gptq(st, p, 3),
    "gptq-w4-channel": lambda st, p: D.gptq(st, p, 4),
    "gptq-w4g32-sym": lambda st, p: D.gptq(st, p, 4),
    "gptq-w4g64-sym-actorder": lambda st, p: D.gptq(st, p, 4),
    "gptq-w4g128-asym": lambda st, p: D.gptq(st, p, 4),
    "gptq-w8g64-sym": lambda st, p: D.gptq(st, p, 8),
    "gptq_v2-w4g64-asym": lambda st, p: D.gptq(st, p, 4, v2=True),
    "awq-gemm-w4g64": D.awq,
    "ct-w4a16-g64-actorder": lambda st, p: D.ct_packed(st, p, 4),
    "ct-w4a16-g64-asym": lambda st, p: D.ct_packed(st, p, 4),
    "ct-w4a16-g64-gptq": lambda st, p: D.ct_packed(st, p, 4),
    "ct-w8a16-g64": lambda st, p: D.ct_packed(st, p, 8),
    "ct-w8a8-static": D.ct_int8,
    "ct-w8a8-dynamic": D.ct_int8,
    "ct-fp8-static": D.ct_fp8,
    "ct-fp8-dynamic": D.ct_fp8,
    "ct-fp8-block": D.ct_fp8,
    "ct-mxfp4a16": D.ct_mxfp4,
    "ct-nvfp4a16": D.ct_nvfp4,
    "bnb-fp4": lambda st, p: D.bnb4(st, p, "fp4"),
    "bnb-nf4": lambda st, p: D.bnb4(st, p, "nf4"),
    "bnb-nf4-dq": lambda st, p: D.bnb4(st, p, "nf4"),
    "bnb-int8": D.bnb8,
    "hqq-dynamic": D.hqq,
}


def save(name, tensors):
    """{name: (dtype, shape, bytes)}"""
    header, at = {}, 0
    for key, (dtype, shape, data) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    with open(os.path.join(HERE, name), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def raw(st, key, rows=None):
    entry = st.h[key]
    begin, end = entry["data_offsets"]
    data, shape = bytes(st.m[st.o + begin:st.o + end]), list(entry["shape"])
    if rows:
        data, shape[0] = data[:len(data) // shape[0] * rows], rows
    return entry["dtype"], shape, data


def to_e4m3(x):
    """The nearest E4M3 value, ties to the even mantissa: three bits of mantissa, the least exponent is -6."""
    x = np.clip(x, np.float32(-448), np.float32(448))
    step = np.ldexp(np.float32(1), np.maximum(np.frexp(x)[1] - 1, -6) - 3)
    return np.rint(x / step) * step


def input_rounding(st, quantization):
    """What compressed-tensors rounds x to: s * (code - z), where code is round(x / s) + z within the range of its type.
    Static: s and z are the layer's. Dynamic: z = 0, and s is the token's absmax / 127.5 (int8) or absmax / 448 (FP8).
    """
    settings = (quantization.get("config_groups") or {}).get("group_0", {}).get("input_activations")
    if not settings:
        return None, lambda x, p: x
    dynamic, real = settings["dynamic"], settings["type"] == "float"
    assert settings["num_bits"] == 8 and settings["strategy"] == ("token" if dynamic else "tensor")
    assert settings["symmetric"] or not dynamic

    def round_input(x, p):
        prefix, zero = f"model.layers.0.{p}.input_", 0
        if dynamic:
            scale = np.abs(x).max(-1, keepdims=True) / np.float32(448 if real else 127.5)
        else:
            scale = np.float32(st.get(prefix + "scale")[0])
        if prefix + "zero_point" in st:
            zero = int(st.get(prefix + "zero_point")[0])
        code = to_e4m3(x / scale) if real else np.clip(np.rint(x / scale) + zero, -128, 127) - zero
        return (scale * code).astype(np.float32)

    return {k: settings[k] for k in ("type", "strategy", "dynamic")} if dynamic else "static", round_input


def forward(st, c, weights, ids, round_input):
    table = lambda key: st.get(key)[:VOCAB].astype(np.float32)
    heads, kv_heads, dim, n = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], len(ids)
    norm = lambda x, w: (x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + c["rms_norm_eps"]) * w)
    angle = np.arange(n)[:, None] / 10000.0 ** (np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def rope(x):
        a, b = x[..., :dim // 2], x[..., dim // 2:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    linear = lambda x, name: round_input(x.astype(np.float32), name) @ weights[name].T
    x, prefix = table("model.embed_tokens.weight")[ids], "model.layers.0."
    h = norm(x, st.get(prefix + "input_layernorm.weight"))
    q = rope(linear(h, "self_attn.q_proj").reshape(n, heads, dim))
    k = np.repeat(rope(linear(h, "self_attn.k_proj").reshape(n, kv_heads, dim)), heads // kv_heads, 1)
    v = np.repeat(linear(h, "self_attn.v_proj").reshape(n, kv_heads, dim), heads // kv_heads, 1)
    s = np.where(np.tril(np.ones((n, n), bool)), np.einsum("ihd,jhd->hij", q, k) / np.sqrt(dim), -np.inf)
    s = np.exp(s - s.max(-1, keepdims=True))
    out = np.einsum("hij,jhd->ihd", s / s.sum(-1, keepdims=True), v).reshape(n, -1)
    x = x + linear(out, "self_attn.o_proj")
    h = norm(x, st.get(prefix + "post_attention_layernorm.weight"))
    gate, up = linear(h, "mlp.gate_proj"), linear(h, "mlp.up_proj")
    x = x + linear(gate / (1 + np.exp(-gate)) * up, "mlp.down_proj")
    return (norm(x, st.get("model.norm.weight")) @ table("lm_head.weight").T)[-1]


def main(folder):
    path = os.path.join(HERE, "reference.json")
    before = json.load(open(path))["checkpoints"] if os.path.exists(path) else {}
    references, shared, prompt = {}, None, [int(i) for i in np.random.default_rng(5).integers(1, VOCAB, 20)]
    for name, dequantize in FORMATS.items():
        directory = os.path.join(folder, "tiny-" + name)
        name = {"ct-fp8-block": "fp8-block"}.get(name, name)
        if not os.path.isdir(directory):
            print(f"{directory} is missing: {name} stays as it is")
            if name in before:
                references[name] = before[name]
            continue
        st, c = D.ST(directory), json.load(open(os.path.join(directory, "config.json")))
        weights = {p: dequantize(st, "model.layers.0." + p).astype(np.float32) for p in LINEARS}
        own = {k: raw(st, k) for k in sorted(st.h) if k.startswith("model.layers.0.")}
        if not shared:
            shared = {k: raw(st, k, VOCAB) for k in ("model.embed_tokens.weight", "lm_head.weight")}
            shared["model.norm.weight"] = raw(st, "model.norm.weight")
        quantization = c["quantization_config"]
        if name == "fp8-block":  # as DeepSeek writes it
            quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
            for key in [k for k in own if k.endswith(".weight_scale")]:
                own[key + "_inv"] = ("F32", own[key][1], st.get(key).astype("<f4").tobytes())
                del own[key]
        rounding, round_input = input_rounding(st, quantization)
        keep = ("model_type", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
                "head_dim", "rms_norm_eps", "hidden_act", "max_position_embeddings", "tie_word_embeddings")
        config = {k: c[k] for k in keep} | {"vocab_size": VOCAB, "num_hidden_layers": 1, "rope_theta": 10000.0}
        config["quantization_config"] = {k: v for k, v in quantization.items() if k != "meta"}
        json.dump(config, open(os.path.join(HERE, name + ".json"), "w"), separators=(",", ":"))
        save(name + ".safetensors", own)
        ids, greedy, margins, first = list(prompt), [], [], None
        for _ in range(GREEDY):
            logits = forward(st, c, weights, np.array(ids), round_input)
            first = logits if first is None else first
            second, best = np.sort(logits)[-2:]
            greedy.append(int(logits.argmax()))
            margins.append(round(float(best - second), 5))
            ids.append(greedy[-1])
        reference = {"activation_quantization": rounding, "greedy": greedy, "margins": margins,
                     "last_logits": [float(f"{x:.7g}") for x in first]}
        for p, row in (("self_attn.k_proj", 0), ("mlp.down_proj", 5)):
            w = weights[p]
            reference["layers.0." + p] = {"shape": list(w.shape), f"row{row}": [round(float(x), 6) for x in w[row]],
                                          "sum": float(w.astype(np.float64).sum()),
                                          "sum_sq": float((w.astype(np.float64) ** 2).sum())}
        references[name] = reference
    save("base.safetensors", shared)
    with open(path, "w") as f:
        json.dump({"prompt_ids": prompt, "checkpoints": references}, f, separators=(",", ":"))


main(sys.argv[1])
