"""Writes smollm2-merges.txt: the vocabulary of SmolLM2-Instruct, from which both GGUF arrays and tokenizer.json can be rebuilt.

usage: smollm2_vocabulary.py SmolLM2-135M-Instruct.gguf   (needs the gguf package)

Line 1: the control tokens, line 2: the characters of the alphabet, then a merge per line, all in the order of their ids.
"""
import pathlib
import sys

import gguf

reader = gguf.GGUFReader(sys.argv[1])
field = lambda name: reader.fields["tokenizer.ggml." + name].contents()
tokens, types, merges = field("tokens"), field("token_type"), field("merges")
control = [t for t, kind in zip(tokens, types) if kind == 3]
alphabet = [t for t in tokens[len(control):] if len(t) == 1]
rest, seen = [], set()
for merge in merges:
    text = merge.replace(" ", "", 1)
    rest.append(text)
assert tokens == control + alphabet + rest, "the ids do not follow from the merges"
out = pathlib.Path(__file__).with_name("smollm2-merges.txt")
out.write_text("\n".join([" ".join(control), " ".join(alphabet)] + merges) + "\n", encoding="utf-8")
