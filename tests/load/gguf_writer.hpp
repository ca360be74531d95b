// Writes small GGUF files for tests, valid by default; every field can also be set to what no tool would write.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/file.hpp"
#include "load/gguf_file.hpp"

namespace llminfer::test {

template <class T>
std::string raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

inline std::string raw_string(const std::string& text) { return raw<std::uint64_t>(text.size()) + text; }

class GgufWriter {
 public:
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;  ///< of the data; general.alignment is written only by u32()
  std::int64_t extra_pairs = 0;  ///< added to the counts of the header, to make them lie
  std::int64_t extra_tensors = 0;

  /// A key with any type number and any bytes.
  GgufWriter& pair(const std::string& key, std::uint32_t type, const std::string& value) {
    pairs_ += raw_string(key) + raw(type) + value;
    ++pair_count_;
    return *this;
  }
  template <class T>
  GgufWriter& number(const std::string& key, load::GgufType type, T value) {
    return pair(key, static_cast<std::uint32_t>(type), raw(value));
  }
  GgufWriter& u32(const std::string& key, std::uint32_t v) { return number(key, load::GgufType::u32, v); }
  GgufWriter& f32(const std::string& key, float v) { return number(key, load::GgufType::f32, v); }
  GgufWriter& boolean(const std::string& key, bool v) {
    return number(key, load::GgufType::boolean, static_cast<std::uint8_t>(v));
  }
  GgufWriter& string(const std::string& key, const std::string& v) { return pair(key, 8, raw_string(v)); }
  GgufWriter& strings(const std::string& key, const std::vector<std::string>& values) {
    std::string bytes = raw<std::uint32_t>(8) + raw<std::uint64_t>(values.size());
    for (const std::string& value : values) bytes += raw_string(value);
    return pair(key, 9, bytes);
  }
  template <class T>
  GgufWriter& array(const std::string& key, load::GgufType element, const std::vector<T>& values) {
    std::string bytes = raw(static_cast<std::uint32_t>(element)) + raw<std::uint64_t>(values.size());
    for (const T& value : values) bytes += raw(value);
    return pair(key, 9, bytes);
  }

  /// A tensor record at any offset from the start of the data section; no data. Dimensions innermost first.
  GgufWriter& record(const std::string& name, const std::vector<std::uint64_t>& dimensions, std::uint32_t type,
                     std::uint64_t offset) {
    records_ += raw_string(name) + raw(static_cast<std::uint32_t>(dimensions.size()));
    for (const std::uint64_t size : dimensions) records_ += raw(size);
    records_ += raw(type) + raw(offset);
    ++tensor_count_;
    return *this;
  }
  /// A tensor after those before it.
  GgufWriter& tensor(const std::string& name, const std::vector<std::uint64_t>& dimensions, std::uint32_t type,
                     const std::string& bytes) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    record(name, dimensions, type, data_.size());
    data_ += bytes;
    return *this;
  }
  GgufWriter& f32_tensor(const std::string& name, const std::vector<std::uint64_t>& dimensions,
                         const std::vector<float>& values) {
    std::string bytes(values.size() * sizeof(float), '\0');
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return tensor(name, dimensions, 0, bytes);
  }

  std::string bytes() const {
    std::string file = magic + raw(version) + raw(tensor_count_ + static_cast<std::uint64_t>(extra_tensors)) +
                       raw(pair_count_ + static_cast<std::uint64_t>(extra_pairs)) + pairs_ + records_;
    if (tensor_count_ > 0) file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data_;
  }

 private:
  std::string pairs_, records_, data_;
  std::uint64_t pair_count_ = 0, tensor_count_ = 0;
};

/// The keys of a llama of width 4 with 1 layer, 2 heads and a vocabulary of 3.
inline GgufWriter tiny_keys(std::uint32_t version = 3) {
  GgufWriter file;
  file.version = version;
  file.string("general.architecture", "llama").u32("llama.block_count", 1).u32("llama.context_length", 16);
  file.u32("llama.embedding_length", 4).u32("llama.feed_forward_length", 8).u32("llama.attention.head_count", 2);
  file.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  file.string("tokenizer.ggml.model", "gpt2").strings("tokenizer.ggml.tokens", {"a", "b", "</s>"});
  return file.u32("tokenizer.ggml.eos_token_id", 2);
}

/// tiny_keys and two tensors: token_embd.weight [3, 4] = 0 … 11 and output_norm.weight [4] = 1.
inline GgufWriter tiny_file(std::uint32_t version = 3) {
  GgufWriter file = tiny_keys(version);
  file.f32_tensor("token_embd.weight", {4, 3}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  return file.f32_tensor("output_norm.weight", {4}, {1, 1, 1, 1});
}

/// A source over a copy of the bytes.
inline std::shared_ptr<const core::ByteSource> source_of(std::string bytes, std::string name = "test.gguf") {
  const auto keep = std::make_shared<const std::string>(std::move(bytes));
  return core::memory_source(std::move(name), std::as_bytes(std::span(*keep)), keep);
}

}  // namespace llminfer::test
