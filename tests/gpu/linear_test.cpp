// Linear layers on the emulated GPU for every weight type, against products in double precision of the exact weights.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backends/gpu/weight.hpp"
#include "core/half.hpp"
#include "tests/cpu/model.hpp"
#include "tests/cpu/random_weight.hpp"
#include "tests/gpu/linear_support.hpp"
#include "tests/gpu/machines.hpp"
#include "tests/gpu/step_runner.hpp"

using namespace llminfer;
using namespace llminfer::test;
using gpu::Buffer;
using gpu::Device;

namespace {

struct Case {
  std::int64_t features, width;
  int rows;
};

struct Product {
  Factors factors;
  std::vector<float> out;
};

/// rows * weight^T + bias + residual, or the gated activation with the same weight as `up`. A single row of Kernel::few
/// is normed, which the factors then are, and the layer launched between two others; by the kernel of many steps, too.
/// The first columns of the rows are multiplied by `sizes`.
Product multiply(const std::shared_ptr<Device>& device, const RandomWeight& w, int rows, Kernel kind, bool gated,
                 int splits = 1, const std::vector<float>& sizes = {}) {
  const auto width = static_cast<std::size_t>(w.cols);
  const auto weight = gpu::GpuWeight::make(w.view(), *gpu::Staging::make(device).value()).value();
  Factors factors = random_factors(w.rows, w.cols, rows);
  std::vector<float>& in = factors.in;
  for (std::size_t i = 0; i < in.size(); ++i) in[i] *= i % width < sizes.size() ? sizes[i % width] : 1.0f;
  const bool normed = kind == Kernel::few && rows == 1;
  const auto norm = random_floats(width, 4);
  const Buffer device_norm = to_device(device, norm);
  constexpr float kEpsilon = 1e10f;  // beside squares of 3e5
  const Buffer device_in = to_device(device, in);
  const gpu::MatrixArgs matrix = weight->matrix();
  const Buffer halves = Buffer::make(device, std::int64_t{rows} * matrix.cols * 2).value();
  const Buffer scales = Buffer::make(device, rows * 4).value();

  gpu::PrepareArgs prepare{};
  prepare.in = {device_in.at<float>(), w.cols};
  prepare.rows = rows;
  prepare.width = static_cast<int>(w.cols);
  prepare.padded = matrix.cols;
  prepare.order = matrix.order;
  prepare.halves = halves.at<std::uint16_t>();
  prepare.scales = scales.at<float>();
  device->check(device->kernels().prepare(device->stream(), prepare), "prepare").value();
  LinearMemory layer(device, w, factors, rows, splits);
  gpu::LinearArgs& linear = layer.args;
  const Buffer& out = layer.out;
  linear.weight = matrix;
  if (gated) {
    linear.up = matrix;
    linear.up_bias = linear.bias;
    linear.residual = {};
  }
  linear.in = prepare.halves;
  linear.in_scales = prepare.scales;
  if (normed) {
    linear.row = prepare.in.data;
    linear.in_scales = nullptr;
    linear.norm = device_norm.at<float>();
    linear.epsilon = kEpsilon;
    linear.width = prepare.width;
  }
  linear.units = 4;
  if (kind == Kernel::few) {
    const Buffer elsewhere = Buffer::make(device, out.bytes()).value();
    gpu::LinearArgs other = linear;
    other.out.data = elsewhere.at<float>();
    const gpu::LayersArgs layers{{other, linear, other}, 3};
    device->check(device->kernels().linear_few(device->stream(), layers), "linear_few").value();
    device->wait().value();
    if (normed && device->info().resident_blocks > 0) {
      const std::vector<float> expected = to_host(device, out);
      device->clear(out.at(), out.bytes()).value();
      gpu::StepList list;
      REQUIRE(gpu::StepList::table().linear_few(&list, layers) == 0);
      run_steps(device, list);
      CHECK(same_bits(to_host(device, out), expected));
    }
  } else {
    device->check(kernel_of(*device, kind)(device->stream(), linear), "linear").value();
  }
  const std::vector<float> result = to_host(device, out);
  for (const float count_left : to_host(device, layer.counters)) CHECK(count_left == 0.0f);
  if (normed) {
    double squares = 0;
    for (std::size_t k = 0; k < width; ++k) squares += double{in[k]} * in[k];
    const double factor = 1 / std::sqrt(squares / static_cast<double>(width) + kEpsilon);
    for (std::size_t k = 0; k < width; ++k) in[k] = static_cast<float>(in[k] * factor * norm[k]);
  }
  return {std::move(factors), result};
}

/// Its normalized error, that of the worst row.
double error_of(const std::shared_ptr<Device>& device, const RandomWeight& w, int rows, Kernel kind, bool gated,
                int splits = 1, const std::vector<float>& sizes = {}) {
  const auto features = static_cast<std::size_t>(w.rows), width = static_cast<std::size_t>(w.cols),
             count = static_cast<std::size_t>(rows);
  const auto [factors, result] = multiply(device, w, rows, kind, gated, splits, sizes);
  const auto& [in, bias, residual] = factors;
  std::vector<float> exact(features * width);
  unpack_rows(w.view(), 0, w.rows, exact).value();
  // Rows by themselves: one is a million times larger than the others.
  double worst = 0;
  for (std::size_t r = 0; r < count; ++r) {
    std::vector<double> expected(features);
    for (std::size_t n = 0; n < features; ++n) {
      double sum = bias[n];
      for (std::size_t k = 0; k < width; ++k) sum += double{in[r * width + k]} * exact[n * width + k];
      expected[n] = gated ? sum / (1 + std::exp(-sum)) * sum : sum + residual[r * features + n];
    }
    const auto found = result.begin() + static_cast<std::ptrdiff_t>(r * features);
    const double error = nmse(std::vector<float>(found, found + static_cast<std::ptrdiff_t>(features)), expected);
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
  }
  return worst;
}

constexpr int kTypes = static_cast<int>(WeightType::w8_min) + 1;

}  // namespace

