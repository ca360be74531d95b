#include "backends/cpu/pending_panels.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "backends/cpu/pack_panels.hpp"

namespace llminfer::cpu {
namespace {

/// Of the source, that are mapped and released together.
constexpr std::int64_t kSegmentBytes = std::int64_t{1} << 20;

/// Has a file's mapping show these bytes: at once this is cheaper than a few pages at each fault, and what it does not
/// show cannot be prefetched.
void populate([[maybe_unused]] const std::uint8_t* from, [[maybe_unused]] std::int64_t bytes) {
#ifdef MADV_POPULATE_READ
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(from) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(from + bytes);
  (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ);  // a wish, of Linux 5.14 and later
#endif
}

}  // namespace

PendingPanels::PendingPanels(const PackedWeightView& packed, std::uint8_t* panels, WeightView source,
                             ReleaseBytes release)
    : packed_(packed),
      panels_(panels),
      source_(std::move(source)),
      unit_source_(static_cast<std::int64_t>(source_.data.size()) / packed.rows * kUnitFeatures),
      release_(std::move(release)),
      segment_(static_cast<std::int32_t>(std::clamp<std::int64_t>(kSegmentBytes / unit_source_, 1, units()))),
      states_(std::make_unique<std::atomic<State>[]>(static_cast<std::size_t>(units()))),
      left_((units() + segment_ - 1) / segment_) {
  unpacked_ = std::make_unique<std::atomic<std::int32_t>[]>(static_cast<std::size_t>(left_));
  for (std::int32_t i = 0; i < left_; ++i) {
    unpacked_[static_cast<std::size_t>(i)] = std::min(segment_, units() - i * segment_);
  }
}

bool PendingPanels::pack(std::int32_t unit) noexcept {
  std::atomic<State>& state = states_[static_cast<std::size_t>(unit)];
  State seen = untouched;
  if (!state.compare_exchange_strong(seen, taken, std::memory_order_acquire)) return seen == packed;
  write_panels(packed_, source_.type, data(), 2 * unit, std::min(2 * unit + 2, panels()), panels_);
  state.store(packed, std::memory_order_release);
  const std::int32_t segment = unit / segment_;
  if (unpacked_[static_cast<std::size_t>(segment)].fetch_sub(1, std::memory_order_acq_rel) > 1) return true;
  if (release_) {
    const auto bytes = static_cast<std::size_t>(segment_ * unit_source_);
    const std::size_t begin = static_cast<std::size_t>(segment) * bytes;
    release_(begin, std::min(bytes, source_.data.size() - begin));
  }
  left_.fetch_sub(1, std::memory_order_acq_rel);
  return true;
}

PackedWeightView PendingPanels::unit(std::int32_t unit, const PanelRoom& room) noexcept {
  PackedWeightView view = packed_;
  view.rows = std::min<std::int64_t>(kUnitFeatures, packed_.rows - std::int64_t{unit} * kUnitFeatures);
  const bool stays =
      room.keep ? pack(unit) : states_[static_cast<std::size_t>(unit)].load(std::memory_order_acquire) == packed;
  if (stays) {
    view.data = panels_ + 2 * unit * packed_.layout.bytes;
    return view;
  }
  if (unit % segment_ == 0) {
    const std::int64_t left = static_cast<std::int64_t>(source_.data.size()) - unit * unit_source_;
    populate(data() + unit * unit_source_, std::min(segment_ * unit_source_, left));
  }
  const std::int32_t count = std::min(2, panels() - 2 * unit);
  std::memset(room.scratch, 0, static_cast<std::size_t>(count * packed_.layout.bytes));
  view.data = room.scratch;
  write_panels(view, source_.type, data() + unit * unit_source_, 0, count, room.scratch);
  return view;
}

std::pair<std::int32_t, std::int32_t> PendingPanels::take(std::int64_t bytes) noexcept {
  const std::int32_t first = taken_;
  taken_ += static_cast<std::int32_t>(
      std::min<std::int64_t>(std::max<std::int64_t>(bytes / unit_bytes(), 1), units() - first));
  return {first, taken_};
}

}  // namespace llminfer::cpu
