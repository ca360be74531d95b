#!/usr/bin/env python3
"""Compares GGUF files that llminfer-quantize writes without calibration with those of llama.cpp's llama-quantize.

Usage: check_llama_cpp.py LLMINFER_QUANTIZE LLAMA_QUANTIZE F32.gguf TYPE…, where F32.gguf has all its matrices in F32.
Prints for each type how many tensors have the same type, and how many the same bytes; fails if a tensor has another type
or, where it is Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0, other bytes. Needs: pip install gguf==0.19.0
"""
import os
import subprocess
import sys
import tempfile

from gguf import GGUFReader

ROUNDED = {"F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}


def tensors_of(path):
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def main(ours, theirs, source, types):
    bad = 0
    for name in types:
        with tempfile.TemporaryDirectory() as folder:
            files = [os.path.join(folder, tool + ".gguf") for tool in ("llminfer", "llama")]
            subprocess.run([ours, source, files[0], "--type", name], check=True, stdout=subprocess.DEVNULL)
            subprocess.run([theirs, source, files[1], name], check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            mine, other = (tensors_of(file) for file in files)
            if set(mine) != set(other):
                sys.exit(f"{name}: other tensors: {sorted(set(mine) ^ set(other))}")
            types_equal = bytes_equal = 0
            kinds = {}
            for key, tensor in mine.items():
                kind = tensor.tensor_type.name
                same_type = tensor.tensor_type == other[key].tensor_type
                same = same_type and tensor.data.tobytes() == other[key].data.tobytes()
                types_equal += same_type
                bytes_equal += same
                equal, count = kinds.get(kind, (0, 0))
                kinds[kind] = equal + same, count + 1
                bad += not same_type or (kind in ROUNDED and not same)
            share = ", ".join(f"{kind} {equal} of {count}" for kind, (equal, count) in sorted(kinds.items()))
            print(f"{name}: {len(mine)} tensors, {types_equal} of the same type; the same bytes: {share}")
    sys.exit(1 if bad else 0)


main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
