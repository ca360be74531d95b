// PendingPanels: panels that are packed when they are needed. Knows how they are packed from pack_panels.hpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include <llminfer/backend.hpp>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu {

/// Panels are packed in units of this many output features: two, which kernels take together.
inline constexpr std::int32_t kUnitFeatures = 2 * kPanelRows;

/// Where panels go that a thread needs and that are not packed yet.
struct PanelRoom {
  std::uint8_t* scratch = nullptr;  ///< the thread's own room for a unit, on a cache line
  bool keep = true;                 ///< they stay, in the weight's memory
};

/// The units of a weight, each packed by the first thread that keeps it. Any number of threads at a time.
class PendingPanels {
 public:
  /// `packed.data` is `panels`, zeros. `source` and `release` as for Backend::prepare_later. Throws std::bad_alloc.
  PendingPanels(const PackedWeightView& packed, std::uint8_t* panels, WeightView source, ReleaseBytes release);

  /// Whether all are packed: the weight can be read like any other.
  bool complete() const noexcept { return left_.load(std::memory_order_acquire) == 0; }
  std::int32_t units() const noexcept { return (panels() + 1) / 2; }
  std::int64_t unit_bytes() const noexcept { return 2 * packed_.layout.bytes; }
  /// A weight of the features of that unit alone. It lies in `room.scratch` if it is not to be kept, or another thread
  /// is packing it.
  PackedWeightView unit(std::int32_t unit, const PanelRoom& room) noexcept;
  /// Packs a unit to stay. False: another thread is packing it.
  bool pack(std::int32_t unit) noexcept;
  /// The next units of at most so many bytes, [first, second), in their order; an empty range at the end. One thread at
  /// a time.
  std::pair<std::int32_t, std::int32_t> take(std::int64_t bytes) noexcept;

 private:
  std::int32_t panels() const noexcept {
    return static_cast<std::int32_t>((packed_.rows + kPanelRows - 1) / kPanelRows);
  }
  const std::uint8_t* data() const noexcept { return reinterpret_cast<const std::uint8_t*>(source_.data.data()); }

  enum State : std::uint8_t { untouched, taken, packed };

  const PackedWeightView packed_;
  std::uint8_t* const panels_;
  const WeightView source_;
  const std::int64_t unit_source_;  ///< bytes
  const ReleaseBytes release_;
  const std::int32_t segment_;                             ///< units whose source is released together
  std::unique_ptr<std::atomic<State>[]> states_;           ///< per unit
  std::unique_ptr<std::atomic<std::int32_t>[]> unpacked_;  ///< per segment: units that are not packed
  std::atomic<std::int32_t> left_;                         ///< segments that have some
  std::int32_t taken_ = 0;                                 ///< by take()
};

}  // namespace llminfer::cpu
