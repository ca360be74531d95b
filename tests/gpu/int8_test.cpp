// Products of int8 by int8 (W8A8): rows as they are rounded for them, every kernel against sums in 64 bits and against
// the CPU's kernels, and plans that use them.
#include <catch2/catch.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "backends/common/w8a8.hpp"
#include "backends/gpu/plan.hpp"
#include "backends/gpu/weight.hpp"
#include "core/file.hpp"
#include "core/half.hpp"
#include "tests/cpu/linear_support.hpp"
#include "tests/cpu/model.hpp"
#include "tests/gpu/linear_support.hpp"
#include "tests/gpu/machines.hpp"

using namespace llminfer;
using namespace llminfer::test;
using gpu::Buffer;
using gpu::Device;

namespace {

constexpr auto kInt8 = InputQuantization::Kind::int8;
constexpr InputQuantization kPerRow{.kind = kInt8}, kBoundedRow{.kind = kInt8, .limit = 1.5f},
    kOneScale{.kind = kInt8, .dynamic = false, .scale = 0.02f},
    kZeroPoint{.kind = kInt8, .dynamic = false, .scale = 0.02f, .zero = 37},
    kLowestZeroPoint{.kind = kInt8, .dynamic = false, .scale = 0.02f, .zero = -128};

/// Codes of all values, under scales that no half is: one for each row, or one for all of them.
RandomWeight w8a8_weight(std::int64_t rows, std::int64_t cols, const InputQuantization& how, bool one_scale = false) {
  RandomWeight w = random_weight(WeightType::w8_sym, rows, cols, 5);
  share_scales(w, cols, 4);
  const auto row_bytes = static_cast<std::size_t>(cols / 32 * 36);
  for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row) {
    for (std::size_t at = row * row_bytes; at < (row + 1) * row_bytes; at += 36) {
      float scale;
      std::memcpy(&scale, &w.bytes[one_scale ? 0 : row * row_bytes], 4);
      if (at > (one_scale ? 0 : row * row_bytes)) {
        std::memcpy(&w.bytes[at], &scale, 4);
        continue;
      }
      scale *= 1.0f + 0x1p-20f * static_cast<float>(row + 1);
      std::memcpy(&w.bytes[at], &scale, 4);
    }
  }
  w.details.input = how;
  return w;
}

/// Of bytes; Kernel::many where the device has no stages, if it is not emulated.
bool has_int8(const Device& device, Kernel kind) {
#ifdef LLMINFER_TEST_GPU
  if (kind == Kernel::many) return !device.info().copies;
#endif
  return has(device, kind);
}

std::vector<float> multiply_int8(const std::shared_ptr<Device>& device, const RandomWeight& w, const Factors& f,
                                 Kernel kind, int splits = 1) {
  const int rows = static_cast<int>(f.in.size() / static_cast<std::size_t>(w.cols));
  const auto weight = gpu::GpuWeight::make(w.view(), *gpu::Staging::make(device).value()).value();
  REQUIRE(weight->w8a8());
  const InputQuantization& how = w.details.input;
  const ByteRows in = to_bytes(device, to_device(device, f.in), nullptr, rows, static_cast<int>(w.cols), how);
  LinearMemory layer(device, w, f, rows, splits);
  gpu::LinearArgs& linear = layer.args;
  linear.weight = weight->matrix();
  linear.weight_sums = weight->sums_at(weight->data());
  linear.codes = in.codes.at<std::uint8_t>();
  linear.in_scales = in.scales.at<float>();
  linear.in_sums = in.sums.at<std::int32_t>();
  linear.in_zero = how.dynamic ? 0 : how.zero;
  device->check(kernel_of(*device, kind)(device->stream(), linear), "linear").value();
  return to_host(device, layer.out);
}

/// Of finite values that are not all zeros.
float int8_scale(const InputQuantization& how, const float* row, std::size_t width) {
  if (!how.dynamic) return how.scale;
  float most = 0;
  for (std::size_t k = 0; k < width; ++k) most = std::max(most, std::abs(row[k]));
  return std::min(most, how.limit) / 127.5f;
}
std::int64_t int8_of(const InputQuantization& how, float x, float scale) {
  const double code = std::nearbyint(double{x / scale}) + (how.dynamic ? 0 : how.zero);
  return static_cast<std::int64_t>(std::clamp(code, -128.0, 127.0)) - (how.dynamic ? 0 : how.zero);
}

