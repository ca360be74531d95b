#include "engine/row_candidates.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include "engine/sampler_steps.hpp"

namespace llminfer::inline v0::engine {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr std::size_t kBlock = 512;
/// What any 64-bit processor computes at once.
using Doubles [[gnu::vector_size(16)]] = double;
using Words [[gnu::vector_size(16)]] = std::uint64_t;

/// e^x for x <= 0, relative error below 2^-46; less than 2^-1000 where it is less than that, and for NaN. Cody and
/// Waite's reduction to 2^n * e^r, |r| <= ln(2) / 2, and e^r as its Taylor series.
[[gnu::always_inline]] inline Doubles exp_of(Doubles x) {
  constexpr double kLog2E = 0x1.71547652b82fep+0, kLn2High = 0x1.62e42fefa3800p-1, kLn2Low = 0x1.ef35793c76730p-45;
  constexpr double kRound = 0x1.8p52;  // added to a number, rounds it to an integer
  const Doubles least = {-700.0, -700.0};
  x = x > least ? x : least;
  const Doubles shifted = x * kLog2E + kRound, n = shifted - kRound, r = (x - n * kLn2High) - n * kLn2Low;
  Doubles e = r * (1.0 / 39916800) + 1.0 / 3628800;
  e = e * r + 1.0 / 362880;
  e = e * r + 1.0 / 40320;
  e = e * r + 1.0 / 5040;
  e = e * r + 1.0 / 720;
  e = e * r + 1.0 / 120;
  e = e * r + 1.0 / 24;
  e = e * r + 1.0 / 6;
  e = e * r + 0.5;
  e = e * r + 1.0;
  e = e * r + 1.0;
  return std::bit_cast<Doubles>(std::bit_cast<Words>(e) + (std::bit_cast<Words>(shifted) << 52));
}

double sum_of_exp(std::span<const float> logits, double most, double scale) {
  const auto weights = [&](float a, float b) __attribute__((always_inline)) {
    return exp_of((Doubles{a, b} - most) * scale);
  };
  Doubles even = {}, odd = {};
  std::size_t i = 0;
  for (; i + 4 <= logits.size(); i += 4) {
    even += weights(logits[i], logits[i + 1]);
    odd += weights(logits[i + 2], logits[i + 3]);
  }
  for (; i < logits.size(); ++i) even += weights(logits[i], kNone);
  even += odd;
  return even[0] + even[1];
}

}  // namespace

/// The count best blocks have as many logits that are no less than the worst of them: no other block has any of the
/// best.
void RowScan::find_best(std::span<const float> logits, std::size_t count) {
  best_.clear();
  order_ = block_best_;
  float least = kNone;
  if (count < order_.size()) {
    const auto nth = order_.begin() + static_cast<std::ptrdiff_t>(count) - 1;
    std::nth_element(order_.begin(), nth, order_.end(), std::greater<>());
    least = *nth;
  }
  for (std::size_t block = 0; block < block_best_.size(); ++block) {
    if (!(block_best_[block] >= least)) continue;
    const std::size_t begin = block * kBlock, end = std::min(logits.size(), begin + kBlock);
    for (std::size_t i = begin; i < end; ++i) {
      if (logits[i] >= least && logits[i] > kNone) best_.push_back({static_cast<std::int32_t>(i), logits[i]});
    }
  }
  const auto better = [](const TokenLogit& a, const TokenLogit& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  };
  if (best_.size() > count) {
    std::nth_element(best_.begin(), best_.begin() + static_cast<std::ptrdiff_t>(count), best_.end(), better);
  }
  best_.resize(std::min(best_.size(), count));
  std::sort(best_.begin(), best_.end(), better);
  best_.resize(count);
}

RowCandidates RowScan::find(std::span<const float> logits, const CandidateWish& wish) {
  const std::size_t blocks = (logits.size() + kBlock - 1) / kBlock;
  const auto block_of = [&](std::size_t block) {
    return logits.subspan(block * kBlock, std::min(kBlock, logits.size() - block * kBlock));
  };
  block_best_.resize(blocks);
  for (std::size_t b = 0; b < blocks; ++b) block_best_[b] = greatest(block_of(b));
  find_best(logits, static_cast<std::size_t>(wish.count));
  RowCandidates row{best_};
  const double most = static_cast<double>(best_.front().logit);
  if (wish.sum) {
    double sum = 0;
    for (std::size_t b = 0; b < blocks; ++b) sum += sum_of_exp(block_of(b), most, 1.0);
    row.sum = sum;
  }
  if (wish.temperature > 0) {
    const double scale = 1.0 / wish.temperature;
    DrawnToken drawn;
    block_sums_.resize(blocks);
    for (std::size_t b = 0; b < blocks; ++b) drawn.sum += block_sums_[b] = sum_of_exp(block_of(b), most, scale);
    const double target = wish.place * drawn.sum;
    std::size_t block = 0;
    for (; block < blocks && drawn.below + block_sums_[block] <= target; ++block) drawn.below += block_sums_[block];
    for (std::size_t i = block * kBlock; block < blocks && i < std::min(logits.size(), (block + 1) * kBlock); ++i) {
      drawn.weight = sum_of_exp(logits.subspan(i, 1), most, scale);
      if (drawn.below + drawn.weight > target) {
        drawn.token = static_cast<std::int32_t>(i);
        drawn.logit = logits[i];
        break;
      }
      drawn.below += drawn.weight;
    }
    row.drawn = drawn;
  }
  return row;
}

}  // namespace llminfer::inline v0::engine
