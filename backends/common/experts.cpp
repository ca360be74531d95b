#include "backends/common/experts.hpp"

#include <algorithm>

namespace llminfer::backend {

void choose_experts(const op::Moe& op, const float* logits, std::int32_t* chosen, float* factors) noexcept {
  const auto experts = static_cast<std::int32_t>(op.gate.size());
  std::int32_t count = 0;
  for (std::int32_t e = 0; e < experts; ++e) {
    std::int32_t at = count;
    while (at > 0 && logits[e] > logits[chosen[at - 1]]) --at;
    if (at == op.used) continue;
    if (count < op.used) ++count;
    std::copy_backward(chosen + at, chosen + count - 1, chosen + count);
    chosen[at] = e;
  }
  const double highest = static_cast<double>(logits[chosen[0]]);
  const auto score = [&](std::int32_t e) {
    const auto x = static_cast<double>(logits[e]);
    return op.scoring == Scoring::sigmoid ? sigmoid(x) : std::exp(x - highest);
  };
  std::sort(chosen, chosen + op.used);
  double sum = 0;
  if (op.normalize) {
    for (std::int32_t j = 0; j < op.used; ++j) sum += score(chosen[j]);
  } else if (op.scoring == Scoring::softmax) {
    for (std::int32_t e = 0; e < experts; ++e) sum += score(e);
  } else {
    sum = 1;
  }
  for (std::int32_t j = 0; j < op.used; ++j) {
    factors[j] = static_cast<float>(score(chosen[j]) / sum * static_cast<double>(op.scale));
  }
}

}  // namespace llminfer::backend
