// Arithmetic on sizes that come from files: every operation says whether it fitted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

namespace llminfer::core {

inline std::optional<std::uint64_t> checked_add(std::uint64_t a, std::uint64_t b) noexcept {
  std::uint64_t r;
  if (__builtin_add_overflow(a, b, &r)) return std::nullopt;
  return r;
}

inline std::optional<std::uint64_t> checked_mul(std::uint64_t a, std::uint64_t b) noexcept {
  std::uint64_t r;
  if (__builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}

/// Rounds up to a multiple of `alignment`, a power of two.
inline std::optional<std::uint64_t> checked_align(std::uint64_t value, std::uint64_t alignment) noexcept {
  const auto up = checked_add(value, alignment - 1);
  if (!up) return std::nullopt;
  return *up & ~(alignment - 1);
}

}  // namespace llminfer::core
