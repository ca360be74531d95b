// Opening GGUF checkpoints: metadata to configuration, sources of all kinds, split sets, and files that are none.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <catch2/catch.hpp>

#include "load/checkpoint.hpp"
#include "load/gguf.hpp"
#include "tests/load/gguf_writer.hpp"
#include "tests/load/temp_dir.hpp"

using namespace llminfer;
using namespace llminfer::test;
using load::GgufType;
using load::RopeScaling;

namespace {

load::Checkpoint opened(const GgufWriter& file) { return load::open_gguf(source_of(file.bytes())).value(); }

ErrorCode refused(const Result<load::Checkpoint>& checkpoint, const std::string& part) {
  REQUIRE_FALSE(checkpoint.has_value());
  INFO(checkpoint.error().message);
  CHECK(checkpoint.error().message.find(part) != std::string::npos);
  return checkpoint.error().code;
}

ErrorCode refused(const GgufWriter& file, const std::string& part) {
  return refused(load::open_gguf(source_of(file.bytes())), part);
}

std::vector<float> row(const load::Checkpoint& checkpoint, const std::string& name, std::int64_t index) {
  const auto* tensor = checkpoint.find(name);
  REQUIRE(tensor);
  std::vector<float> out(static_cast<std::size_t>(tensor->cols));
  unpack_rows(checkpoint.read(*tensor).value(), index, 1, out).value();
  return out;
}

}  // namespace

TEST_CASE("the metadata of a small model") {
  GgufWriter file = tiny_file();
  file.string("general.name", "Tiny")
      .string("tokenizer.chat_template", "{{ messages }}")
      .u32("tokenizer.ggml.eot_token_id", 1);
  file.string("tokenizer.ggml.pre", "smollm").strings("tokenizer.ggml.merges", {"a b"});
  file.array<float>("tokenizer.ggml.scores", GgufType::f32, {0, -1, -2});
  file.array<std::int32_t>("tokenizer.ggml.token_type", GgufType::i32, {1, 1, 3});
  file.boolean("tokenizer.ggml.add_bos_token", true).f32("general.sampling.temp", 0.5f);
  const auto checkpoint = opened(file);
  const auto& config = checkpoint.config;
  CHECK(config.architecture == "llama");
  CHECK(config.name == "Tiny");
  CHECK_FALSE(config.hf_names);
  CHECK(config.layers == 1);
  CHECK(config.context_length == 16);
  CHECK(config.hidden_size == 4);
  CHECK(config.ffn_size == 8);
  CHECK(config.heads == 2);
  CHECK(config.kv_heads == 2);
  CHECK(config.head_dim == 2);
  CHECK(config.rotary_dim == 2);
  CHECK(config.vocab_size == 3);
  CHECK(config.rope_base == 10000.0);
  CHECK(config.rope_scaling.kind == RopeScaling::Kind::none);
  CHECK(config.norm_epsilon == double{1e-5f});
  CHECK(config.sliding_window == 0);
  CHECK(config.tied_embeddings);
  CHECK(checkpoint.chat_template == "{{ messages }}");
  CHECK(checkpoint.generation.eos_tokens == std::vector<std::int32_t>{2, 1});
  CHECK(checkpoint.generation.temperature == 0.5f);
  const auto& vocabulary = checkpoint.vocabulary;
  CHECK(vocabulary.model == "gpt2");
  CHECK(vocabulary.pre == "smollm");
  CHECK(vocabulary.tokens == std::vector<std::string>{"a", "b", "</s>"});
  CHECK(vocabulary.merges == std::vector<std::string>{"a b"});
  CHECK(vocabulary.scores == std::vector<float>{0, -1, -2});
  CHECK(vocabulary.types == std::vector<std::int32_t>{1, 1, 3});
  CHECK(vocabulary.add_bos == true);
  CHECK_FALSE(vocabulary.add_eos.has_value());
  CHECK(vocabulary.eos == 2);
  CHECK_FALSE(vocabulary.bos.has_value());
  CHECK(row(checkpoint, "token_embd.weight", 2) == std::vector<float>{8, 9, 10, 11});
}