/// The sums as they are, and then what is made of them in floats.
std::vector<float> expected_of(const RandomWeight& w, const Factors& f) {
  const auto features = static_cast<std::size_t>(w.rows), width = static_cast<std::size_t>(w.cols),
             rows = f.in.size() / width;
  std::vector<float> out(rows * features);
  for (std::size_t r = 0; r < rows; ++r) {
    const float* const row = f.in.data() + r * width;
    const float scale = int8_scale(w.details.input, row, width);
    std::vector<std::int64_t> in(width);
    for (std::size_t k = 0; k < width; ++k) in[k] = int8_of(w.details.input, row[k], scale);
    for (std::size_t n = 0; n < features; ++n) {
      std::int64_t sum = 0;
      for (std::size_t k = 0; k < width; ++k) {
        sum += in[k] * static_cast<std::int8_t>(w.bytes[(n * width + k) / 32 * 36 + 4 + k % 32]);
      }
      float weight_scale;
      std::memcpy(&weight_scale, &w.bytes[n * width / 32 * 36], 4);
      float& value = out[r * features + n];
      value = static_cast<float>(sum) * weight_scale * scale;
      if (!f.bias.empty()) value += f.bias[n];
      if (!f.residual.empty()) value += f.residual[r * features + n];
    }
  }
  return out;
}

/// Layers of W8A8 over a table whose numbers are halves.
Model three_layers(const InputQuantization& how, int width, int wide) {
  Builder b("three layers");
  const int vocab = 24;
  const ValueId x = b.embed(b.weight("embed", vocab, width), "x");
  const ValueId middle = b.linear(x, b.weight("w1", wide, width), "middle");
  const ValueId hidden = b.linear(middle, b.weight("w2", width, wide), "hidden");
  const ValueId logits = b.linear(hidden, b.weight("w3", vocab, width), "logits");
  Model model = make_model(std::move(b).finish(hidden, logits).value(), WeightType::f32);
  for (std::size_t i = 0; i < model.types.size(); ++i) {
    const WeightSpec& spec = model.program.weights[i];
    if (spec.name == "embed") {
      for (std::size_t k = 0; k < model.values[i].size(); ++k) {
        const float half = core::half_to_float(core::float_to_half(model.values[i][k]));
        std::memcpy(model.data[i]->data() + 4 * k, &half, 4);
      }
      model.set_details(i, {});
      continue;
    }
    model.set_weight(i, w8a8_weight(spec.rows, spec.cols, how));
  }
  return model;
}

}  // namespace

TEST_CASE("Rows are rounded to int8 as compressed-tensors rounds them") {
  const auto golden =
      nlohmann::json::parse(core::read_text_file(LLMINFER_TEST_DATA "/quantized/inputs.json", 1 << 20).value());
  const auto floats = [](const nlohmann::json& bits) {
    std::vector<float> values;
    for (const auto& value : bits) values.push_back(std::bit_cast<float>(value.get<std::int32_t>()));
    return values;
  };
  const std::vector<float> x = floats(golden["x"]);
  for (const Machine& machine : machines(2)) {
    const auto device = make_machine(machine.options);
    for (const char* const name : {"int8 token", "int8 static"}) {
      CAPTURE(machine.name, name);
      const nlohmann::json& expected = golden["cases"][name];
      InputQuantization how{.kind = kInt8, .dynamic = expected["dynamic"].get<bool>()};
      how.scale = std::bit_cast<float>(expected["scale"].get<std::int32_t>());
      how.zero = expected["zero"].get<std::int32_t>();
      const int width = 128, rows = static_cast<int>(x.size()) / width;
      const ByteRows found = to_bytes(device, to_device(device, x), nullptr, rows, width, how);
      const auto codes = to_host<std::int8_t>(device, found.codes);
      const auto scales = to_host(device, found.scales);
      const auto sums = to_host<std::int32_t>(device, found.sums);
      std::vector<float> rounded(x.size());
      std::vector<std::int32_t> added(sums.size());
      for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t row = i / static_cast<std::size_t>(width);
        rounded[i] = scales[row] * static_cast<float>(codes[i] - (how.dynamic ? 0 : how.zero));
        added[row] += codes[i];
      }
      CHECK(rounded == floats(expected["rounded"]));
      CHECK(sums == added);
    }
  }
}

