#include "quantize/gguf_output.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "core/checked.hpp"
#include "quant/format.hpp"

namespace llminfer::quantize {
namespace {

using load::GgufNumbers;
using load::GgufType;
using load::GgufValue;

constexpr std::uint64_t kAlignment = 32;

constexpr GgufKind kKinds[] = {
    {"F32", WeightType::f32, 0},          {"F16", WeightType::f16, 1},      {"BF16", WeightType::bf16, 32},
    {"Q8_0", WeightType::q8_0, 7},        {"Q4_0", WeightType::q4_0, 2},    {"Q4_1", WeightType::q4_1, 3},
    {"Q5_0", WeightType::q5_0, 8},        {"Q5_1", WeightType::q5_1, 9},    {"Q2_K", WeightType::q2_k, 10},
    {"Q3_K_S", WeightType::q3_k, 11},     {"Q3_K_M", WeightType::q3_k, 12}, {"Q3_K_L", WeightType::q3_k, 13},
    {"Q4_K_S", WeightType::q4_k, 14},     {"Q4_K_M", WeightType::q4_k, 15}, {"Q5_K_S", WeightType::q5_k, 16},
    {"Q5_K_M", WeightType::q5_k, 17},     {"Q6_K", WeightType::q6_k, 18},   {"IQ4_NL", WeightType::iq4_nl, 25},
    {"MXFP4_MOE", WeightType::mxfp4, 38},
};

/// What a tensor of a layer is ("ffn_down"), and of which.
struct Place {
  std::string_view part;
  std::int64_t layer = -1;
};

Place place_of(std::string_view name) {
  constexpr std::string_view kLayers = "blk.", kEnd = ".weight";
  Place place;
  if (name.starts_with(kLayers)) {
    const std::size_t dot = name.find('.', kLayers.size());
    if (dot == std::string_view::npos) return place;
    place.layer = std::atoll(std::string(name.substr(kLayers.size(), dot - kLayers.size())).c_str());
    name.remove_prefix(dot + 1);
  }
  if (name.ends_with(kEnd)) place.part = name.substr(0, name.size() - kEnd.size());
  return place;
}

/// For rows that are no whole number of blocks.
WeightType with_smaller_blocks(WeightType type, std::int64_t cols) {
  const auto fits = [&](WeightType t) { return cols % quant::format(t).block_values == 0; };
  if (fits(type)) return type;
  switch (type) {
    case WeightType::q2_k:
    case WeightType::q3_k:
      type = WeightType::q4_0;
      break;
    case WeightType::q4_k:
      type = WeightType::q5_0;
      break;
    case WeightType::q5_k:
      type = WeightType::q5_1;
      break;
    case WeightType::q6_k:
      type = WeightType::q8_0;
      break;
    default:
      break;
  }
  return fits(type) ? type : WeightType::f16;
}

class HeaderBytes {
 public:
  std::string bytes;

  template <class T>
  void number(T value) {
    append(&value, sizeof value);
  }
  void string(std::string_view text) {
    number<std::uint64_t>(text.size());
    append(text.data(), text.size());
  }
  void append(const void* data, std::size_t count) { bytes.append(static_cast<const char*>(data), count); }
  void value(const GgufValue& value) {
    number(static_cast<std::uint32_t>(value.type));
    std::visit([&](const auto& v) { put(value.type, v); }, value.value);
  }