TEST_CASE("stacks of experts are single matrices") {
  const auto file_of = [](std::uint32_t experts, std::uint32_t used) {
    return tiny_file().u32("llama.expert_count", experts).u32("llama.expert_used_count", used);
  };
  std::vector<float> values(3 * 2 * 4);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  GgufWriter file = file_of(3, 2);
  file.f32_tensor("blk.0.ffn_up_exps.weight", {4, 2, 3}, values);
  const auto checkpoint = opened(file);
  CHECK(checkpoint.config.experts == 3);
  CHECK(checkpoint.config.experts_used == 2);
  CHECK(checkpoint.config.expert_ffn_size == 8);  // as the feed-forward length
  CHECK_FALSE(checkpoint.find("blk.0.ffn_up_exps.weight"));
  CHECK(checkpoint.tensors.size() == 5);
  const load::TensorInfo* last = checkpoint.find("blk.0.ffn_up.2.weight");
  REQUIRE(last);
  CHECK(last->shape == std::vector<std::int64_t>{2, 4});
  CHECK(last->rows == 2);
  CHECK(last->cols == 4);
  CHECK(row(checkpoint, "blk.0.ffn_up.0.weight", 0) == std::vector<float>{0, 1, 2, 3});
  CHECK(row(checkpoint, "blk.0.ffn_up.1.weight", 1) == std::vector<float>{12, 13, 14, 15});
  CHECK(row(checkpoint, "blk.0.ffn_up.2.weight", 0) == std::vector<float>{16, 17, 18, 19});
  SECTION("biases") {
    file.f32_tensor("blk.0.ffn_up_exps.bias", {2, 3}, {0, 1, 2, 3, 4, 5});
    const auto biases = opened(file);
    CHECK(row(biases, "blk.0.ffn_up.1.bias", 0) == std::vector<float>{2, 3});
    CHECK(biases.find("blk.0.ffn_up.2.bias")->shape == std::vector<std::int64_t>{2});
    CHECK(refused(file_of(3, 2).f32_tensor("blk.0.ffn_up_exps.bias", {6}, std::vector<float>(6)), "ffn_up_exps.bias") ==
          ErrorCode::shape_mismatch);
  }
  SECTION("another number of experts") {
    CHECK(refused(file_of(4, 2).f32_tensor("blk.0.ffn_up_exps.weight", {4, 2, 3}, values), "ffn_up_exps") ==
          ErrorCode::shape_mismatch);
    CHECK(refused(file_of(3, 2).f32_tensor("blk.0.ffn_up_exps.weight", {4, 6}, values), "ffn_up_exps") ==
          ErrorCode::shape_mismatch);
  }
  SECTION("an expert that is there twice") {
    file.f32_tensor("blk.0.ffn_up.1.weight", {4, 2}, std::vector<float>(8));
    CHECK(refused(file, "blk.0.ffn_up.1.weight") == ErrorCode::corrupt);
  }
  SECTION("counts that make no sense") {
    CHECK(refused(file_of(3, 4), "llama.expert_used_count") == ErrorCode::corrupt);
    CHECK(refused(file_of(3, 0), "llama.expert_used_count") == ErrorCode::corrupt);
    CHECK(refused(tiny_file().u32("llama.expert_count", 3), "llama.expert_used_count") == ErrorCode::corrupt);
    CHECK(refused(file_of(0xffffffff, 2), "llama.expert_count") == ErrorCode::corrupt);
    CHECK(refused(file_of(3, 2).u32("llama.expert_feed_forward_length", 0), "expert_feed_forward_length") ==
          ErrorCode::corrupt);
  }
}

