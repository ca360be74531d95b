// Every weight format against values that the gguf package's numpy decoders give (tests/golden/quant/make.py), or for
// those that are not in GGUF files, numpy by their definitions (make_w.py).
#include "quant/format.hpp"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cstring>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "core/file.hpp"
#include "core/half.hpp"

using namespace llminfer;

namespace {

struct Golden {
  std::vector<std::uint8_t> blocks;
  std::vector<float> values;
  std::size_t count = 0;
};

Golden read_golden(const quant::Format& format) {
  std::string file = format.name;
  std::transform(file.begin(), file.end(), file.begin(), [](unsigned char c) { return std::tolower(c); });
  const std::string bytes =
      core::read_text_file(std::string(LLMINFER_TEST_DATA) + "/quant/" + file + ".bin", 1 << 20).value();
  std::uint32_t count = 0;
  std::memcpy(&count, bytes.data(), 4);
  Golden golden;
  golden.count = count;
  golden.blocks.resize(count * static_cast<std::size_t>(format.block_bytes));
  golden.values.resize(count * static_cast<std::size_t>(format.block_values));
  REQUIRE(bytes.size() == 4 + golden.blocks.size() + 4 * golden.values.size());
  std::memcpy(golden.blocks.data(), bytes.data() + 4, golden.blocks.size());
  std::memcpy(golden.values.data(), bytes.data() + 4 + golden.blocks.size(), 4 * golden.values.size());
  return golden;
}

bool same_bits(float a, float b) { return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b); }

}  // namespace

TEST_CASE("the format table has a row for every GGUF type that llminfer reads") {
  CHECK(quant::formats().size() == 40);
  for (const quant::Format& format : quant::formats()) {
    INFO(format.name);
    const bool in_gguf = format.type <= WeightType::nvfp4;
    CHECK(quant::format_by_ggml_type(format.ggml_type) == (in_gguf ? &format : nullptr));
    CHECK(&quant::format(format.type) == &format);
    CHECK((format.shape.bits == 0) == (format.decompose == nullptr));
  }
  // Q8_1, Q8_K and the integer types are not weight types; 4, 5, 31 and 36 were removed from the format.
  for (const std::uint32_t type : {4u, 5u, 9u, 15u, 24u, 26u, 28u, 31u, 36u, 1000u, 0xffffffffu}) {
    CHECK(quant::format_by_ggml_type(type) == nullptr);
  }
}

TEST_CASE("unpack is bit-equal to the reference for every format") {
  for (const quant::Format& format : quant::formats()) {
    const Golden golden = read_golden(format);
    REQUIRE(golden.count > 0);
    std::vector<float> out(golden.values.size());
    for (std::size_t b = 0; b < golden.count; ++b) {
      format.unpack(golden.blocks.data() + b * static_cast<std::size_t>(format.block_bytes),
                    out.data() + b * static_cast<std::size_t>(format.block_values));
    }
    std::size_t different = 0, first = 0;
    for (std::size_t i = out.size(); i-- > 0;) {
      if (!same_bits(out[i], golden.values[i])) ++different, first = i;
    }
    INFO(format.name << ": first difference at " << first << ": " << out[first] << " for " << golden.values[first]);
    CHECK(different == 0);
  }
}

TEST_CASE("decompose gives the same values by the formula of GroupedShape") {
  for (const quant::Format& format : quant::formats()) {
    if (!format.decompose) continue;
    INFO(format.name);
    const quant::GroupedShape& shape = format.shape;
    REQUIRE((shape.group == 16 || shape.group == 32));
    CHECK(format.block_values % shape.group == 0);
    CHECK((!shape.table || (shape.bits == 4 && shape.zero == 0)));
    CHECK((shape.exact || shape.table));
    const int groups = format.block_values / shape.group;
    const Golden golden = read_golden(format);
    std::size_t wrong_value = 0, wide_code = 0, wrong_level = 0, not_half = 0;
    for (std::size_t b = 0; b < golden.count; ++b) {
      quant::GroupedBlock block;
      std::memset(&block, 0xff, sizeof block);  // codes must be written, not only their bits set
      format.decompose(golden.blocks.data() + b * static_cast<std::size_t>(format.block_bytes), block);
      for (int i = 0; i < format.block_values; ++i) {
        const int g = i / shape.group;
        const int integer = shape.table ? shape.table[block.code[i] & 15] : block.code[i] - shape.zero;
        float value = block.scale[g] * static_cast<float>(integer);
        if (shape.minimum) value -= block.minimum[g];
        const float expected =
            golden.values[b * static_cast<std::size_t>(format.block_values) + static_cast<std::size_t>(i)];
        // With zero points a zero's sign may differ: s * 3 - s * 3.
        const bool zero_points = shape.scales == quant::ScaleKind::shared && shape.minimum;
        wrong_value += shape.exact ? (zero_points ? value != expected : !same_bits(value, expected))
                                   : std::abs(value - expected) > 0.501f * std::abs(block.scale[g]);
        wide_code += block.code[i] >> shape.bits != 0;
      }
      const auto is_half = [](float f) { return same_bits(core::half_to_float(core::float_to_half(f)), f); };
      for (int g = 0; g < groups; ++g) {
        if (shape.scales == quant::ScaleKind::two_level) {
          wrong_level += !same_bits(block.scale[g], block.d * static_cast<float>(block.sub_scale[g]));
          if (shape.minimum)
            wrong_level += !same_bits(block.minimum[g], block.d_min * static_cast<float>(block.sub_minimum[g]));
        } else if (shape.scales == quant::ScaleKind::shared) {
          if (shape.minimum)
            wrong_level += !same_bits(block.minimum[g], block.scale[g] * static_cast<float>(block.zero_point[g]));
        } else if (shape.half_scales) {
          not_half += !is_half(block.scale[g]);
          if (shape.minimum) not_half += !is_half(block.minimum[g]);
        }
      }
      if (shape.scales == quant::ScaleKind::two_level && shape.half_scales) {
        not_half += !is_half(block.d);
        if (shape.minimum) not_half += !is_half(block.d_min);
      }
    }
    CHECK(wrong_value == 0);
    CHECK(wide_code == 0);
    CHECK(wrong_level == 0);
    CHECK(not_half == 0);
  }
}
