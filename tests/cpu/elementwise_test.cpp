// Elementwise kernels: rotations of heads against double precision, and the same bits on every level.
#include <catch2/catch.hpp>
#include <cmath>
#include <random>
#include <vector>

#include "backends/cpu/elementwise.hpp"
#include "backends/cpu/level.hpp"
#include "tests/cpu/same_bits.hpp"

using namespace llminfer;

TEST_CASE("rotated heads: every number of pairs, neighbours or halves, into themselves or elsewhere") {
  std::mt19937 random(5);
  std::uniform_real_distribution<float> angle(-3.0f, 3.0f);
  std::normal_distribution<float> normal;
  for (const bool interleaved : {false, true}) {
    for (const std::int32_t pairs : {1, 3, 4, 7, 8, 15, 16, 22, 32, 45, 64}) {
      const std::int32_t dim = 2 * pairs + pairs % 3;  // the rest is scaled only
      std::vector<float> in(static_cast<std::size_t>(dim)), cosine, sine, expected;
      for (float& x : in) x = normal(random);
      for (std::int32_t i = 0; i < pairs; ++i) {
        const float a = angle(random);
        cosine.push_back(std::cos(a)), sine.push_back(std::sin(a));
      }
      for (const cpu::Level& level : cpu::runnable_levels()) {
        CAPTURE(interleaved, pairs, level.name);
        std::vector<float> out(in.size()), inside = in;
        const auto rope = level.elementwise->rope;
        rope(in.data(), cosine.data(), sine.data(), pairs, interleaved, dim, 0.375f, out.data());
        rope(inside.data(), cosine.data(), sine.data(), pairs, interleaved, dim, 0.375f, inside.data());
        CHECK(test::same_bits(out, inside));
        if (expected.empty()) expected = out;
        CHECK(test::same_bits(out, expected));
      }
      for (std::int32_t i = 0; i < dim; ++i) {
        const std::int32_t pair = interleaved ? i / 2 : i % pairs;
        const bool second = interleaved ? i % 2 == 1 : i >= pairs;
        const auto at = [&](std::int32_t j) { return double{in[static_cast<std::size_t>(j)]}; };
        double want = at(i);
        if (i < 2 * pairs) {
          const std::int32_t first = interleaved ? 2 * pair : pair, other = interleaved ? first + 1 : first + pairs;
          const double c = cosine[static_cast<std::size_t>(pair)], s = sine[static_cast<std::size_t>(pair)];
          want = second ? at(first) * s + at(other) * c : at(first) * c - at(other) * s;
        }
        REQUIRE(std::abs(expected[static_cast<std::size_t>(i)] - 0.375 * want) < 1e-6);
      }
    }
  }
}