TEST_CASE("heads, window, rope and output") {
  GgufWriter file = tiny_file();
  file.u32("llama.attention.key_length", 8)
      .u32("llama.rope.dimension_count", 4)
      .u32("llama.attention.sliding_window", 7);
  file.array<std::uint32_t>("llama.attention.head_count_kv", GgufType::u32, {1});
  file.array<std::uint8_t>("llama.attention.sliding_window_pattern", GgufType::boolean, {1});
  file.f32("llama.rope.freq_base", 5e5f).string("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4);
  file.u32("llama.rope.scaling.original_context_length", 8).f32("llama.rope.scaling.attn_factor", 2);
  file.f32_tensor("output.weight", {4, 3}, std::vector<float>(12)).f32_tensor("rope_freqs.weight", {2}, {1, 8});
  const auto config = opened(file).config;
  CHECK(config.kv_heads == 1);
  CHECK(config.head_dim == 8);
  CHECK(config.rotary_dim == 4);
  CHECK(config.sliding_window == 7);
  CHECK(config.sliding_layers == std::vector<std::uint8_t>{1});
  CHECK(config.rope_base == 5e5);
  CHECK(config.rope_scaling.kind == RopeScaling::Kind::yarn);
  CHECK(config.rope_scaling.factor == 4);
  CHECK(config.rope_scaling.original_context == 8);
  CHECK(config.rope_scaling.attention_factor == Approx(2 * (0.1 * std::log(4.0) + 1)));
  CHECK(config.rope_scaling.factors == std::vector<float>{1, 8});
  CHECK_FALSE(config.tied_embeddings);

  const auto factors = opened(tiny_file().f32_tensor("rope_freqs.weight", {1}, {8})).config.rope_scaling;
  CHECK(factors.kind == RopeScaling::Kind::factors);
  CHECK(opened(tiny_file().f32("llama.rope.scale_linear", 2)).config.rope_scaling.kind == RopeScaling::Kind::linear);
}

TEST_CASE("metadata that is missing or makes no sense") {
  CHECK(refused(GgufWriter(), "general.architecture") == ErrorCode::corrupt);
  const std::vector<std::string> keys = {"block_count", "context_length", "embedding_length", "feed_forward_length",
                                         "attention.head_count"};
  for (const std::string& missing : keys) {
    GgufWriter file;
    file.string("general.architecture", "llama").f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    file.u32("llama.attention.key_length", 2);
    for (const std::string& key : keys) {
      if (key != missing) file.u32("llama." + key, 2);
    }
    CHECK(refused(file, "'llama." + missing + "' is missing") == ErrorCode::corrupt);
    CHECK(refused(GgufWriter(file).u32("llama." + missing, 0), "llama." + missing) == ErrorCode::corrupt);
    CHECK(refused(GgufWriter(file).string("llama." + missing, "2"), "llama." + missing) == ErrorCode::corrupt);
    CHECK(refused(GgufWriter(file).number<std::uint64_t>("llama." + missing, GgufType::u64, 1ull << 63),
                  "llama." + missing) == ErrorCode::corrupt);
    CHECK(load::open_gguf(source_of(GgufWriter(file).u32("llama." + missing, 2).bytes())));
  }
  const auto with = [](const std::string& key, std::uint32_t value) { return tiny_file().u32("llama." + key, value); };
  CHECK(refused(with("attention.head_count_kv", 3), "head_count_kv") == ErrorCode::corrupt);
  CHECK(refused(with("attention.head_count_kv", 0), "head_count_kv") == ErrorCode::corrupt);
  CHECK(refused(with("rope.dimension_count", 6), "rope.dimension_count") == ErrorCode::corrupt);
  CHECK(refused(with("attention.sliding_window", 0xffffffff), "sliding_window") == ErrorCode::corrupt);
  CHECK(refused(tiny_file().f32("llama.rope.freq_base", -1), "freq_base") == ErrorCode::corrupt);
  CHECK(refused(tiny_file().f32("llama.rope.freq_base", std::numeric_limits<float>::quiet_NaN()), "freq_base") ==
        ErrorCode::corrupt);
  CHECK(refused(tiny_file().string("llama.rope.scaling.type", "odd"), "'odd'") == ErrorCode::unsupported);
  CHECK(refused(tiny_file().array<std::uint32_t>("llama.attention.head_count_kv", GgufType::u32, {1, 2}),
                "per layer") == ErrorCode::unsupported);
  CHECK(refused(tiny_file().array<std::uint8_t>("llama.attention.sliding_window_pattern", GgufType::boolean, {1, 0}),
                "sliding_window_pattern") == ErrorCode::corrupt);
  CHECK(refused(tiny_file().f32_tensor("rope_freqs.weight", {2}, {1, 1}), "rope_freqs.weight") ==
        ErrorCode::shape_mismatch);
  CHECK(refused(tiny_file().f32_tensor("rope_freqs.weight", {1}, {0}), "rope_freqs.weight") == ErrorCode::corrupt);
}

TEST_CASE("vocabularies that contradict themselves") {
  CHECK(refused(tiny_file().array<float>("tokenizer.ggml.scores", GgufType::f32, {0, 1}), "scores") ==
        ErrorCode::bad_vocabulary);
  CHECK(refused(tiny_file().array<std::int32_t>("tokenizer.ggml.token_type", GgufType::i32, {1}), "token_type") ==
        ErrorCode::bad_vocabulary);
  CHECK(refused(tiny_file().u32("tokenizer.ggml.eot_token_id", 3), "eot_token_id") == ErrorCode::bad_vocabulary);
  CHECK(refused(tiny_file().string("tokenizer.ggml.pre", "x").u32("tokenizer.ggml.merges", 1), "merges") ==
        ErrorCode::corrupt);
  GgufWriter few_rows = tiny_keys();
  few_rows.f32_tensor("token_embd.weight", {4, 2}, std::vector<float>(8));
  CHECK(refused(few_rows, "token_embd.weight") == ErrorCode::bad_vocabulary);
  CHECK(opened(tiny_keys()).config.vocab_size == 3);
}

TEST_CASE("files, mapped and not, and readers of the host") {
  const TempDir dir;
  const std::string bytes = tiny_file().bytes();
  dir.write("m\xc3\xb6\x64\x65l \xe6\xa8\xa1.gguf", bytes);  // not ASCII
  for (const bool use_mmap : {true, false}) {
    const auto checkpoint = load::open_checkpoint(dir / "m\xc3\xb6\x64\x65l \xe6\xa8\xa1.gguf", use_mmap).value();
    CHECK(checkpoint.sources[0]->resident() == use_mmap);
    CHECK(row(checkpoint, "token_embd.weight", 1) == std::vector<float>{4, 5, 6, 7});
  }
  // A reader that copies one byte at a time, and never past what it was asked for.
  std::uint64_t largest = 0;
  const auto reader = core::reader_source("reader", bytes.size(), [&](std::uint64_t offset, std::span<std::byte> out) {
    largest = std::max<std::uint64_t>(largest, out.size());
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(bytes.at(offset + i));
    return true;
  });
  CHECK(row(load::open_gguf(reader).value(), "token_embd.weight", 0) == std::vector<float>{0, 1, 2, 3});
  CHECK(largest <= bytes.size());

  const auto failing =
      core::reader_source("reader", bytes.size(), [](std::uint64_t, std::span<std::byte>) { return false; });
  CHECK(refused(load::open_gguf(failing), "reader") == ErrorCode::io_error);
  const auto throwing =
      core::reader_source("reader", bytes.size(), [](std::uint64_t, std::span<std::byte>) -> bool { throw 1; });
  CHECK(refused(load::open_gguf(throwing), "reader") == ErrorCode::callback_failed);
}

TEST_CASE("a reader that claims to be huge is read in pieces") {
  GgufWriter file;  // one string of a billion bytes
  file.pair("k", 8, raw<std::uint64_t>(1'000'000'000));
  const std::string start = file.bytes();
  std::uint64_t largest = 0, reads = 0;
  const auto reader =
      core::reader_source("huge", std::uint64_t{1} << 60, [&](std::uint64_t offset, std::span<std::byte> out) {
        largest = std::max<std::uint64_t>(largest, out.size());
        for (std::size_t i = 0; i < out.size(); ++i) {
          out[i] = offset + i < start.size() ? static_cast<std::byte>(start[offset + i]) : std::byte{0};
        }
        return ++reads < 8;
      });
  CHECK(refused(load::open_gguf(reader), "huge") == ErrorCode::io_error);
  CHECK(largest <= (1u << 20));
}

TEST_CASE("paths that are no model") {
  const TempDir dir;
  dir.write("empty.gguf", "");
  dir.write("text.gguf", "hello, this is no model");
  for (const bool use_mmap : {true, false}) {
    CHECK(refused(load::open_checkpoint(dir / "empty.gguf", use_mmap), "empty.gguf") == ErrorCode::truncated);
    CHECK(refused(load::open_checkpoint(dir / "text.gguf", use_mmap), "text.gguf") == ErrorCode::bad_magic);
    CHECK(refused(load::open_checkpoint(dir / "absent.gguf", use_mmap), "absent.gguf") == ErrorCode::not_found);
    CHECK(refused(load::open_gguf_file(dir.path(), use_mmap), dir.path()) == ErrorCode::not_a_file);
    CHECK(refused(load::open_gguf_file("/dev/null", use_mmap), "/dev/null") == ErrorCode::not_a_file);
  }
}

TEST_CASE("a file without permission") {
  const TempDir dir;
  dir.write("secret.gguf", tiny_file().bytes());
  REQUIRE(::chmod((dir / "secret.gguf").c_str(), 0) == 0);
  const bool root = ::geteuid() == 0;  // root may read everything, so the test steps down for the call
  if (root) REQUIRE(::seteuid(65534) == 0);
  const auto checkpoint = load::open_gguf_file(dir / "secret.gguf", true);
  if (root) REQUIRE(::seteuid(0) == 0);
  CHECK(refused(checkpoint, "secret.gguf") == ErrorCode::permission_denied);
}

TEST_CASE("split sets") {
  const auto part = [](GgufWriter file, std::uint16_t number, std::uint16_t count, std::int32_t tensors) {
    file.number("split.no", GgufType::u16, number).number("split.count", GgufType::u16, count);
    return file.number("split.tensors.count", GgufType::i32, tensors);
  };
  const TempDir dir;
  GgufWriter second = part(GgufWriter(), 1, 3, 3);
  second.f32_tensor("token_embd.weight", {4, 3}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  GgufWriter third = part(GgufWriter(), 2, 3, 3);
  third.f32_tensor("output_norm.weight", {4}, {1, 1, 1, 1})
      .f32_tensor("output.weight", {4, 3}, std::vector<float>(12, 2));
  const auto write = [&](int n, const GgufWriter& file) {
    dir.write("m-0000" + std::to_string(n) + "-of-00003.gguf", file.bytes());
  };
  const auto open = [&] { return load::open_checkpoint(dir / "m-00001-of-00003.gguf", true); };
  write(1, part(tiny_keys(), 0, 3, 3));
  write(2, second);
  CHECK(refused(open(), "m-00003-of-00003.gguf") == ErrorCode::not_found);
  write(3, third);
  for (const bool use_mmap : {true, false}) {
    const auto whole = load::open_checkpoint(dir / "m-00001-of-00003.gguf", use_mmap).value();
    CHECK(whole.sources.size() == 3);
    CHECK(whole.tensors.size() == 3);
    CHECK_FALSE(whole.config.tied_embeddings);
    CHECK(row(whole, "token_embd.weight", 1) == std::vector<float>{4, 5, 6, 7});
    CHECK(row(whole, "output.weight", 2) == std::vector<float>{2, 2, 2, 2});
  }

  CHECK(refused(load::open_checkpoint(dir / "m-00002-of-00003.gguf", true), "first part") ==
        ErrorCode::invalid_argument);
  dir.write("renamed.gguf", part(tiny_keys(), 0, 3, 3).bytes());
  CHECK(refused(load::open_checkpoint(dir / "renamed.gguf", true), "-00001-of-00003.gguf") ==
        ErrorCode::invalid_argument);
  CHECK(refused(part(tiny_keys(), 0, 3, 3), "split set") == ErrorCode::unsupported);
  CHECK(refused(part(tiny_keys(), 3, 3, 3), "split.no") == ErrorCode::corrupt);

  write(2, third);
  CHECK(refused(open(), "m-00002-of-00003.gguf: says that it is part 3 of 3") == ErrorCode::corrupt);
  write(2, GgufWriter(second).f32_tensor("output.weight", {1}, {1}));
  CHECK(refused(open(), "'output.weight' is also in another part") == ErrorCode::corrupt);
  write(2, GgufWriter(second).f32_tensor("more", {1}, {1}));
  CHECK(refused(open(), "split.tensors.count") == ErrorCode::corrupt);
  dir.write("m-00002-of-00003.gguf", second.bytes().substr(0, 40));
  CHECK(refused(open(), "m-00002-of-00003.gguf") == ErrorCode::truncated);
}
