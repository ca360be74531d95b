"""Makes small tokenizers and the reference ids of hard texts: hf.json (Hugging Face tokenizers) and sentencepiece.json.

usage: references.py <tiny tokenizer.json>      (needs tokenizers 0.23 and sentencepiece 0.2)

The tiny vocabulary is dressed with other normalizers, pre-tokenizers, added tokens and decoders; only those parts are stored,
the vocabulary itself comes from the committed tiny model.
"""
import json
import pathlib
import sys
import tempfile

import sentencepiece
from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "", " ", "  ", "a", "Hello world", "  Hello   world  ", "It's we'll I'M HE'S don'T", "\n\n a\r\n\t b\n", "x = 12345 + 6.78e9",
    "1234567890", "naïve café résumé", "e\u0301e\u0323\u0307 \u1e69 s\u0323\u0307", "ﬁ ② Ａ ½ ㌀ ™", "日本語のテキスト。中文，测试！", "한국어 문장",
    "السلام عليكم ١٢٣", "हिन्दी में नमस्ते", "👨‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️", "\u200b\u200d\u00a0\u2003\u3000\u180e|", "İSTANBUL ẞ ΣΑΣ", "a\u0300\u0301\u0302" * 5,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "<s>hi</s> <tool> x<tool>y <pad>  z", "<mask> a <mask>b", "▁a ▁▁b", "_a_b__c", "http://a.b/c?d=e&f#g",
    "\U0010ffff\u0000\u0001\u007f\u0085", "if (x<y) {\n\treturn x+1; // ok\n}", "Ĳ ǆ ǅ Dž", "… — “q” ‘q’", "۱۲۳ 一二三 Ⅳ ⅷ ²³",
]
NO = None
BL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
def seq(*steps): return {"type": "Sequence", "pretokenizers": list(steps)}
def split(regex, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: regex}, "behavior": behavior, "invert": invert}
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
U, L = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?{U}*{L}+|[^\r\n\p{{L}}\p{{N}}]?{U}+{L}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
def added(id, content, **flags):
    return {"id": id, "content": content, **dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True), **flags}

