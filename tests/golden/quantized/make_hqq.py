#!/usr/bin/env python3
"""Makes FOLDER/tiny-hqq-dynamic of FOLDER/tiny-f32: HQQ as transformers writes it, each kind of layer in another form.

Usage: make_hqq.py FOLDER; then make.py. Needs: pip install torch transformers==4.57.3 accelerate hqq==0.2.8.post1
"""
import os
import sys

import torch
from transformers import AutoModelForCausalLM, HqqConfig

folder = sys.argv[1]
forms = {
    "self_attn.q_proj": {"nbits": 4, "group_size": 64, "axis": 1},
    "self_attn.k_proj": {"nbits": 3, "group_size": 64, "axis": 1},
    "self_attn.v_proj": {"nbits": 8, "group_size": 128, "axis": 1},
    "self_attn.o_proj": {"nbits": 4, "group_size": 64, "axis": 0},
    "mlp.gate_proj": {"nbits": 2, "group_size": 64, "axis": 1},
    "mlp.up_proj": {"nbits": 2, "group_size": 48, "axis": 1},
    "mlp.down_proj": {"nbits": 3, "group_size": 64, "axis": 1},
}
model = AutoModelForCausalLM.from_pretrained(os.path.join(folder, "tiny-f32"), dtype=torch.float16, device_map="cpu",
                                             quantization_config=HqqConfig(dynamic_config=forms))
model.save_pretrained(os.path.join(folder, "tiny-hqq-dynamic"))
