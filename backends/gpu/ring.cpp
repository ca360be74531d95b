#include "backends/gpu/ring.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "core/error.hpp"

namespace llminfer::gpu {

RingLayout::RingLayout(std::span<const std::int32_t> streamed, std::span<const std::int64_t> bytes)
    : group(bytes.size(), -1), offset(bytes.size(), 0) {
  std::map<std::int32_t, std::int64_t> sizes;
  for (std::size_t i = 0; i < streamed.size(); ++i) {
    if (streamed[i] >= 0)
      offset[i] = std::exchange(sizes[streamed[i]], sizes[streamed[i]] + (bytes[i] + 255) / 256 * 256);
  }
  std::map<std::int32_t, std::int32_t> numbers;
  for (const auto& [number, size] : sizes) {
    numbers[number] = groups++;
    slot_bytes = std::max(slot_bytes, size);
  }
  for (std::size_t i = 0; i < streamed.size(); ++i) {
    if (streamed[i] >= 0) group[i] = numbers[streamed[i]];
  }
  slots = std::min<std::int64_t>(groups, kMostSlots);
}

Result<std::unique_ptr<WeightRing>> WeightRing::make(std::shared_ptr<Device> device, RingLayout layout,
                                                     std::span<const GpuWeight* const> weights) {
  std::unique_ptr<WeightRing> ring(new WeightRing(std::move(device), std::move(layout)));
  const RingLayout& l = ring->layout_;
  ring->weights_.assign(weights.begin(), weights.end());
  ring->members_.resize(static_cast<std::size_t>(l.groups));
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (l.group[i] >= 0) ring->members_[static_cast<std::size_t>(l.group[i])].push_back(i);
  }
  ring->memory_ = LLMINFER_TRY(Buffer::make(ring->device_, l.bytes()));
  for (std::int64_t s = 0; s < l.slots; ++s) {
    Event filled = LLMINFER_TRY(Event::make(ring->device_));
    Event read = LLMINFER_TRY(Event::make(ring->device_));
    ring->slots_.push_back({std::move(filled), std::move(read)});
  }
  return ring;
}

WeightRing::~WeightRing() { reset(); }  // the device reads and writes what is released now

Result<void> WeightRing::fill() {
  for (; filled_ < used_ + layout_.slots; ++filled_) {
    const Slot& to = slots_[static_cast<std::size_t>(slot(filled_))];
    LLMINFER_TRY(to.read.follow(Stream::copies));
    for (const std::size_t i : members_[static_cast<std::size_t>(filled_ % layout_.groups)]) {
      std::byte* const at = memory_.at(slot(filled_) * layout_.slot_bytes + layout_.offset[i]);
      LLMINFER_TRY(device_->copy(at, weights_[i]->data(), weights_[i]->bytes(), Stream::copies));
    }
    LLMINFER_TRY(to.filled.record(Stream::copies));
  }
  return {};
}

Result<void> WeightRing::enter(std::int32_t group) {
  if (entered_ && used_ % layout_.groups == group) return {};
  if (entered_) LLMINFER_TRY(leave());
  while (used_ % layout_.groups != group) LLMINFER_TRY(leave());
  LLMINFER_TRY(fill());
  LLMINFER_TRY(slots_[static_cast<std::size_t>(slot(used_))].filled.follow(Stream::work));
  entered_ = true;
  return {};
}

Result<void> WeightRing::leave() {
  LLMINFER_TRY(fill());
  LLMINFER_TRY(slots_[static_cast<std::size_t>(slot(used_))].read.record(Stream::work));
  entered_ = false;
  ++used_;
  return fill();
}

Result<void> WeightRing::finish() {
  if (entered_) LLMINFER_TRY(leave());
  while (used_ % layout_.groups != 0) LLMINFER_TRY(leave());
  return {};
}

void WeightRing::reset() noexcept {
  for (const Stream stream : {Stream::work, Stream::copies}) {
    (void)core::guarded([&] { return device_->wait(stream); });
  }
  used_ = filled_ = 0;
  entered_ = false;
}

}  // namespace llminfer::gpu
