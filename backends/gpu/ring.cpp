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
  LLMINFER_TRY(ring->make_places());
  return ring;
}

/// Of groups in storages, if there are any.
Result<void> WeightRing::make_places() {
  pieces_.resize(members_.size());
  place_offset_.resize(weights_.size());
  std::int64_t largest = 0;
  for (std::size_t g = 0; g < members_.size(); ++g) {
    std::int64_t bytes = 0;
    for (const std::size_t i : members_[g]) {
      if (!weights_[i]->in_storage()) continue;
      const WeightHome& home = weights_[i]->home();
      place_offset_[i] = bytes;
      for (std::int64_t at = 0; at < weights_[i]->bytes(); at += kPieceBytes) {
        const std::int64_t piece = std::min(kPieceBytes, weights_[i]->bytes() - at);
        pieces_[g].push_back({home.storage.get(), home.offset + at, bytes + at, piece});
      }
      bytes += weights_[i]->bytes();
    }
    largest = std::max(largest, bytes);
  }
  if (largest == 0) return {};
  place_memory_ = LLMINFER_TRY(Buffer::make_host(device_, buffer_bytes(largest)));
  for (Place& place : places_) place.done = LLMINFER_TRY(Event::make(device_));
  reader_ = LLMINFER_TRY(core::ReadAhead::make());
  return {};
}

WeightRing::~WeightRing() { reset(); }  // the device reads and writes what is released now

std::byte* WeightRing::memory_of(std::size_t place) const noexcept {
  return place_memory_.at(static_cast<std::int64_t>(place) * place_memory_.bytes() / std::ssize(places_));
}

std::size_t WeightRing::place_of(std::int64_t turn) const noexcept {
  const auto found = std::find_if(places_.begin(), places_.end(), [&](const Place& p) { return p.turn == turn; });
  return static_cast<std::size_t>(found - places_.begin());
}

/// Begins to read groups to all places that are copied from no more.
Result<void> WeightRing::read_ahead() {
  if (!reader_) return {};
  for (Place& place : places_) {
    if (place.copied && LLMINFER_TRY(place.done.reached())) place.copied = false, place.turn = -1;
  }
  for (std::size_t p = place_of(-1); p < places_.size(); p = place_of(-1)) {
    while (pieces_[group(asked_)].empty()) ++asked_;
    places_[p].turn = asked_;
    reader_->start(p, pieces_[group(asked_)], memory_of(p));
    ++asked_;
  }
  return {};
}

/// Until what used_ needs of storages was read.
Result<void> WeightRing::wait_for_group(const std::function<bool()>& interrupted) {
  LLMINFER_TRY(read_ahead());
  while (place_of(used_) == places_.size()) {  // it waits for the end of copies
    const auto earlier = [](const Place& a, const Place& b) { return a.turn < b.turn; };
    LLMINFER_TRY(std::min_element(places_.begin(), places_.end(), earlier)->done.wait());
    LLMINFER_TRY(read_ahead());
  }
  return reader_->wait(place_of(used_), interrupted);
}

Result<void> WeightRing::fill() {
  LLMINFER_TRY(read_ahead());
  for (; filled_ < used_ + layout_.slots; ++filled_) {
    const std::size_t g = group(filled_), p = pieces_[g].empty() ? places_.size() : place_of(filled_);
    if (!pieces_[g].empty() && (p == places_.size() || !reader_->ready(p))) return {};
    const Slot& to = slots_[static_cast<std::size_t>(slot(filled_))];
    LLMINFER_TRY(to.read.follow(Stream::copies));
    for (const std::size_t i : members_[g]) {
      const std::byte* const from = weights_[i]->in_storage() ? memory_of(p) + place_offset_[i] : weights_[i]->data();
      std::byte* const at = memory_.at(slot(filled_) * layout_.slot_bytes + layout_.offset[i]);
      LLMINFER_TRY(device_->copy(at, from, weights_[i]->bytes(), Stream::copies));
    }
    LLMINFER_TRY(to.filled.record(Stream::copies));
    if (p == places_.size()) continue;
    LLMINFER_TRY(places_[p].done.record(Stream::copies));
    places_[p].copied = true;
  }
  return {};
}

Result<void> WeightRing::enter(std::int32_t group, const std::function<bool()>& interrupted) {
  if (entered_ && used_ % layout_.groups == group) return {};
  if (entered_) LLMINFER_TRY(leave());
  while (used_ % layout_.groups != group) LLMINFER_TRY(leave());
  LLMINFER_TRY(fill());
  if (filled_ == used_) {
    LLMINFER_TRY(wait_for_group(interrupted));
    LLMINFER_TRY(fill());
  }
  LLMINFER_TRY(slots_[static_cast<std::size_t>(slot(used_))].filled.follow(Stream::work));
  entered_ = true;
  return {};
}

Result<void> WeightRing::leave() {
  LLMINFER_TRY(fill());
  if (filled_ == used_) {  // nobody needs what is not there yet
    if (const std::size_t p = place_of(used_); p < places_.size()) {
      reader_->stop(p);
      places_[p].turn = -1;
    }
    asked_ = std::max(asked_, ++filled_);
  }
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
  if (reader_) {
    for (std::size_t p = 0; p < places_.size(); ++p) {
      reader_->stop(p);
      places_[p].turn = -1, places_[p].copied = false;
    }
  }
  used_ = filled_ = asked_ = 0;
  entered_ = false;
}

}  // namespace llminfer::gpu
