// Weights on their way to the device: in parts, which some threads write while others are copied.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "backends/gpu/weight.hpp"
#include "tests/cpu/random_weight.hpp"
#include "tests/gpu/machines.hpp"

using namespace llminfer;
using namespace llminfer::test;
using gpu::GpuWeight;
using Home = gpu::WeightHome::Kind;
using gpu::Staging;

namespace {

/// What the weight's memory holds, but for what lies between its parts.
std::vector<std::byte> bytes_of(const GpuWeight& weight, const RandomWeight& w, gpu::Device& device) {
  std::vector<std::byte> all(static_cast<std::size_t>(weight.bytes())), some;
  if (weight.streamed()) {
    std::memcpy(all.data(), weight.data(), all.size());
  } else {
    device.copy(all.data(), weight.data(), weight.bytes()).value();
    device.wait().value();
  }
  const gpu::MatrixLayout l = gpu::matrix_layout(w.type, w.rows, w.cols, w.details);
  const auto take = [&](std::int64_t offset, std::int64_t bytes) {
    some.insert(some.end(), all.begin() + offset, all.begin() + offset + bytes);
  };
  take(l.high, w.rows * l.high_row);
  take(l.pairs, w.rows * l.pairs_row);
  take(l.bits, w.rows * l.bits_row);
  take(l.scale, w.rows * l.scales_row);
  if (l.minimums) take(l.minimum, w.rows * l.scales_row);
  take(l.factor, w.rows * 4);
  if (l.table) take(l.table_at, 16 * 4);
  if (l.order) take(l.order_at, w.cols * 4);
  if (w.rows == 1) take(l.bytes, w.cols * 4);
  return some;
}

std::vector<RandomWeight> some_weights() {
  std::vector<RandomWeight> all;
  for (const WeightType type : {WeightType::bf16, WeightType::q3_k, WeightType::q4_k, WeightType::q5_k,
                                WeightType::iq4_xs, WeightType::fp8, WeightType::q8_0}) {
    all.push_back(random_weight(type, 37, 512, 7));
    all.push_back(random_weight(type, 1, 256, 8));
  }
  RandomWeight permuted = random_weight(WeightType::w4, 23, 64, 9);
  std::vector<std::int32_t> order(64);
  for (std::size_t i = 0; i < 64; ++i) order[i] = static_cast<std::int32_t>((i * 27 + 5) % 64);
  permuted.details.permutation = std::make_shared<const std::vector<std::int32_t>>(order);
  all.push_back(std::move(permuted));
  return all;
}

}  // namespace

TEST_CASE("Weights are the same bytes in however many parts they reach the device, and whoever packs them") {
  const auto weights = some_weights();
  const auto reference = make_machine();
  const auto whole = Staging::make(reference).value();
  std::vector<std::vector<std::byte>> expected;
  for (const RandomWeight& w : weights) {  // in place, without copies
    expected.push_back(bytes_of(*GpuWeight::make(w.view(), *whole, {Home::host}).value(), w, *reference));
  }
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    gpu::EmulatorOptions options;
    options.seed = seed;
    const auto device = make_machine(options);
    // Parts of one or two rows, later of one of the widest, which stay.
    const auto staging = Staging::make(device, 1 + static_cast<int>(seed % 3), {}, 1 << 10).value();
    for (std::size_t i = 0; i < weights.size(); ++i) {
      CAPTURE(seed, i);
      const auto weight = GpuWeight::make(weights[i].view(), *staging).value();
      CHECK((bytes_of(*weight, weights[i], *device) == expected[i]));
    }
  }
}

TEST_CASE("An order of columns that is none is an error, wherever it is found") {
  RandomWeight w = random_weight(WeightType::w4, 300, 64, 9);
  w.details.permutation = std::make_shared<const std::vector<std::int32_t>>(64, 3);
  const auto staging = Staging::make(make_machine(), 2).value();
  for (const Home home : {Home::device, Home::host}) {
    CHECK(GpuWeight::make(w.view(), *staging, {home}).error().code == ErrorCode::invalid_argument);
  }
}

TEST_CASE("A host's threads pack the weights of a GPU") {
  const RandomWeight w = random_weight(WeightType::q4_k, 300, 256, 9);
  int calls = 0;
  const auto prepare = [&](const Executor& executor) {
    GpuOptions options;
    options.threads = 3;
    options.executor = executor;
    return gpu::make_backend(make_machine(), options)->prepare(w.view());
  };
  CHECK(prepare([&](int count, const std::function<void(int, int)>& body) {
    CHECK(count == 3);
    ++calls;
    for (int i = 0; i < count; ++i) body(i, count);
  }));
  CHECK(calls > 0);
  const auto failed = prepare([](int, const std::function<void(int, int)>&) { throw std::runtime_error("busy"); });
  CHECK(failed.error().code == ErrorCode::callback_failed);
}

#ifndef LLMINFER_TEST_GPU
TEST_CASE("While a part is copied the next ones are packed") {
  const RandomWeight w = random_weight(WeightType::bf16, 64, 512, 9);
  const auto device = make_machine();
  const auto staging = Staging::make(device, 1, {}, Staging::kParts * 4096).value();
  const auto weight = GpuWeight::make(w.view(), *staging).value();
  CHECK(weight->bytes() > 4 * Staging::kParts * staging->part_bytes() - 4096);
  CHECK(gpu::emulated_counts(*device).waits == 1);  // for all; of parts only for the one that is written again
}
#endif