TEST_CASE("Every weight type is multiplied, by few rows and by many") {
  for (int t = 0; t < kTypes; ++t) {
    const auto type = static_cast<WeightType>(t);
    const RandomWeight w = random_weight(type, 13, weight_type_info(type).block_values <= 64 ? 192 : 512, 5);
    const auto device = make_machine();
    CAPTURE(weight_type_info(type).name);
    CHECK(error_of(device, w, 1, Kernel::few, false) < 1e-6);
    CHECK(error_of(device, w, 2, Kernel::few, false) < 1e-6);
    CHECK(error_of(device, w, 9, Kernel::many, false) < 1e-6);
    if (device->info().warpgroups) CHECK(error_of(device, w, 9, Kernel::warpgroups, false) < 1e-6);
    if (device->info().copies) CHECK(error_of(device, w, 9, Kernel::stages, false) < 1e-6);
  }
}

TEST_CASE("Odd shapes, on every machine") {
  for (const Machine& machine : machines(3)) {
    CAPTURE(machine.name);
    const auto device = make_machine(machine.options);
    for (const Case& c : {Case{1, 1, 1}, Case{19, 43, 1}, Case{3, 33, 8}, Case{65, 96, 5}, Case{67, 40, 66}}) {
      CAPTURE(c.features, c.width, c.rows);
      const RandomWeight w = random_weight(WeightType::f32, c.features, c.width, 7);
      if (c.rows <= gpu::kFewRows) CHECK(error_of(device, w, c.rows, Kernel::few, false) < 1e-6);
      CHECK(error_of(device, w, c.rows, Kernel::many, false) < 1e-6);
    }
    for (const int rows : {1, 3}) {
      CHECK(error_of(device, random_weight(WeightType::q6_k, 40, 256, 3), rows, Kernel::few, true) < 1e-5);
    }
  }
}

