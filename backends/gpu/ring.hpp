// WeightRing: weights that stay in host memory pass through slots of device memory, group by group in the order in
// which a pass reads them, over and over. Copies run on a stream of their own beside the launches that read another
// slot; events alone order the two. Groups in a storage are read into host memory meanwhile, two ahead of the copies.
// Knows nothing of programs or of what the weights are.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backends/gpu/device.hpp"
#include "backends/gpu/weight.hpp"
#include "core/read_ahead.hpp"

namespace llminfer::gpu {

/// Where the weights of groups lie in a slot. Groups are numbered from 0, in the order of PlanOptions::streamed's.
struct RingLayout {
  /// One that is read and one that is filled meanwhile: more would not make the bus any busier.
  static constexpr std::int64_t kMostSlots = 2;

  /// `groups`: as PlanOptions::streamed; `bytes`: of each of those weights.
  RingLayout(std::span<const std::int32_t> groups, std::span<const std::int64_t> bytes);

  std::vector<std::int32_t> group;   ///< per weight; -1: not streamed
  std::vector<std::int64_t> offset;  ///< per weight
  std::int32_t groups = 0;
  std::int64_t slots = 0, slot_bytes = 0;
  std::int64_t bytes() const noexcept { return slots * slot_bytes; }
};

/// Used by one thread. In each pass: fill(); for each group in order enter(), the launches that read it, leave(); at
/// the end finish(), or after a failure reset().
class WeightRing {
 public:
  /// Of pieces that are read at once.
  static constexpr std::int64_t kPieceBytes = std::int64_t{4} << 20;
  /// Of the host memory for groups in storages, the largest of so many bytes.
  static constexpr std::int64_t buffer_bytes(std::int64_t group_bytes) noexcept {
    return static_cast<std::int64_t>(core::ReadAhead::kPlaces) * group_bytes;
  }

  /// `weights`: as in `layout`; those that are streamed outlive the ring. Errors: out_of_memory, device_error.
  static Result<std::unique_ptr<WeightRing>> make(std::shared_ptr<Device> device, RingLayout layout,
                                                  std::span<const GpuWeight* const> weights);
  ~WeightRing();

  /// Enqueues copies to all slots that are read no more, as far as their groups have been read. All others do it, too.
  Result<void> fill();
  /// What Stream::work gets from now on may read the group. It is the one that was entered last, or a later one. Where
  /// that has to be read from a storage, waits for it. Errors: the storage's; cancelled, once `interrupted` is true.
  Result<void> enter(std::int32_t group, const std::function<bool()>& interrupted);
  /// What comes from now on does not read it any more: its slot gets another group, the pass after this one's if need
  /// be, so that copies go on while the host is busy with what is between passes.
  Result<void> leave();
  /// Passes over the groups that were left out.
  Result<void> finish();
  /// Waits for both streams and begins anew. What is being read is read to no end.
  void reset() noexcept;

  /// Where a weight is while its group is in a slot; the slot of the entered group.
  const std::byte* at(std::size_t weight, std::int64_t slot) const noexcept {
    return memory_.at(slot * layout_.slot_bytes + layout_.offset[weight]);
  }
  std::int64_t slot() const noexcept { return slot(used_); }
  std::int64_t slots() const noexcept { return layout_.slots; }
  bool has(std::size_t weight) const noexcept { return layout_.group[weight] >= 0; }
  std::int64_t bytes() const noexcept { return memory_.bytes(); }

 private:
  struct Slot {
    Event filled, read;
  };
  /// Host memory for groups that are in storages: it is read to, and then copied from.
  struct Place {
    std::int64_t turn = -1;  ///< whose group it is for; -1: none
    bool copied = false;     ///< copies were enqueued; `done` follows them
    Event done;
  };
  WeightRing(std::shared_ptr<Device> device, RingLayout layout)
      : device_(std::move(device)), layout_(std::move(layout)) {}
  std::int64_t slot(std::int64_t turn) const noexcept { return turn % layout_.slots; }
  std::size_t group(std::int64_t turn) const noexcept { return static_cast<std::size_t>(turn % layout_.groups); }
  Result<void> make_places();
  /// The place that is for the turn's group, or kPlaces.
  std::size_t place_of(std::int64_t turn) const noexcept;
  Result<void> read_ahead();
  Result<void> wait_for_group(const std::function<bool()>& interrupted);
  std::byte* memory_of(std::size_t place) const noexcept;

  const std::shared_ptr<Device> device_;
  const RingLayout layout_;
  std::vector<std::vector<std::size_t>> members_;  ///< per group
  /// Per group what is read of storages; `to` counts from the place's beginning.
  std::vector<std::vector<core::ReadAhead::Piece>> pieces_;
  std::vector<std::int64_t> place_offset_;  ///< per weight
  std::vector<const GpuWeight*> weights_;
  std::vector<Slot> slots_;
  Buffer memory_;
  std::array<Place, core::ReadAhead::kPlaces> places_;
  Buffer place_memory_;                      ///< of all places
  std::unique_ptr<core::ReadAhead> reader_;  ///< null: no group is in a storage
  // Turns count groups since the last reset: turn t has group t % groups in slot t % slots.
  std::int64_t used_ = 0;    ///< that is read, or will be next
  std::int64_t filled_ = 0;  ///< that will be copied next; used_ <= filled_ <= used_ + slots
  std::int64_t asked_ = 0;   ///< from which on nothing was asked for that is in a storage
  bool entered_ = false;
};

}  // namespace llminfer::gpu
