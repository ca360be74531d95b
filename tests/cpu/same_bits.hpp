// Equality of floats to the bit.
#pragma once

#include <cstring>
#include <vector>

namespace llminfer::test {

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace llminfer::test