TEST_CASE("Every weight type in odd shapes, on the machines in turn", "[.slow]") {
  std::size_t turn = 0;
  for (int t = 0; t < kTypes; ++t) {
    const auto type = static_cast<WeightType>(t);
    const std::int64_t block = weight_type_info(type).block_values;
    const std::int64_t width = block == 1 ? 43 : block <= 64 ? 3 * block : 768;
    for (const Case& c :
         {Case{13, width, 1}, Case{19, width, 8}, Case{67, width, 5}, Case{33, width, 17}, Case{131, width, 66}}) {
      const std::vector<Machine> all = machines(turn + 1);
      const Machine& machine = all[turn++ % all.size()];
      const auto device = make_machine(machine.options);
      const RandomWeight w = random_weight(type, c.features, c.width, 7);
      for (const Kernel kernel : {Kernel::few, Kernel::many, Kernel::warpgroups, Kernel::stages}) {
        if (!has(*device, kernel) || (kernel == Kernel::few && c.rows > gpu::kFewRows)) continue;
        CAPTURE(weight_type_info(type).name, machine.name, c.features, c.rows, static_cast<int>(kernel));
        CHECK(error_of(device, w, c.rows, kernel, false) < 1e-5);
      }
    }
  }
}

// A column of rows and one of weights are 30000 times larger than the others, and meet zeros.
TEST_CASE("What is far smaller than the rest of its row counts, on every machine") {
  const std::vector<float> sizes = {3e4f, 0.0f};
  for (const auto& [type, cols] : {std::pair(WeightType::f32, 64), {WeightType::q8_0, 96}}) {
    RandomWeight w = random_weight(type, 40, cols, 7);
    for (std::size_t row = 0; row < 40; ++row) {
      if (type == WeightType::f32) {
        float* const first = reinterpret_cast<float*>(w.bytes.data()) + row * 64;
        first[0] = 0.0f, first[1] = 300.0f;
      } else {  // a scale and 32 codes, of which that of the second column is large by its scale
        std::byte* const first = w.bytes.data() + row * 3 * 34;
        const std::uint16_t scale = core::float_to_half(3.0f);
        std::fill_n(first, 34, std::byte{0});
        std::memcpy(first, &scale, 2);
        first[3] = std::byte{100};
      }
    }
    for (const Machine& machine : machines(5)) {
      const auto device = make_machine(machine.options);
      for (const Kernel kernel : {Kernel::few, Kernel::many, Kernel::warpgroups, Kernel::stages}) {
        CAPTURE(weight_type_info(type).name, machine.name, static_cast<int>(kernel));
        if (has(*device, kernel)) CHECK(error_of(device, w, 3, kernel, false, 1, sizes) < 1e-6);
      }
    }
  }
}

// Of four blocks: tiles of 128 rows and of 256, fewer of them than blocks and more.
TEST_CASE("Odd shapes by warpgroups") {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    gpu::EmulatorOptions options;
    options.seed = seed;
    const auto device = make_machine(options);
    if (!device->info().warpgroups) return;
    for (const Case& c : {Case{1, 1, 1}, Case{129, 96, 5}, Case{67, 40, 130}, Case{300, 200, 257}}) {
      CAPTURE(seed, c.features, c.width, c.rows);
      const RandomWeight w = random_weight(WeightType::f32, c.features, c.width, 7);
      CHECK(error_of(device, w, c.rows, Kernel::warpgroups, false) < 1e-6);
    }
    CHECK(error_of(device, random_weight(WeightType::fp8, 257, 448, 7), 300, Kernel::warpgroups, false) < 1e-6);
  }
}

