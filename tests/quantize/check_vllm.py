#!/usr/bin/env python3
"""Has vLLM's classes of quantized layers read the settings and the tensors of directories that llminfer-quantize wrote.

Usage: check_vllm.py DIRECTORY…  (llama; GPTQ and AWQ, W4A16 and W8A8 of compressed-tensors)
vLLM makes each linear layer of the first and the last decoder layer from the settings, says which tensors it wants of
which shapes and types, and loads them. Nothing is computed: no GPU is needed, the platform only says that it is one.
g_idx, which GPTQModel writes, too, is left over. Needs: pip install torch==2.10.0 transformers==5.17.0
compressed-tensors==0.19.0; pip install --no-deps vllm==0.33.0, and what its imports then ask for.
"""
import json
import os
import sys

import torch
from safetensors import safe_open
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor import parameter
from vllm.model_executor.layers import linear
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.platforms import current_platform
from vllm.platforms.interface import DeviceCapability, PlatformEnum

METHODS = {method: get_quantization_config(method) for method in ("gptq", "awq", "compressed-tensors")}
platform = type(current_platform)  # after the imports, which would look for compiled kernels
platform._enum = PlatformEnum.CUDA
platform.is_cuda = platform.is_cuda_alike = lambda self: True
platform.get_device_capability = classmethod(lambda cls, device_id=0: DeviceCapability(9, 0))
platform.has_device_capability = classmethod(lambda cls, *args, **kwargs: True)
for module in (linear, parameter):
    module.get_tensor_model_parallel_rank, module.get_tensor_model_parallel_world_size = lambda: 0, lambda: 1


def check(directory):
    config = json.load(open(os.path.join(directory, "config.json")))
    settings, count = config["quantization_config"], 0
    quantization = METHODS[settings["quant_method"]].from_config(settings)
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    sides = {"self_attn.q_proj": (hidden, q), "self_attn.k_proj": (hidden, kv), "self_attn.v_proj": (hidden, kv),
             "self_attn.o_proj": (q, hidden), "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner),
             "mlp.down_proj": (inner, hidden)}
    with safe_open(os.path.join(directory, "model.safetensors"), "pt") as stored:
        for name in [f"model.layers.{i}.{side}" for i in (0, config["num_hidden_layers"] - 1) for side in sides]:
            columns, rows = sides[name.split(".", 3)[3]]
            layer = linear.ReplicatedLinear(columns, rows, bias=False, quant_config=quantization, prefix=name,
                                            params_dtype=torch.float16)
            wanted = dict(layer.named_parameters())
            found = {key[len(name) + 1:] for key in stored.keys() if key.startswith(name + ".")}
            quantized = type(layer.quant_method) is not linear.UnquantizedLinearMethod
            assert quantized and found - {"g_idx"} == set(wanted), (name, found)
            for key, parameter_ in wanted.items():
                tensor = stored.get_tensor(f"{name}.{key}")
                same = tensor.dtype == parameter_.dtype or tensor.is_floating_point()
                assert same and tensor.shape == parameter_.shape, (name, key, tensor.dtype, tensor.shape)
                parameter_.weight_loader(parameter_, tensor)
                count += 1
    return f"{type(getattr(layer, 'scheme', layer.quant_method)).__name__} takes {count} tensors"


with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu"))):
    for directory in sys.argv[1:]:
        print(f"{directory}: {check(directory)}", flush=True)
