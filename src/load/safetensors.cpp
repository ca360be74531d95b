#include "load/safetensors.hpp"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/checked.hpp"
#include "core/error.hpp"
#include "core/json.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using core::Json;

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // as the format's own reader

struct Element {
  std::string_view name;
  ElementType element;
  WeightType type;  ///< of floats
  std::uint64_t bytes;
};

constexpr Element kElements[] = {
    {"F32", ElementType::f32, WeightType::f32, 4},
    {"F16", ElementType::f16, WeightType::f16, 2},
    {"BF16", ElementType::bf16, WeightType::bf16, 2},
    {"I8", ElementType::i8, {}, 1},
    {"U8", ElementType::u8, {}, 1},
    {"I32", ElementType::i32, {}, 4},
    {"I64", ElementType::i64, {}, 8},
    {"F8_E4M3", ElementType::f8_e4m3, {}, 1},
    {"F8_E8M0", ElementType::f8_e8m0, {}, 1},
    {"BOOL", ElementType::boolean, {}, 1},
    {"I16", ElementType::i16, {}, 2},
};

/// An array of unsigned integers that fit an int64.
std::optional<std::vector<std::uint64_t>> unsigned_list(const Json& object, const char* key) {
  const Json* member = object.find(key);
  if (!member || !member->is_array()) return std::nullopt;
  std::vector<std::uint64_t> list;
  for (const Json& entry : member->array()) {
    if (entry.integer().value_or(-1) < 0) return std::nullopt;
    list.push_back(static_cast<std::uint64_t>(*entry.integer()));
  }
  return list;
}

/// One member of the header. `place` names file and tensor; the tensor's offset is still relative to the data.
Result<TensorInfo> read_tensor(const std::string& name, const Json& entry, const std::string& place) {
  if (!entry.is_object()) return fail(ErrorCode::corrupt, place, ": not an object");
  const auto type_name = LLMINFER_TRY(core::json_string(entry, "dtype", place));
  const auto shape = unsigned_list(entry, "shape");
  const auto range = unsigned_list(entry, "data_offsets");
  if (!type_name || !shape || !range || range->size() != 2) {
    return fail(ErrorCode::corrupt, place, ": expected \"dtype\", \"shape\" and two \"data_offsets\"");
  }
  const auto* type = std::find_if(std::begin(kElements), std::end(kElements),
                                  [&](const Element& candidate) { return candidate.name == *type_name; });
  if (type == std::end(kElements)) {
    return fail(ErrorCode::unsupported_type, place, ": the type ", *type_name,
                "; expected F32, F16 or BF16, or one of packed weights: I8, U8, I16, I32, I64, F8_E4M3, F8_E8M0, BOOL");
  }
  const auto [begin, end] = std::pair((*range)[0], (*range)[1]);
  if (begin > end) return fail(ErrorCode::corrupt, place, ": the data begins at ", begin, " and ends at ", end);

  TensorInfo tensor;
  tensor.name = name;
  tensor.element = type->element;
  tensor.type = type->type;
  tensor.offset = begin;
  tensor.bytes = end - begin;
  std::optional<std::uint64_t> size = type->bytes;
  std::uint64_t rows = 1;  // wraps only where size does not fit, or a zero makes the tensor empty
  for (std::size_t i = 0; i < shape->size(); ++i) {
    size = size ? core::checked_mul(*size, (*shape)[i]) : std::nullopt;
    if (i + 1 < shape->size()) rows *= (*shape)[i];
    tensor.shape.push_back(static_cast<std::int64_t>((*shape)[i]));
  }
  if (!size || *size != tensor.bytes) {
    return fail(ErrorCode::corrupt, place, ": ", tensor.bytes, " bytes of data do not fit the shape times ",
                *type_name);
  }
  if (*size == 0) return fail(ErrorCode::corrupt, place, ": a tensor without elements");
  tensor.rows = static_cast<std::int64_t>(rows);
  tensor.cols = shape->empty() ? 1 : tensor.shape.back();
  return tensor;
}

/// Reads the length and the text after it.
Result<core::Bytes> read_header_text(const core::ByteSource& source) {
  const core::Bytes length_bytes = LLMINFER_TRY(source.read(0, kLengthBytes));
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    length |= std::to_integer<std::uint64_t>(length_bytes.data[i]) << (8 * i);
  }
  if (length > kMaxHeaderBytes) {
    return fail(ErrorCode::limit_exceeded, source.name(), ": a header of ", length, " bytes, the limit is ",
                kMaxHeaderBytes);
  }
  if (length == 0) return fail(ErrorCode::corrupt, source.name(), ": an empty header");
  core::Bytes text = LLMINFER_TRY(source.read(kLengthBytes, length));
  if (text.data.front() != std::byte{'{'}) {
    return fail(ErrorCode::bad_magic, source.name(), ": the header does not begin with '{'");
  }
  return text;
}

}  // namespace

Result<std::vector<TensorInfo>> read_safetensors_header(const core::ByteSource& source, std::uint32_t source_index) {
  const core::Bytes text = LLMINFER_TRY(read_header_text(source));
  const Json header = LLMINFER_TRY(core::parse_json(
      std::string_view(reinterpret_cast<const char*>(text.data.data()), text.data.size()), source.name()));
  if (!header.is_object()) return fail(ErrorCode::corrupt, source.name(), ": the header is not an object");

  std::vector<TensorInfo> tensors;
  for (const auto& [name, entry] : header.object()) {
    if (name == "__metadata__") continue;
    tensors.push_back(LLMINFER_TRY(read_tensor(name, entry, source.name() + ": tensor " + name)));
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.offset < b.offset; });

  const std::uint64_t data_begin = kLengthBytes + text.data.size();
  const std::uint64_t data_bytes = source.size() - data_begin;
  std::uint64_t expected = 0;
  for (TensorInfo& tensor : tensors) {
    if (tensor.offset != expected) {
      return fail(ErrorCode::corrupt, source.name(), ": tensor ", tensor.name, ": begins at ", tensor.offset,
                  ", expected ", expected, ", the end of the one before it");
    }
    if (tensor.bytes > data_bytes - expected) {
      return fail(ErrorCode::truncated, source.name(), ": tensor ", tensor.name, ": ends at ", tensor.offset, " + ",
                  tensor.bytes, ", but there are ", data_bytes, " bytes of data");
    }
    expected += tensor.bytes;
    tensor.offset += data_begin;
    tensor.source = source_index;
  }
  if (expected != data_bytes) {
    return fail(ErrorCode::corrupt, source.name(), ": the tensors end at ", expected, " of ", data_bytes,
                " bytes of data");
  }
  return tensors;
}

}  // namespace llminfer::load
