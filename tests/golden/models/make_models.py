#!/usr/bin/env python3
"""Makes the tiny random models of this folder and their reference outputs with Hugging Face transformers.

Needs torch and transformers (made with transformers 5.23, torch 2.15). Each model is a folder with config.json and
model.safetensors and, beside them, reference.json:
  prompt_ids   ids of the prompt
  last_logits  logits after the whole prompt, in float32 on the stored weights
  argmax       the best id after each position of the prompt
  greedy       ids that greedy decoding appends to the prompt
  margins      for each of them the gap between the two best logits

    make_models.py [FOLDER [MODEL…]]

tiny-bf16 is not made here: it was trained for a few minutes on text, with its own byte-level BPE of 1024 tokens, so that its
logits mean something; its reference.json has the same keys.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB = 256
PROMPT = 40
GREEDY = 16

SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=None,
)

# Mixtures of experts are many matrices, so these are smaller.
SMALL = {
    **SHAPE, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}

# The scaled models see wavelengths on both sides of each rule's limits: head size 16, so 8 frequencies.
MODELS = {
    "llama3-rope": (
        LlamaConfig(
            **SHAPE,
            rope_parameters=dict(
                rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
        torch.bfloat16,
    ),
    "linear-rope": (
        LlamaConfig(**SHAPE, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
        torch.float16,
    ),
    "yarn-rope": (
        LlamaConfig(
            **SHAPE,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=64, beta_fast=8.0,
                beta_slow=1.0,
            ),
        ),
        torch.float32,
    ),
    "mistral-window": (MistralConfig(**SHAPE, sliding_window=8), torch.bfloat16),
    "qwen2": (Qwen2Config(**SHAPE), torch.bfloat16),
    # One layer of full attention, then two with a window; tied.
    "qwen2-window": (
        Qwen2Config(
            **{**SHAPE, "num_hidden_layers": 3}, use_sliding_window=True, sliding_window=8, max_window_layers=1,
            tie_word_embeddings=True,
        ),
        torch.bfloat16,
    ),
    # Head size 32 although hidden size / heads is 16.
    "llama-biases": (
        LlamaConfig(**SHAPE, head_dim=32, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        torch.float32,
    ),
    "mixtral": (MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2), torch.bfloat16),
    # A mixture, then a layer without one.
    "qwen2-moe": (
        Qwen2MoeConfig(
            **{**SMALL, "intermediate_size": 32, "num_hidden_layers": 2}, num_experts=5, num_experts_per_tok=3,
            moe_intermediate_size=8, shared_expert_intermediate_size=16, mlp_only_layers=[1],
        ),
        torch.bfloat16,
    ),
    "olmoe": (OlmoeConfig(**SMALL, num_experts=5, num_experts_per_tok=2), torch.bfloat16),
    # Head size 32 although hidden size / heads is 16.
    "qwen3": (Qwen3Config(**{**SMALL, "intermediate_size": 48}, head_dim=32, tie_word_embeddings=True), torch.bfloat16),
    "qwen3-moe": (
        Qwen3MoeConfig(
            **SMALL, head_dim=32, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=8, norm_topk_prob=True,
            tie_word_embeddings=True,
        ),
        torch.bfloat16,
    ),
    # A layer with a window, then one of full attention.
    "gpt-oss": (
        GptOssConfig(
            **{**SMALL, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
               "num_key_value_heads": 2}, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=64, beta_fast=8.0,
                beta_slow=1.0, truncate=False,
            ),
        ),
        torch.bfloat16,
    ),
}


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Larger numbers than a fresh model has, so that every part moves the logits visibly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias") or name.endswith("sinks"):
                parameter.copy_(0.5 * noise)
            elif "embed" in name or "lm_head" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(2.0 * noise / parameter.shape[-1] ** 0.5)


def save_mxfp4(model: torch.nn.Module, folder: pathlib.Path, seed: int) -> None:
    """Writes a gpt-oss model as it is published: experts of random blocks of MXFP4, E2M1 with powers of two."""
    generator = torch.Generator().manual_seed(2000 + seed)
    tensors = {}
    for name, value in model.state_dict().items():
        if not name.endswith("_proj"):
            tensors[name] = value.contiguous()
            continue
        experts, cols, rows = value.shape
        blocks = torch.randint(0, 256, (experts, rows, cols // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(123, 127, (experts, rows, cols // 32), generator=generator, dtype=torch.uint8)
        tensors[name + "_blocks"], tensors[name + "_scales"] = blocks, scales
    model.config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reference(model: torch.nn.Module, seed: int) -> dict:
    generator = torch.Generator().manual_seed(1000 + seed)
    ids = torch.randint(2, model.config.vocab_size, (1, PROMPT), generator=generator)
    with torch.no_grad():
        logits = model(ids).logits[0]
        result = {
            "prompt_ids": ids[0].tolist(),
            "last_logits": [round(x, 6) for x in logits[-1].tolist()],
            "argmax": logits.argmax(-1).tolist(),
            "greedy": [],
            "margins": [],
        }
        for _ in range(GREEDY):  # recomputed from the start, without a cache
            best = model(ids, use_cache=False).logits[0, -1].topk(2)
            result["greedy"].append(int(best.indices[0]))
            result["margins"].append(round(float(best.values[0] - best.values[1]), 6))
            ids = torch.cat([ids, best.indices[:1].unsqueeze(0)], dim=1)
    return result


def main() -> None:
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    for seed, (name, (config, dtype)) in enumerate(MODELS.items()):
        if len(sys.argv) > 2 and name not in sys.argv[2:]:
            continue
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config).eval()
        randomize(model, seed)
        model = model.to(dtype)
        if name == "gpt-oss":
            save_mxfp4(model, folder / name, seed)
        else:
            model.save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        # The reference computes in float32 on the numbers that were stored.
        stored = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32, attn_implementation="eager")
        data = reference(stored.eval(), seed)
        (folder / name / "reference.json").write_text(json.dumps(data) + "\n")
        rotary = stored.model.rotary_emb
        print(name, rotary.inv_freq.tolist(), rotary.attention_scaling)
        print("  logits", min(data["last_logits"]), max(data["last_logits"]), "margins", min(data["margins"]))


if __name__ == "__main__":
    main()