 private:
  void put(GgufType, const std::string& text) { string(text); }
  void put(GgufType, bool flag) { number(static_cast<std::uint8_t>(flag)); }
  void put(GgufType, const GgufNumbers& numbers) {
    number(static_cast<std::uint32_t>(numbers.element));
    number<std::uint64_t>(numbers.bytes.size() / load::gguf_type_bytes(numbers.element));
    append(numbers.bytes.data(), numbers.bytes.size());
  }
  void put(GgufType, const std::vector<std::string>& strings) {
    number(static_cast<std::uint32_t>(GgufType::string));
    number<std::uint64_t>(strings.size());
    for (const std::string& text : strings) string(text);
  }
  void put(GgufType type, double value) { type == GgufType::f32 ? number(static_cast<float>(value)) : number(value); }
  template <class T>
  requires std::is_integral_v<T>
  void put(GgufType type, T value) { append(&value, load::gguf_type_bytes(type)); }  // little-endian
};

}  // namespace

const GgufKind* find_gguf_kind(std::string_view name) noexcept {
  const auto upper = [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; };
  for (const GgufKind& kind : kKinds) {
    if (std::equal(name.begin(), name.end(), kind.name.begin(), kind.name.end(),
                   [&](char a, char b) { return upper(a) == b; })) {
      return &kind;
    }
  }
  return nullptr;
}

WeightType gguf_type(const GgufKind& kind, const load::TensorInfo& tensor, const load::ModelConfig& config,
                     bool importance) {
  const bool is_float = quant::format(kind.type).block_values == 1;
  const Place place = place_of(tensor.name);
  if (tensor.shape.size() < 2 || tensor.rows == 1 || place.part.empty()) return WeightType::f32;
  if (place.part == "ffn_gate_inp") return WeightType::f32;  // a mixture's router
  if (is_float) return kind.type;
  WeightType type = kind.type;
  if (type == WeightType::mxfp4) {  // the experts' alone
    return with_smaller_blocks(tensor.shape.size() == 3 ? type : WeightType::q8_0, tensor.cols);
  }
  const std::string_view name = kind.name, part = place.part;
  const std::int64_t i = place.layer, n = config.layers;
  const bool eight = config.experts == 8;  // Mixtral, whose attention is a small part of it
  const bool more_bits = i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
  if (part == "output" || (part == "token_embd" && config.tied_embeddings)) {
    if (type != WeightType::q8_0) type = WeightType::q6_k;
  } else if (part == "attn_v") {
    if (name == "Q2_K") type = config.heads / config.kv_heads >= 4 ? WeightType::q4_k : WeightType::q3_k;
    if (name == "Q3_K_M") type = i < 2 ? WeightType::q5_k : WeightType::q4_k;
    if (name == "Q3_K_L") type = WeightType::q5_k;
    if ((name == "Q4_K_M" || name == "Q5_K_M") && more_bits) type = WeightType::q6_k;
    if (name == "Q4_K_S" && i < 4) type = WeightType::q5_k;
    if (eight) type = WeightType::q8_0;
  } else if (part == "attn_k") {
    if (eight) type = WeightType::q8_0;
  } else if (part == "attn_output") {
    if (name == "Q2_K") type = WeightType::q3_k;
    if (name == "Q3_K_M") type = WeightType::q4_k;
    if (name == "Q3_K_L") type = eight ? kind.type : WeightType::q5_k;
    if (eight && (name == "Q2_K" || name == "Q3_K_S" || name == "Q3_K_M" || name == "Q4_K_S" || name == "Q4_K_M" ||
                  name == "IQ4_NL")) {
      type = WeightType::q5_k;
    }
  } else if (part.starts_with("ffn_down")) {
    if (name == "Q2_K") type = WeightType::q3_k;
    if (name == "Q3_K_M") type = i < n / 16 ? WeightType::q5_k : WeightType::q4_k;
    if (name == "Q3_K_L") type = WeightType::q5_k;
    if ((name == "Q4_K_M" || name == "Q5_K_M") && more_bits) type = WeightType::q6_k;
    if (name == "Q4_K_S" && i < n / 8) type = WeightType::q5_k;
    if (importance && i < n / 8 && name == "Q4_0") type = WeightType::q4_1;
    if (importance && i < n / 8 && name == "Q5_0") type = WeightType::q5_1;
  }
  return with_smaller_blocks(type, tensor.cols);
}

std::string gguf_header(const std::vector<GgufPair>& metadata, std::vector<GgufTensor>& tensors, std::uint64_t& size) {
  const auto aligned = [](std::uint64_t value) { return (value + kAlignment - 1) / kAlignment * kAlignment; };
  std::uint64_t end = 0;
  for (GgufTensor& tensor : tensors) {
    tensor.offset = end;
    end = aligned(end + tensor.bytes);
  }
  HeaderBytes out;
  out.append("GGUF", 4);
  out.number<std::uint32_t>(3);
  out.number<std::uint64_t>(tensors.size());
  out.number<std::uint64_t>(metadata.size());
  for (const GgufPair& pair : metadata) {
    out.string(pair.key);
    out.value(pair.value);
  }
  for (const GgufTensor& tensor : tensors) {
    out.string(tensor.name);
    out.number(static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto side = tensor.shape.rbegin(); side != tensor.shape.rend(); ++side) out.number(*side);
    out.number(quant::format(tensor.type).ggml_type);
    out.number(tensor.offset);
  }
  out.bytes.resize(aligned(out.bytes.size()));
  for (GgufTensor& tensor : tensors) tensor.offset += out.bytes.size();
  size = out.bytes.size() + end;
  return std::move(out.bytes);
}

}  // namespace llminfer::quantize