// Tiles of each height, parts of columns that are not alike, an odd number of scales per row, odd features, and more
// tiles with parts than there is memory for at once.
TEST_CASE("Odd shapes in stages") {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    gpu::EmulatorOptions options;
    options.seed = seed;
    const auto device = make_machine(options);
    if (!device->info().copies) return;
    for (const Case& c : {Case{1, 1, 1}, Case{131, 96, 17}, Case{67, 40, 66}, Case{130, 200, 70}}) {
      CAPTURE(seed, c.features, c.width, c.rows);
      CHECK(error_of(device, random_weight(WeightType::f32, c.features, c.width, 7), c.rows, Kernel::stages, false,
                     c.width > 100 ? 3 : 1) < 1e-6);
    }
    for (const auto type : {WeightType::q4_1, WeightType::q5_0, WeightType::fp8, WeightType::q8_0}) {
      CAPTURE(seed, weight_type_info(type).name);
      CHECK(error_of(device, random_weight(type, 133, 608, 7), 35, Kernel::stages, false, 3) < 1e-6);
    }
    for (const auto type : {WeightType::q2_k, WeightType::q3_k, WeightType::q6_k}) {
      CAPTURE(seed, weight_type_info(type).name);
      CHECK(error_of(device, random_weight(type, 20, 768, 7), 18, Kernel::stages, false, 5) < 1e-6);
    }
  }
}

TEST_CASE("In stages a row's bits do not depend on how many rows there are") {
  const auto device = make_machine();
  if (!device->info().copies) return;
  for (const auto type : {WeightType::q4_0, WeightType::q8_0, WeightType::f16}) {
    const RandomWeight w = random_weight(type, 40, 576, 5);
    const std::vector<float> all = multiply(device, w, 70, Kernel::stages, false, 3).out;
    for (const int rows : {1, 16, 17, 33}) {
      CAPTURE(weight_type_info(type).name, rows);
      const std::vector<float> some = multiply(device, w, rows, Kernel::stages, false, 3).out;
      CHECK(std::equal(some.begin(), some.end(), all.begin()));
    }
  }
}

// NaN of E4M3, which has a path of its own.
TEST_CASE("In stages a weight that is NaN stays so") {
  const auto device = make_machine();
  if (!device->info().copies) return;
  RandomWeight w = random_weight(WeightType::fp8, 9, 64, 5);
  w.bytes[5 * 72 + 4 + 3] = std::byte{0xff};  // a float, and 32 numbers
  const std::vector<float> out = multiply(device, w, 2, Kernel::stages, false).out;
  for (std::size_t i = 0; i < out.size(); ++i) CHECK(std::isnan(out[i]) == (i % 9 == 5));
}

TEST_CASE("A column order is undone, and prepared sizes are as announced") {
  const auto device = make_machine();
  RandomWeight w = random_weight(WeightType::w4, 5, 64, 9);
  std::vector<std::int32_t> permutation(64);
  for (std::size_t i = 0; i < 64; ++i) permutation[i] = static_cast<std::int32_t>((i * 27 + 5) % 64);
  w.details.permutation = std::make_shared<const std::vector<std::int32_t>>(permutation);
  CHECK(error_of(device, w, 3, Kernel::few, false) < 1e-6);
  for (int t = 0; t < kTypes; ++t) {
    const auto type = static_cast<WeightType>(t);
    const RandomWeight plain = random_weight(type, 4, 512, 5);
    CHECK(gpu::GpuWeight::make(plain.view(), *gpu::Staging::make(device).value()).value()->bytes() ==
          gpu::GpuWeight::bytes_of(type, 4, 512));
  }
}

TEST_CASE("Schedules do not change a bit") {
  const RandomWeight w = random_weight(WeightType::q5_k, 70, 256, 5);
  for (const Kernel kernel : {Kernel::few, Kernel::many, Kernel::warpgroups, Kernel::stages}) {
    if (!has(*make_machine(), kernel)) continue;
    std::vector<double> errors;
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
      gpu::EmulatorOptions options;
      options.seed = seed;
      errors.push_back(error_of(make_machine(options), w, 7, kernel, false));
    }
    CHECK(errors == std::vector<double>(errors.size(), errors.front()));
  }
}
