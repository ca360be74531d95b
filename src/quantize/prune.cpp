#include "quantize/prune.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/error.hpp"
#include "quantize/writer.hpp"

namespace llminfer::quantize {

Result<void> prune(core::Team& team, const QuantizeOptions& o, std::int64_t cols, std::span<float> weights,
                   std::span<const float> norms) {
  const std::int64_t rows = static_cast<std::int64_t>(weights.size()) / cols;
  const bool pattern = o.prune_m > 0;
  const std::int64_t size = pattern ? o.prune_m : cols;
  const auto zeros =
      pattern ? std::int64_t{o.prune_n} : static_cast<std::int64_t>(o.sparsity * static_cast<double>(cols));
  std::vector<std::int32_t> orders(weights.size());  // of the columns, least important first; scratch of each row
  return for_rows(team, rows, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      float* w = weights.data() + row * cols;
      std::int32_t* order = orders.data() + row * cols;
      std::iota(order, order + cols, 0);
      const auto score = [&](std::int32_t k) {
        return std::fabs(w[k]) * (norms.empty() ? 1.0f : norms[static_cast<std::size_t>(k)]);
      };
      for (std::int64_t begin = 0; begin + size <= cols; begin += size) {
        std::sort(order + begin, order + begin + size, [&](std::int32_t a, std::int32_t b) {
          const float x = score(a), y = score(b);
          return x != y ? x < y : a < b;
        });
        for (std::int64_t i = 0; i < zeros; ++i) w[order[begin + i]] = 0;
      }
    }
  });
}

}  // namespace llminfer::quantize