# name: (normalizer, pre_tokenizer, extra added tokens)
BYTE_LEVEL = {
    "gpt2_prefix": (NO, {**BL, "add_prefix_space": True, "use_regex": True}, []),
    "llama3": (NO, seq(split(LLAMA3), BL), []),
    "llama3_nfc": ({"type": "NFC"}, seq(split(LLAMA3), BL), []),
    "o200k_nfkc": ({"type": "NFKC"}, seq(split(O200K), BL), []),
    "nfd_lower": ({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]}, BL, []),
    "nfkd_strip": ({"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "Strip", "strip_left": True, "strip_right": True}]}, BL, []),
    "replace": ({"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "_"},
                {"type": "Replace", "pattern": {"String": "a"}, "content": "bb"}, {"type": "Prepend", "prepend": "#"}]}, BL, []),
    "digits": (NO, seq({"type": "Digits", "individual_digits": True}, {**BL, "use_regex": True}), []),
    "digit_runs": (NO, seq({"type": "Digits", "individual_digits": False}, BL), []),
    "falcon": (NO, seq({"type": "Punctuation", "behavior": "Contiguous"}, {**BL, "use_regex": True},
               {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]")), []),
    "deepseek": (NO, seq(split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(r"\s+$"), split("[一-龥ࠀ-一가-퟿]+"), split(r"\p{N}+"), BL), []),
    "whitespace": (NO, seq({"type": "Whitespace"}, BL), []),
    "whitespace_split": (NO, seq({"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "Isolated"}, BL), []),
    "delimiter": (NO, seq({"type": "CharDelimiterSplit", "delimiter": "_"}, BL), []),
    **{"split_" + b.lower() + ("_inverted" if i else ""): (NO, seq(split("a| ", b, i), BL), [])
       for b in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] for i in [False, True]},
    "split_string": (NO, seq(split(".b", "Removed", False, "String"), BL), []),
    "added": (NO, {**BL, "use_regex": True}, [added(1024, "<tool>", special=False), added(1025, "<pad>", lstrip=True, rstrip=True),
              added(1026, "<mask>", single_word=True), added(1027, "  ", special=False), added(1028, "aaaa", special=False, normalized=True)]),
    "added_normalized": ({"type": "Lowercase"}, {**BL, "use_regex": True},
              [added(1024, "HELLO", special=False, normalized=True), added(1025, "It", special=True, normalized=False)]),
}


def run(tokenizer):
    rows = []
    for text in TEXTS:
        row = {"text": text, "ids": tokenizer.encode(text).ids}
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        if plain != row["ids"]:
            row["plain"] = plain
        row["decoded"] = tokenizer.decode(row["ids"], skip_special_tokens=False)
        rows.append(row)
    return rows


def spm_to_json(processor, normalizer, pre_tokenizer, strip):
    """The Llama-2 way to write a SentencePiece BPE model as tokenizer.json."""
    vocab = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    merges = []
    for piece, rank in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab and not processor.is_byte(rank):
                merges.append((rank, vocab[left], vocab[right], left, right))
    merges = [[left, right] for _, _, _, left, right in sorted(merges)]
    steps = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if strip:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": {"type": "TemplateProcessing", "single": template,
                               "pair": template + [{"Sequence": {"id": "B", "type_id": 1}}],
                               "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": steps},
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab, "merges": merges}}


def main():
    base = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = []
    for name, (normalizer, pre_tokenizer, extra) in BYTE_LEVEL.items():
        dress = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "added_tokens": base["added_tokens"] + extra}
        cases = run(Tokenizer.from_str(json.dumps({**base, **dress})))
        if name == "added_normalized":  # the reference decodes such tokens to their normalized form
            for case in cases:
                del case["decoded"]
        out.append({"name": name, "dress": dress, "cases": cases})
    (HERE / "hf.json").write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n", encoding="utf-8")

    corpus = [t for t in TEXTS if t.strip() and "\u0000" not in t] * 3 + [
        "the quick brown fox jumps over the lazy dog and then some more words are here to learn the merges of the language"] * 20
    with tempfile.TemporaryDirectory() as folder:
        text = pathlib.Path(folder, "corpus.txt")
        text.write_text("\n".join(c.replace("\n", " ") for c in corpus), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=folder + "/m", model_type="bpe", vocab_size=480, byte_fallback=True, character_coverage=0.98,
            normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, minloglevel=2,
            user_defined_symbols=["<tool>"], num_threads=1)
        sp = sentencepiece.SentencePieceProcessor(model_file=folder + "/m.model")
    kinds = []
    for i in range(sp.vocab_size()):
        kinds.append(2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 4 if sp.id_to_piece(i) == "<tool>" else 1)
    result = {"tokens": [sp.id_to_piece(i) for i in range(sp.vocab_size())], "types": kinds,
              "scores": [round(sp.get_score(i), 6) for i in range(sp.vocab_size())], "cases": [], "json": []}
    for text in TEXTS:
        if "\u0000" in text or "<tool>" in text:  # the trained library cuts texts at NUL and glues user symbols its own way
            continue
        ids = sp.encode(text)
        result["cases"].append({"text": text, "ids": ids, "decoded": sp.decode(ids)})
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    dresses = {
        "llama2": ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}, None, True),
        "gemma": (replace, None, False),
        "mistral": (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}, True),
        "metaspace": (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}, True),
    }
    for name, dress in dresses.items():
        data = spm_to_json(sp, *dress)
        result["json"].append({"name": name, "tokenizer": data, "cases": run(Tokenizer.from_str(json.dumps(data)))})
    shared = result["json"][0]["tokenizer"]["model"]
    result["model"] = shared
    for item in result["json"]:
        item["tokenizer"]["model"] = None  # the same for all: "model"
    (HERE / "sentencepiece.json").write_text(json.dumps(result, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


main()