TEST_CASE("Rows are rounded to int8 as inputs of other products are") {
  const int rows = 4, width = 352;
  const std::vector<float> in = rows_to_round(width);
  const auto norms = random_floats(width, 4);
  for (const Machine& machine : machines(2)) {
    const auto device = make_machine(machine.options);
    const Buffer device_in = to_device(device, in), norm = to_device(device, norms);
    for (const InputQuantization& how : {kPerRow, kBoundedRow, kOneScale, kZeroPoint, kLowestZeroPoint}) {
      for (const bool normed : {false, true}) {
        CAPTURE(machine.name, how.dynamic, how.zero, normed);
        const float* const weights = normed ? norm.at<float>() : nullptr;
        const auto [expected, expected_scales] = round_rows(device, device_in, weights, rows, width, how);
        const ByteRows found = to_bytes(device, device_in, weights, rows, width, how);
        const auto codes = to_host<std::int8_t>(device, found.codes);
        const auto scales = to_host(device, found.scales);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < in.size(); ++i) {
          const auto integer = static_cast<float>(codes[i] - (how.dynamic ? 0 : how.zero));
          wrong += i / width != 2 ? integer != expected[i] : !std::isnan(expected[i]);
        }
        CHECK(wrong == 0);
        for (const std::size_t row : {0u, 1u, 3u}) CHECK(scales[row] == expected_scales[row]);
        CHECK(std::isnan(scales[2]));
      }
    }
  }
}

TEST_CASE("Int8 by int8: exact sums, with one scale for a row or for all, zero points and odd shapes") {
  struct Case {
    InputQuantization how;
    std::int64_t features, width;
    int rows;
    bool one_scale;
  };
  const Case cases[] = {{kPerRow, 257, 448, 130, false},        {kOneScale, 24, 160, 65, true},
                        {kZeroPoint, 129, 416, 70, false},      {kBoundedRow, 40, 1056, 17, true},
                        {kLowestZeroPoint, 67, 544, 200, true}, {kPerRow, 3, 32, 3, false},
                        {kZeroPoint, 1, 64, 1, false},          {kPerRow, 130, 2080, 16, true}};
  for (const Machine& machine : machines(3)) {
    const auto device = make_machine(machine.options);
    for (const Kernel kernel : {Kernel::many, Kernel::stages, Kernel::warpgroups}) {
      if (!has_int8(*device, kernel)) continue;
      for (const Case& c : cases) {
        const RandomWeight w = w8a8_weight(c.features, c.width, c.how, c.one_scale);
        const Factors factors = random_factors(c.features, c.width, c.rows);
        const auto expected = expected_of(w, factors);
        for (const int splits : {1, 3}) {
          if (splits > 1 && (kernel != Kernel::stages || c.features > 200)) continue;
          CAPTURE(machine.name, static_cast<int>(kernel), c.features, c.width, c.rows, c.how.zero, splits);
          CHECK(same_bits(multiply_int8(device, w, factors, kernel, splits), expected));
        }
      }
    }
  }
}

TEST_CASE("Int8 by int8 on the GPU and on the CPU: the same bits, also of the largest sums") {
  const std::int64_t features = 37, width = 4096;
  const int rows = 20;
  for (const InputQuantization& how : {kPerRow, kOneScale, kZeroPoint}) {
    RandomWeight w = w8a8_weight(features, width, how);
    Factors factors{random_floats(static_cast<std::size_t>(rows * width), 1), {}, {}};
    // Sums beyond the 24 bits of a float.
    for (std::size_t i = 0; i < 2 * static_cast<std::size_t>(width); ++i) factors.in[i] = i % 5 == 0 ? 2.0f : 3.0f;
    for (std::size_t i = 0; i < 4 * static_cast<std::size_t>(width) / 32 * 36; ++i) {
      if (i % 36 >= 4) w.bytes[i] = std::byte{0x81};
    }
    const auto packed = pack(w);
    REQUIRE(packed->kind() == cpu::PanelKind::w8a8);
    Rows in = random_rows(rows, width, 1, *levels()[0]);
    for (int r = 0; r < rows; ++r) {
      levels()[0]->quantize_bytes(cpu::rounding_of(how), factors.in.data() + r * width, width,
                                  in.groups.data() + r * in.view.group_stride);
    }
    const auto padded = multiply(*levels()[0], *packed, in, rows);
    std::vector<float> expected;
    for (int r = 0; r < rows; ++r) {
      const auto first = padded.begin() + r * (features + 5);
      expected.insert(expected.end(), first, first + features);
    }
    REQUIRE(same_bits(expected_of(w, factors), expected));
    for (const Machine& machine : machines(4)) {
      const auto device = make_machine(machine.options);
      for (const Kernel kernel : {Kernel::many, Kernel::stages, Kernel::warpgroups}) {
        if (!has_int8(*device, kernel)) continue;
        CAPTURE(machine.name, static_cast<int>(kernel), how.dynamic, how.zero);
        CHECK(same_bits(multiply_int8(device, w, factors, kernel), expected));
      }
    }
  }
}

