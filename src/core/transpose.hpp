// Transposing a square of small numbers in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace llminfer::core {

/// As many numbers of type T as lie in 16 bytes.
template <class T>
struct Vector16 {
  static constexpr int kCount = 16 / sizeof(T);
  using Type [[gnu::vector_size(16)]] = T;
};

/// Elements of the lower and of the upper halves of two vectors in turn.
template <class V, std::size_t... I>
void interleave(const V& a, const V& b, V& low, V& high, std::index_sequence<I...>) noexcept {
  constexpr std::size_t kCount = sizeof...(I);
  low = __builtin_shufflevector(a, b, (I / 2 + I % 2 * kCount)...);
  high = __builtin_shufflevector(a, b, ((I + kCount) / 2 + I % 2 * kCount)...);
}

/// Transposes a square of 16 / sizeof(T) rows of 16 bytes each, which lie `from_stride` bytes apart, into one whose
/// rows lie `to_stride` bytes apart.
template <class T>
void transpose_square(const std::uint8_t* from, std::int64_t from_stride, std::uint8_t* to,
                      std::int64_t to_stride) noexcept {
  constexpr int kCount = Vector16<T>::kCount;
  typename Vector16<T>::Type rows[kCount], next[kCount];
  for (int i = 0; i < kCount; ++i) std::memcpy(rows + i, from + i * from_stride, 16);
  for (int step = 1; step < kCount; step *= 2) {  // rows i and i + kCount / 2 in turn become rows 2 i and 2 i + 1
    for (int i = 0; i < kCount / 2; ++i) {
      interleave(rows[i], rows[i + kCount / 2], next[2 * i], next[2 * i + 1], std::make_index_sequence<kCount>());
    }
    std::copy_n(next, kCount, rows);
  }
  for (int i = 0; i < kCount; ++i) std::memcpy(to + i * to_stride, rows + i, 16);
}

}  // namespace llminfer::core
