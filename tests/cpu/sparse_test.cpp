// Weights of which two of four neighbours are zero: packed in half the space, with the bits of the dense kernels.
#include <catch2/catch.hpp>

#include "core/half.hpp"
#include "tests/cpu/linear_support.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

struct SparseWeight {
  std::vector<std::uint16_t> values;
  WeightView view;

  SparseWeight(WeightType type, std::int64_t rows, std::int64_t cols, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    values.assign(static_cast<std::size_t>(rows * cols), 0);
    for (std::size_t quad = 0; quad < values.size(); quad += 4) {
      for (unsigned count = random() % 8 ? 2 : random() % 2; count > 0;) {  // some have one value or none
        std::uint16_t& value = values[quad + random() % 4];
        if (value != 0) continue;
        const float x = normal(random);
        value = type == WeightType::f16 ? core::float_to_half(x) : core::float_to_bfloat(x);
        --count;
      }
    }
    values[0] = 0x8000;  // a zero, too
    view = {"sparse", type, rows, cols, std::as_bytes(std::span(values)), nullptr};
  }
};

std::unique_ptr<cpu::PackedWeight> pack_dense(const WeightView& view) {
  auto packed = cpu::PackedWeight::allocate(view.type, view.rows, view.cols).value();
  packed->pack_panels(view, 0, packed->panels());
  return packed;
}

}  // namespace

TEST_CASE("sparse weights of so few columns that nothing is saved are packed as dense ones") {
  const SparseWeight w(WeightType::f16, 5, 4, 1);
  CHECK(cpu::pack_weight(w.view).value()->kind() == cpu::PanelKind::f16);
}

TEST_CASE("sparse weights: less memory, the same bits as dense ones on all levels") {
  for (const WeightType type : {WeightType::f16, WeightType::bf16}) {
    for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{5, 8}, {16, 36}, {33, 132}, {100, 256}}) {
      INFO("[" << rows << ", " << cols << "]");
      const SparseWeight w(type, rows, cols, static_cast<unsigned>(rows));
      const auto sparse = cpu::pack_weight(w.view).value(), dense = pack_dense(w.view);
      REQUIRE(sparse->kind() == (type == WeightType::f16 ? cpu::PanelKind::f16_sparse : cpu::PanelKind::bf16_sparse));
      if (cols == 256) CHECK(sparse->bytes() * 16 == dense->bytes() * 9);
      std::vector<float> a(static_cast<std::size_t>(cols)), b(a.size());
      for (std::int64_t n = 0; n < rows; ++n) {
        sparse->read_row(n, a.data());
        dense->read_row(n, b.data());
        REQUIRE(a == b);
      }
      for (const cpu::LinearKernels* kernels : levels()) {
        for (const std::int32_t m : {1, 2, 3, 7}) {
          INFO(kernels->level << ", " << m << " rows");
          const Rows x = random_rows(m, cols, 7, *kernels);
          REQUIRE(multiply(*kernels, *sparse, x, m) == multiply(*kernels, *dense, x, m));
        }
      }
    }
  }
}

TEST_CASE("sparse weights are those without an exception, and are restored as what they are") {
  SparseWeight w(WeightType::f16, 20, 64, 3);
  const auto packed = cpu::pack_weight(w.view).value();
  const auto restored = cpu::PackedWeight::adopt(w.view, packed->stored(), nullptr).value();
  CHECK(restored->kind() == packed->kind());
  const auto dense = pack_dense(w.view);
  CHECK(cpu::PackedWeight::adopt(w.view, dense->stored(), nullptr).value()->kind() == cpu::PanelKind::f16);
  CHECK(cpu::PackedWeight::adopt(w.view, packed->stored().first(64), nullptr).error().code == ErrorCode::corrupt);
  for (std::size_t i = w.values.size() - 4; i < w.values.size(); ++i) w.values[i] = 1;  // the smallest number
  w.values.back() = 0;
  CHECK_FALSE(cpu::two_of_four(w.view));
  CHECK(cpu::pack_weight(w.view).value()->kind() == cpu::PanelKind::f16);
}
