// Goto's scheme: b is packed into panels of so many columns as fill the registers, blocks of a into panels of so many
// rows, and a kernel multiplies two panels with all sums in registers.
#include "quantize/gemm.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace llminfer::quantize {
namespace {

constexpr std::int64_t kDepth = 256;  ///< of a panel: what is read again and again stays in the first cache
constexpr std::int64_t kRowBlock =
    48;  ///< of a, multiplied by all panels of b before the next; a multiple of all kernels' rows

// The kernels' code is one template; each level's function compiles it for its own instructions. GNU vectors, so that
// it needs no intrinsics.
template <int Width>
struct Vector {
  typedef float type __attribute__((vector_size(Width * 4)));
};

/// tile // (Rows, 2 Width) = panel_a // (depth, Rows) times panel_b // (depth, 2 Width)
template <int Width, int Rows>
[[gnu::always_inline]] inline void tile_kernel(const float* a, const float* b, std::int64_t depth, float* tile) {
  using V = typename Vector<Width>::type;
  V sum[Rows][2] = {};
  for (std::int64_t k = 0; k < depth; ++k, a += Rows, b += 2 * Width) {
    V left, right;
    std::memcpy(&left, b, sizeof left);
    std::memcpy(&right, b + Width, sizeof right);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      sum[i][0] += a[i] * left;
      sum[i][1] += a[i] * right;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    std::memcpy(tile + i * 2 * Width, &sum[i][0], sizeof(V));
    std::memcpy(tile + i * 2 * Width + Width, &sum[i][1], sizeof(V));
  }
}

struct Kernel {
  int rows, cols;
  void (*run)(const float* a, const float* b, std::int64_t depth, float* tile);
};

void run_any(const float* a, const float* b, std::int64_t depth, float* tile) { tile_kernel<4, 4>(a, b, depth, tile); }
#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] void run_avx2(const float* a, const float* b, std::int64_t depth, float* tile) {
  tile_kernel<8, 6>(a, b, depth, tile);
}
[[gnu::target("avx512f")]] void run_avx512(const float* a, const float* b, std::int64_t depth, float* tile) {
  tile_kernel<16, 12>(a, b, depth, tile);
}
#endif

const Kernel& kernel() {
  static const Kernel best = [] {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return Kernel{12, 32, run_avx512};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Kernel{6, 16, run_avx2};
#endif
    return Kernel{4, 8, run_any};
  }();
  return best;
}

/// Rows [first, first + count) and columns [k, k + depth) of a view as a panel // (depth, width), zeros after the last
/// row.
void pack(const MatrixView& m, std::int64_t first, std::int64_t count, std::int64_t k, std::int64_t depth, int width,
          float* out) {
  if (count < width) std::fill_n(out, depth * width, 0.0f);
  const float* from = m.data + first * m.row_step + k * m.col_step;
  if (m.row_step == 1) {
    for (std::int64_t d = 0; d < depth; ++d)
      std::memcpy(out + d * width, from + d * m.col_step, static_cast<std::size_t>(count) * 4);
    return;
  }
  for (std::int64_t r = 0; r < count; ++r) {
    for (std::int64_t d = 0; d < depth; ++d) out[d * width + r] = from[r * m.row_step + d * m.col_step];
  }
}

class Product {
 public:
  Product(const MatrixView& a, const MatrixView& b, float* c, std::int64_t c_step, bool add, float alpha, bool upper)
      : a_(a), b_(b.transposed()), c_(c), c_step_(c_step), add_(add), alpha_(alpha), upper_(upper) {
    packed_.resize(static_cast<std::size_t>(panels() * kernel().cols * a.cols));
  }

  std::int64_t panels() const { return (b_.rows + kernel().cols - 1) / kernel().cols; }
  std::int64_t row_blocks() const { return (a_.rows + kRowBlock - 1) / kRowBlock; }

  /// Panel j lies whole, one piece of kDepth after the other.
  void pack_panel(std::int64_t j) {
    const int cols = kernel().cols;
    const std::int64_t first = j * cols, count = std::min<std::int64_t>(cols, b_.rows - first);
    float* to = packed_.data() + j * cols * a_.cols;
    for (std::int64_t k = 0; k < a_.cols; k += kDepth) {
      const std::int64_t depth = std::min(kDepth, a_.cols - k);
      pack(b_, first, count, k, depth, cols, to + k * cols);
    }
  }

  void run_block(std::int64_t block) const {
    const Kernel& kern = kernel();
    float left[kRowBlock * kDepth];
    float tile[12 * 32];
    const std::int64_t begin = block * kRowBlock, end = std::min(begin + kRowBlock, a_.rows);
    const std::int64_t first_panel = upper_ ? begin / kern.cols : 0;
    for (std::int64_t k = 0; k < a_.cols; k += kDepth) {
      const std::int64_t depth = std::min(kDepth, a_.cols - k);
      for (std::int64_t r = begin; r < end; r += kern.rows) {
        pack(a_, r, std::min<std::int64_t>(kern.rows, end - r), k, depth, kern.rows, left + (r - begin) * depth);
      }
      for (std::int64_t j = first_panel; j < panels(); ++j) {
        const float* right = packed_.data() + j * kern.cols * a_.cols + k * kern.cols;
        for (std::int64_t r = begin; r < end; r += kern.rows) {
          kern.run(left + (r - begin) * depth, right, depth, tile);
          store(tile, r, std::min<std::int64_t>(kern.rows, end - r), j * kern.cols, k > 0 || add_);
        }
      }
    }
  }

 private:
  void store(const float* tile, std::int64_t row, std::int64_t rows, std::int64_t col, bool add) const {
    const int width = kernel().cols;
    const std::int64_t cols = std::min<std::int64_t>(width, b_.rows - col);
    for (std::int64_t i = 0; i < rows; ++i) {
      float* to = c_ + (row + i) * c_step_ + col;
      const float* from = tile + i * width;
      if (add) {
        for (std::int64_t j = 0; j < cols; ++j) to[j] += alpha_ * from[j];
      } else {
        for (std::int64_t j = 0; j < cols; ++j) to[j] = alpha_ * from[j];
      }
    }
  }

  const MatrixView a_, b_;  ///< b transposed: (columns, depth)
  float* const c_;
  const std::int64_t c_step_;
  const bool add_;
  const float alpha_;
  const bool upper_;
  std::vector<float> packed_;
};

}  // namespace

Result<void> multiply(core::Team& team, const MatrixView& a, const MatrixView& b, float* c, std::int64_t c_step,
                      bool add, float alpha, bool upper) {
  Product product(a, b, c, c_step, add, alpha, upper);
  const int phases[] = {static_cast<int>(product.panels()), static_cast<int>(product.row_blocks())};
  return team.run(
      phases, [&](int phase, int chunk, int) { phase == 0 ? product.pack_panel(chunk) : product.run_block(chunk); });
}

void multiply_here(const MatrixView& a, const MatrixView& b, float* c, std::int64_t c_step, bool add, float alpha) {
  Product product(a, b, c, c_step, add, alpha, false);
  for (std::int64_t j = 0; j < product.panels(); ++j) product.pack_panel(j);
  for (std::int64_t i = 0; i < product.row_blocks(); ++i) product.run_block(i);
}

}  // namespace llminfer::quantize