TEST_CASE("Rows of zeros add nothing to sums of int8, and infinite ones spoil no others") {
  const Factors factors = spoiled_factors(5, 416);
  for (const Machine& machine : machines(5)) {
    const auto device = make_machine(machine.options);
    for (const Kernel kernel : {Kernel::many, Kernel::stages, Kernel::warpgroups}) {
      if (!has_int8(*device, kernel)) continue;
      for (const InputQuantization& how : {kPerRow, kZeroPoint}) {
        CAPTURE(machine.name, static_cast<int>(kernel), how.zero);
        check_spoiled(factors, multiply_int8(device, w8a8_weight(5, 416, how), factors, kernel));
      }
    }
  }
}

TEST_CASE("Weights that are multiplied as int8, and such as are not") {
  const auto device = make_machine();
  const auto staging = gpu::Staging::make(device).value();
  const auto integers = [&](const RandomWeight& w) { return gpu::GpuWeight::make(w.view(), *staging).value()->w8a8(); };
  RandomWeight w = w8a8_weight(3, 256, kPerRow);
  CHECK(integers(w));
  w.details.input = kZeroPoint;
  CHECK(integers(w));
  w.details.scale_columns = 128;
  CHECK_FALSE(integers(w));
  w = w8a8_weight(3, 256, {});
  CHECK_FALSE(integers(w));
  w.details.input = {.kind = kInt8, .group = 128};
  CHECK_FALSE(integers(w));
  CHECK_FALSE(integers(w8a8_weight(3, 256, {.kind = InputQuantization::Kind::fp8})));
  RandomWeight with_zeros = random_weight(WeightType::w8, 3, 256, 1);
  with_zeros.details.input = kPerRow;
  with_zeros.details.scale_columns = 256;
  CHECK_FALSE(integers(with_zeros));
  CHECK_FALSE(integers(w8a8_weight(1, backend::kMaxByteCols + 1, kPerRow)));
}

TEST_CASE("Plans give the CPU's bits of W8A8 layers, whatever the pass") {
  for (const InputQuantization& how : {kPerRow, kZeroPoint}) {
    const Model model = three_layers(how, 64, 160);
    const auto tokens = random_tokens(140, 24);
    BackendOptions cpu_options;
    cpu_options.threads = 1;
    const auto expected = Driver(model, cpu_options, CacheType::f16).feed(tokens, {140});
    for (const Machine& machine : machines(6)) {
      for (const bool invariant : {false, true}) {
        for (const std::vector<std::int32_t>& chunks :
             std::vector<std::vector<std::int32_t>>{{140}, {64, 76}, {9, 16, 30, 65}, {1, 8, 5, 20}}) {
          CAPTURE(machine.name, how.zero, invariant, chunks.size());
          Driver driver(model, make_machine_backend(machine.options, invariant), CacheType::f16);
          CHECK(same_bits(driver.feed(tokens, chunks), expected));
        }
      }
    }
  }
}

// Floats hold sums of products up to 2^24, and larger ones but nearly.
TEST_CASE("Plans add products of int8 in integers from kFewRows on, and in batch-invariant passes always") {
  Model model = three_layers(kOneScale, 2048, 32);
  std::size_t table = 0, layer = 0;
  for (std::size_t i = 0; i < model.types.size(); ++i) {
    if (model.program.weights[i].name == "embed") table = i;
    if (model.program.weights[i].name == "w1") layer = i;
  }
  std::vector<std::byte>& numbers = *model.data[table];
  for (std::size_t i = 0; i < numbers.size(); i += 4) {
    const float x = i % 28 == 0 ? 1.5f : 8.0f;
    std::memcpy(&numbers[i], &x, 4);
  }
  for (std::size_t i = 0; i < model.data[layer]->size(); ++i) {
    if (i % 36 >= 4) (*model.data[layer])[i] = std::byte{0x7f} ^ static_cast<std::byte>(i % 36 == 9);
  }
  model.set_details(table, {});
  model.set_details(layer, model.details[layer]);
  const auto tokens = random_tokens(12, 24);
  BackendOptions cpu_options;
  cpu_options.threads = 1;
  const auto expected = Driver(model, cpu_options, CacheType::f16).feed(tokens, {12});
  for (const Machine& machine : machines(7)) {
    const auto same = [&](std::int32_t chunk, bool invariant) {
      Driver driver(model, make_machine_backend(machine.options, invariant), CacheType::f16);
      return same_bits(driver.feed(tokens, {chunk}), expected);
    };
    CAPTURE(machine.name);
    CHECK(same(12, false));
    CHECK(same(12, true));
    CHECK(same(1, true));
  }
}
