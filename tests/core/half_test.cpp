// Numbers of 8 bits.
#include <catch2/catch.hpp>

#include <cmath>
#include <limits>

#include "core/half.hpp"

using namespace llminfer::core;

TEST_CASE("floats become the nearest E4M3 number, ties the even one") {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = e4m3_to_float(static_cast<std::uint8_t>(code));
    const float high = e4m3_to_float(static_cast<std::uint8_t>(code + 1)), middle = (low + high) / 2;
    for (const int sign : {0, 0x80}) {
      const float s = sign ? -1.0f : 1.0f;
      CHECK(float_to_e4m3(s * low) == (sign | code));
      CHECK(float_to_e4m3(s * middle) == (sign | (code + code % 2)));
      CHECK(float_to_e4m3(s * std::nextafter(middle, 0.0f)) == (sign | code));
      CHECK(float_to_e4m3(s * std::nextafter(middle, 500.0f)) == (sign | (code + 1)));
    }
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float x : {448.0f, 464.1f, 1e30f, kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    CHECK(float_to_e4m3(x) == 0x7e);
  }
  CHECK(float_to_e4m3(-kInfinity) == 0xfe);
}
