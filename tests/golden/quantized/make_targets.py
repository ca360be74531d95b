#!/usr/bin/env python3
"""Makes targets.json: compressed-tensors' own answers to which of config_groups a layer belongs to.

"matches": lists of targets, names of layers, and for each name the place in the list of the target that decides, as
match_targets gives it (null: none). "settings", "tensors", "values": layers with random weights, quantized and packed
by compressed-tensors with five groups of the same form, and the floats that it makes of them.
Needs: pip install torch==2.10.0 compressed-tensors==0.19.0 transformers
"""
import json
import os

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.utils.match import match_targets

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj", "model.layers.10.self_attn.q_proj",
         "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj",
         "model.layers.0.mlp.experts.12.up_proj", "model.layers.0.mlp.gate", "model.embed_tokens", "lm_head"]
LISTS = [
    ["Linear"], ["Embedding"], ["Module", "lm_head"], ["Module", "Linear"], ["linear"], [],
    ["Linear", "re:.*down_proj", "model.layers.1.mlp.down_proj"],
    ["re:model.layers.0", "re:.*q_proj$", "Linear"],
    ["re:.*q_proj$", "re:model[.]layers[.]0[.]"],
    ["re:layers", "re:self_attn"],
    ["q_proj", "model.layers.0", "re:.*mlp.gate$"],
    [r"re:model\.layers\.\d\.", r"re:.*layers\.\d{2}\."],
    [r"re:.*\.(gate|up)_proj$", r"re:^lm_head", r"re:(?!model).*"],
    [r"re:(?i)MODEL\.LAYERS\.0\.MLP\.(?P<which>gate|down)_proj"],
    ["re:", "Linear"], ["re:x*"], ["re:lm|model.embed"], [r"re:(?:.*experts)\.(?:\d+)\.(?=up)"],
]


def weights(bits, **more):
    return {"num_bits": bits, "type": "int", "dynamic": False} | more


SETTINGS = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "ignore": ["lm_head", r"re:.*\.1\.mlp\.up_proj$"],
    "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": weights(4, strategy="group", group_size=32, symmetric=True)},
        "group_1": {"targets": ["re:.*self_attn.*"],
                    "weights": weights(4, strategy="group", group_size=128, symmetric=True)},
        "group_2": {"targets": [r"re:.*self_attn\.o_proj", r"re:.*down_proj$"],
                    "weights": weights(4, strategy="group", group_size=32, symmetric=False)},
        "group_3": {"targets": ["layers.1.mlp.down_proj"], "weights": weights(4, strategy="channel", symmetric=True)},
        "group_4": {"targets": ["layers.0.mlp.up_proj", r"re:.*gate_proj"],
                    "weights": weights(8, strategy="group", group_size=64, symmetric=True)},
    },
}


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        linear = lambda: torch.nn.Linear(128, 8, bias=False)
        self.self_attn = torch.nn.ModuleDict({"q_proj": linear(), "o_proj": linear()})
        self.mlp = torch.nn.ModuleDict({"gate_proj": linear(), "up_proj": linear(), "down_proj": linear()})


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Block(), Block()])
        self.lm_head = torch.nn.Linear(128, 8, bias=False)


def matches():
    for targets in LISTS:
        found = []
        for name in NAMES:
            module = torch.nn.Embedding(1, 1) if name.endswith("embed_tokens") else torch.nn.Linear(1, 1)
            matched = match_targets(name, module, targets)
            found.append(targets.index(matched[0]) if matched else None)
        yield {"targets": targets, "found": found}


def set_scales(module):
    """The scales (and zero points) that reach the greatest weight of each group."""
    args = module.quantization_scheme.weights
    groups = module.weight.data.unflatten(1, (module.weight_scale.shape[1], -1))
    steps = 2 ** args.num_bits - 1
    if args.symmetric:
        module.weight_scale.data = groups.abs().amax(-1) * 2 / steps
        return
    low, high = groups.amin(-1), groups.amax(-1)
    module.weight_scale.data = (high - low) / steps
    zero = torch.round(-low / module.weight_scale.data) - 2 ** (args.num_bits - 1)
    module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)


def main():
    torch.manual_seed(3)
    model = Model()
    config = QuantizationConfig.model_validate(SETTINGS | {"quantization_status": "frozen"})
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            set_scales(module)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    tensors = {}
    for name, tensor in model.state_dict().items():
        kind = {torch.int32: "I32", torch.int64: "I64", torch.float32: "F32"}[tensor.dtype]
        tensors[name] = {"type": kind, "shape": list(tensor.shape),
                         "bytes": tensor.contiguous().numpy().tobytes().hex()}
    compressor.decompress_model(model)
    values = {name: [float(f"{x:.9g}") for x in tensor.flatten().tolist()]
              for name, tensor in model.state_dict().items() if name.endswith(".weight")}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "targets.json")
    with open(path, "w") as f:
        json.dump({"names": NAMES, "matches": list(matches()), "settings": SETTINGS, "tensors": tensors,
                   "values": values}, f, separators=(",", ":"))


main()
