#!/usr/bin/env python3
"""Other tools read what llminfer-quantize writes of the default model, and compute what llminfer computes with it.

Usage: readers_test.py LLMINFER_QUANTIZE LLMINFER_PERPLEXITY, by a Python that has the tools (find_readers of
scripts/lib.sh). The default model is named by LLMINFER_TEST_MODEL.

Each file or directory is read by its tool, with its tokenizer, and predicts a text: the mean KL divergence from what
llminfer predicts with the same file is below a bound. Of directories all weights, too, are those of the dense directory
that llminfer writes of what it reads, but for the halves of GPTQModel.
"""
import json
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file

import reference_perplexity

TEXT = os.path.join(os.path.dirname(__file__), "..", "..", "LICENSE")
CALIBRATED = ["-c", TEXT, "--sequences", "4", "--length", "64"]
GPTQ = ["-f", "gptq", "-g", "64"]
PACKED = ["-f", "compressed-tensors"]

# What is written, how, the tool that reads it, and bounds: of a weight's difference, as a share of its tensor's
# largest, and of the mean KL divergence. GPTQModel has weights in halves. Rounding of inputs to 8 bits, in W8A8 and in
# llama.cpp's quantized layers, turns on the last bits of what is rounded: transformers in floats and in doubles differ
# by 0.05.
DIRECTORIES = [
    ("gptq", [*GPTQ, "-m", "gptq", "--activation-order", *CALIBRATED], "gptqmodel", 1e-3, 1e-4),
    ("gptq-3-bits", [*GPTQ, "-b", "3"], "gptqmodel", 1e-3, 1e-4),
    ("awq", ["-f", "awq", "-g", "64"], "gptqmodel", 1e-3, 1e-4),
    ("w4a16", [*PACKED, "-g", "64"], "transformers", 1e-6, 1e-6),
    ("w8a8", [*PACKED, "-b", "8", "--int8-inputs"], "transformers", 1e-6, 0.1),
]
FILES = [("F16", 1e-4), ("Q4_0", 0.05), ("Q8_0", 0.05), ("Q4_K_M", 0.05), ("Q6_K", 0.05)]


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def worst_difference(model, dense):
    """Of all that llminfer reads."""
    weights = model.state_dict()
    return max(float((weights[name].float() - ours).abs().max() / ours.abs().max())
               for name, ours in load_file(os.path.join(dense, "model.safetensors")).items())


class Test:
    def __init__(self, quantize, perplexity, folder):
        self.quantize, self.perplexity, self.folder = quantize, perplexity, folder
        self.failed = False

    def path(self, name):
        return os.path.join(self.folder, name)

    def divergence(self, path, model, ctx, *options):
        reference = self.path("reference")
        reference_perplexity.measure(model, TEXT, ctx, 1, reference)
        said = run(self.perplexity, "-m", path, "-f", TEXT, "--ctx", str(ctx), "--chunks", "1", "--reference",
                   reference, "--json", *options)
        return json.loads(said)["kl_mean"]

    def report(self, name, **figures):
        """Pairs of a figure and its bound."""
        good = all(figure < bound for figure, bound in figures.values())  # not where one is NaN
        self.failed = self.failed or not good
        said = ", ".join(f"{what} {figure:.1e} (below {bound:.0e})" for what, (figure, bound) in figures.items())
        print(f"{name}: {said}{'' if good else '  FAILED'}", flush=True)

    def directory(self, source, name, options, tool, weights_bound, divergence_bound):
        path, dense = self.path(name), self.path(name + "-dense")
        run(self.quantize, source, path, *options)
        run(self.quantize, path, dense, "-f", "dense", "--type", "F32")
        model = reference_perplexity.load(path, tool)
        divergence = self.divergence(path, model, 128, "--exact")
        self.report(f"{name}, {tool}", weights=(worst_difference(model.model, dense), weights_bound),
                    divergence=(divergence, divergence_bound))

    def file(self, source, kind, bound):
        path = self.path(f"{kind}.gguf")
        run(self.quantize, source, path, "--type", kind)
        model = reference_perplexity.load(path, "llama.cpp")
        self.report(f"{kind}, llama.cpp", divergence=(self.divergence(path, model, 24), bound))


def main(quantize, perplexity):
    source = os.environ["LLMINFER_TEST_MODEL"]
    with tempfile.TemporaryDirectory() as folder:
        test = Test(quantize, perplexity, folder)
        for directory in DIRECTORIES:
            test.directory(source, *directory)
        for file in FILES:
            test.file(source, *file)
    return 1 if test.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
