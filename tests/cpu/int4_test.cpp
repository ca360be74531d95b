// Caches in 4 bits: the packing of a page, and plans against an interpreter of programs that rounds as KIVI does.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <random>

#include "backends/cpu/level.hpp"
#include "tests/cpu/sealed_pages.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

BackendOptions options_of(int threads, bool exact = false) {
  BackendOptions options;
  options.threads = threads;
  options.exact = exact;
  return options;
}

}  // namespace

TEST_CASE("int4 pages: values as KIVI's formula gives them, the same on every level, and the same packed again") {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const std::int32_t dim : {20, 64, 80, 128}) {
    const cpu::Int4Layout layout(dim);
    std::vector<float> page(static_cast<std::size_t>(layout.floats()), 0.0f);
    const auto keys = page.begin(), values = page.begin() + layout.float_keys();
    for (std::int32_t i = 0; i < dim; ++i) {
      for (std::int32_t t = 0; t < 64; ++t) {
        keys[i * 64 + t] = i == 3 ? 7.25f : std::ldexp(normal(random) + static_cast<float>(i % 5), i % 20 - 10);
        values[t * layout.padded_dim + i] = t == 5 ? 0.0f : 3.0f * normal(random) - 1.0f;
      }
    }
    std::vector<double> expected(page.begin(), page.end());
    for (std::int32_t i = 0; i < dim; ++i) {
      if (i != 3) round_to_4_bits(&expected[static_cast<std::size_t>(i) * 64], 64, 1);
    }
    for (std::int32_t t = 0; t < 64; ++t) {
      double* const row = &expected[static_cast<std::size_t>(layout.float_keys() + t * layout.padded_dim)];
      if (t != 5) round_to_4_bits(row, static_cast<std::size_t>(dim), 1);
    }
    std::vector<std::uint8_t> first;
    for (const cpu::Level& level : cpu::runnable_levels()) {
      CAPTURE(dim, level.name);
      std::vector<std::uint8_t> packed(static_cast<std::size_t>(layout.bytes)), again(packed.size());
      level.elementwise->pack_int4(layout, page.data(), page.data() + layout.float_keys(), packed.data());
      if (first.empty()) first = packed;
      CHECK(packed == first);
      std::vector<float> out(page.size());
      cpu::unpack_int4(layout, packed.data(), out.data(), out.data() + layout.float_keys());
      std::size_t wrong = 0;
      for (std::int32_t i = 0; i < 64 * dim; ++i) {
        const std::int64_t value = layout.float_keys() + i / dim * layout.padded_dim + i % dim;
        for (const std::int64_t at : {std::int64_t{i}, value}) {
          const auto index = static_cast<std::size_t>(at);
          wrong += std::abs(out[index] - expected[index]) > 1e-6 * std::abs(expected[index]) + 1e-9;
        }
      }
      CHECK(wrong <= 2);                       // a code may lie on the border of two
      for (std::int32_t t = 0; t < 64; ++t) {  // padding is no part of a range
        for (std::int32_t i = dim; i < layout.padded_dim; ++i) {
          out[static_cast<std::size_t>(layout.float_keys() + t * layout.padded_dim + i)] = 0.0f;
        }
      }
      level.elementwise->pack_int4(layout, out.data(), out.data() + layout.float_keys(), again.data());
      std::vector<float> second(page.size());
      cpu::unpack_int4(layout, again.data(), second.data(), second.data() + layout.float_keys());
      CHECK(std::equal(out.begin(), out.begin() + layout.float_keys(), second.begin()));
    }
  }
}

TEST_CASE("int4 pages: what is no number or too large spoils nothing else") {
  const cpu::Int4Layout layout(16);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> page(static_cast<std::size_t>(layout.floats()), 1.0f);
  page[3] = std::numeric_limits<float>::quiet_NaN();
  page[64] = kInfinity, page[65] = -kInfinity;
  for (std::size_t t = 128; t < 192; ++t) page[t] = std::numeric_limits<float>::quiet_NaN();
  page[192] = 1e-42f, page[193] = 0.0f;
  std::vector<std::uint8_t> first;
  for (const cpu::Level& level : cpu::runnable_levels()) {
    CAPTURE(level.name);
    std::vector<std::uint8_t> packed(static_cast<std::size_t>(layout.bytes));
    level.elementwise->pack_int4(layout, page.data(), page.data() + layout.float_keys(), packed.data());
    if (first.empty()) first = packed;
    CHECK(packed == first);
    std::vector<float> out(page.size());
    cpu::unpack_int4(layout, packed.data(), out.data(), out.data() + layout.float_keys());
    for (const float x : out) REQUIRE(std::isfinite(x));
    CHECK(out[0] == 1.0f);
    CHECK(out[3] == 1.0f);
    CHECK(out[128] == 0.0f);
    CHECK(out[16 * 64] == 1.0f);
  }
}

TEST_CASE("an int4 cache: pages before a token's own are rounded, its own is not") {
  for (const Shape& shape : {Shape{.heads = 6, .kv_heads = 2, .head_dim = 32},
                             Shape{.heads = 2, .kv_heads = 2, .head_dim = 20, .window = 90}}) {
    const Model model = make_model(make_program(shape), WeightType::f32);
    const auto tokens = random_tokens(400, shape.vocab);
    Driver exact(model, options_of(2, true), CacheType::int4, 512);
    const auto found = exact.feed(tokens, {400});
    const double error = nmse(found, Oracle(model, tokens, true).logits());
    const double unrounded = nmse(found, Oracle(model, tokens).logits());
    CAPTURE(error, unrounded);
    CHECK(error < 1e-3 * unrounded);
    // Up to the end of the first page nothing is rounded.
    const std::size_t page = 64 * static_cast<std::size_t>(shape.vocab);
    Driver floats(model, options_of(1, true), CacheType::f32, 512);
    const auto expected = floats.feed(tokens, {400});
    CHECK(same_bits({found.begin(), found.begin() + static_cast<std::ptrdiff_t>(page)},
                    {expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(page)}));
  }
}

TEST_CASE("an int4 cache: chunks, threads and runs of one sequence do not change a bit") {
  for (const Shape& shape : {Shape{.heads = 6, .kv_heads = 2, .head_dim = 32, .ffn = 128},
                             Shape{.heads = 2, .kv_heads = 2, .head_dim = 32, .ffn = 64, .window = 100}}) {
    const Model model = make_model(make_program(shape), WeightType::q4_1);
    std::uint32_t turn = 0;
    check_chunks(random_tokens(330, shape.vocab),
                 {{1, 63, 2, 64, 20}, {1, 63, 2, 64, 20}, {1, 63, 2, 64, 20}, {128, 128, 70, 1}, {40, 1}, {40, 1}},
                 [&] {
                   const std::uint32_t shuffle = turn++;
                   return Driver(model, options_of(1 << shuffle % 3), CacheType::int4, 512, 40, shuffle);
                 });
  }
}

TEST_CASE("an int4 cache: what a full page does not allow") {
  const Model model = make_model(make_program({}), WeightType::f32);
  check_full_pages(model, [&] { return Driver(model, options_of(1), CacheType::int4); });
}
