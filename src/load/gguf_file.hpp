// The GGUF container, versions 2 and 3 (little-endian): header, metadata and tensor directory of one file. Knows
// nothing of what the keys mean, nor of other parts of a split set. The input is untrusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include <llminfer/result.hpp>

#include "core/file.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::load {

/// Types of metadata values, numbered as in the file.
enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

/// An array of numbers or booleans as it lies in the file.
struct GgufNumbers {
  GgufType element = GgufType::u8;
  std::vector<std::byte> bytes;
};

/// A metadata value. Integers are held by signedness, floats as double; `type` tells how they were stored.
struct GgufValue {
  GgufType type = GgufType::u8;
  std::variant<std::uint64_t, std::int64_t, double, bool, std::string, GgufNumbers, std::vector<std::string>> value;
};

struct GgufFile {
  std::uint32_t version = 0;
  std::uint64_t alignment = 32;
  std::unordered_map<std::string, GgufValue> metadata;
  std::vector<TensorInfo> tensors;  ///< in file order; offsets from the start of the file, all within it; source == 0
};

/// Bytes of one element; 0 for string, array and unknown types.
std::uint64_t gguf_type_bytes(GgufType type) noexcept;

/// Reads the directory of one file; no tensor data. Errors, all naming the source:
///   bad_magic, wrong_endianness, unsupported_version; truncated (the file ends before what it announces);
///   limit_exceeded (counts or lengths that no header has); unsupported_type (of a tensor or a value; nested arrays);
///   corrupt (any other broken rule); invalid_encoding (a key or tensor name that is not UTF-8).
Result<GgufFile> parse_gguf(const core::ByteSource& source);

}  // namespace llminfer::load
