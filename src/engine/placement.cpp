#include "engine/placement.hpp"

#include <algorithm>
#include <cstdio>
#include <string>

#include "core/error.hpp"

namespace llminfer::inline v0::engine {
namespace {

using core::fail;

std::string mebibytes(std::int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

class Placement {
 public:
  Placement(std::span<const LayerShare> shares, std::int32_t layers, const RangeBytes& bytes)
      : shares_(shares), layers_(layers), end_(layers + 2), bytes_(bytes), places_(shares.size() + 1, 0) {}

  Result<std::vector<std::int32_t>> run() {
    LLMINFER_TRY(check());
    const std::size_t count = shares_.size();
    // From both ends towards the share that gets the rest; if there is none, from the front.
    places_.back() = end_;
    for (std::size_t i = 0; i < rest_; ++i) places_[i + 1] = LLMINFER_TRY(end_of(i));
    for (std::size_t i = count; i-- > rest_ + 1;) places_[i] = LLMINFER_TRY(begin_of(i));
    if (places_.back() < end_) return no_place();
    for (std::size_t i = 0; i < count; ++i) {
      const std::int64_t limit = shares_[i].memory;
      if (limit == 0 || !shares_[i].layers || shares_[i].stream) continue;
      const std::int64_t bytes = LLMINFER_TRY(bytes_(i, places_[i], places_[i + 1]));
      if (bytes <= limit) continue;
      return fail(ErrorCode::out_of_memory, "EngineOptions::split[", i, "]: ", *shares_[i].layers, " layers take ",
                  mebibytes(bytes), ", ", mebibytes(bytes - limit), " more than its limit");
    }
    return places_;
  }

 private:
  std::int32_t counted(std::size_t from, std::size_t to) const {
    std::int32_t sum = 0;
    for (std::size_t i = from; i < to; ++i) sum += shares_[i].layers.value_or(0);
    return sum;
  }
  bool any_counted(std::size_t from, std::size_t to) const {
    return std::any_of(shares_.begin() + static_cast<long>(from), shares_.begin() + static_cast<long>(to),
                       [](const LayerShare& share) { return share.layers.has_value(); });
  }

  Result<void> check() {
    rest_ = shares_.size();
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < shares_.size(); ++i) {
      const LayerShare& share = shares_[i];
      if (share.memory < 0) return error(i, "memory is ", share.memory, ", expected 0 or more");
      if (share.host_memory < 0) return error(i, "host_memory is ", share.host_memory, ", expected 0 or more");
      if (share.layers && (*share.layers < 0 || *share.layers > layers_)) {
        return error(i, "layers is ", *share.layers, ", expected 0 to ", layers_);
      }
      if (share.stream && share.memory == 0) return error(i, "stream without a memory limit");
      sum += share.layers.value_or(0);
      if (share.layers || (share.memory > 0 && !share.stream)) continue;
      if (rest_ < i) {
        return error(i, "gets what the others leave, like [", rest_, "]; expected one such at most");
      }
      rest_ = i;
    }
    const bool all = std::all_of(shares_.begin(), shares_.end(), [](const auto& share) { return share.layers; });
    if (sum > layers_ || (all && sum != layers_)) {
      return fail(ErrorCode::invalid_argument, "EngineOptions::split gives out ", sum, " layers; the model has ",
                  layers_);
    }
    return {};
  }
  template <class... Parts>
  static Error error(std::size_t share, const Parts&... parts) {
    return fail(ErrorCode::invalid_argument, "EngineOptions::split[", share, "]: ", parts...);
  }

  /// Where a share ends that begins at its place already.
  Result<std::int32_t> end_of(std::size_t share) const {
    const std::int32_t begin = places_[share];
    const bool more_counted = any_counted(share + 1, shares_.size());
    if (shares_[share].layers) {
      const std::int32_t end = std::max(begin, 1) + *shares_[share].layers;
      return end == end_ - 1 && share + 1 == shares_.size() ? end_ : end;
    }
    const std::int32_t most = more_counted ? end_ - 1 - counted(share + 1, shares_.size()) : end_;
    std::int32_t fits = begin, too_many = most + 1;  // bytes grow with the range
    while (too_many - fits > 1) {
      const std::int32_t end = (fits + too_many) / 2;
      const bool fit = LLMINFER_TRY(bytes_(share, begin, end)) <= shares_[share].memory;
      (fit ? fits : too_many) = end;
    }
    return fits;
  }

  /// Where a share begins that ends at the next one's place already.
  Result<std::int32_t> begin_of(std::size_t share) const {
    const std::int32_t end = places_[share + 1];
    if (shares_[share].layers) return std::min(end, end_ - 1) - *shares_[share].layers;
    std::int32_t least = places_[rest_];
    if (any_counted(rest_ + 1, share)) least = std::max(least, 1) + counted(rest_ + 1, share);
    std::int32_t fits = end, too_many = least - 1;
    while (fits - too_many > 1) {
      const std::int32_t begin = (fits + too_many + 1) / 2;
      const bool fit = LLMINFER_TRY(bytes_(share, begin, end)) <= shares_[share].memory;
      (fit ? fits : too_many) = begin;
    }
    return fits;
  }

  /// The error of a model that goes beyond the limits, with what the last limited share lacks to hold it.
  Error no_place() const {
    std::size_t limited = shares_.size() - 1;
    while (shares_[limited].layers) --limited;
    const std::int32_t missing = (shares_.back().layers ? end_ - 1 : end_) - places_.back();
    const std::int32_t layers = end_ - 1 - std::max(places_.back(), 1);
    auto bytes = bytes_(limited, places_[limited], places_[limited + 1] + missing);
    if (!bytes) return std::move(bytes).error();
    return fail(
        ErrorCode::out_of_memory, "EngineOptions::split: ",
        layers > 0 ? std::to_string(layers) + " of " + std::to_string(layers_) + " layers" : "the output matrix",
        " have no place; [", limited, "] would have to hold ", mebibytes(*bytes), ", ",
        mebibytes(*bytes - shares_[limited].memory), " more than its limit");
  }

  const std::span<const LayerShare> shares_;
  const std::int32_t layers_, end_;
  const RangeBytes& bytes_;
  std::vector<std::int32_t> places_;
  std::size_t rest_ = 0;  ///< the share that takes what is left; none: their number
};

}  // namespace
Result<std::vector<std::int32_t>> place_layers(std::span<const LayerShare> shares, std::int32_t layers,
                                               const RangeBytes& bytes) {
  return Placement(shares, layers, bytes).run();
}

}  // namespace llminfer::inline v0::engine
