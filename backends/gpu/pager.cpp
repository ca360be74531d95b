#include "backends/gpu/pager.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "core/error.hpp"

namespace llminfer::gpu {

using core::fail;

std::int32_t PagerSize::most() const noexcept {
  const std::int64_t most = layers < 2 ? resident : blocks() / 2;
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(most, resident, pages));
}

CachePager::CachePager(std::shared_ptr<Device> device, const PagerSize& size, Buffer memory,
                       std::shared_ptr<std::byte> host)
    : device_(std::move(device)),
      size_(size),
      memory_(std::move(memory)),
      host_(std::move(host)),
      pages_(static_cast<std::size_t>(size.pages)),
      block_of_(static_cast<std::size_t>(size.layers) * static_cast<std::size_t>(size.pages), kNone),
      blocks_(static_cast<std::size_t>(size.blocks())),
      slot_(static_cast<std::size_t>(size.layers), kNone),
      fills_(static_cast<std::size_t>(size.layers)) {
  free_.reserve(blocks_.size());
  for (std::size_t block = blocks_.size(); block-- > 0;) free_.push_back(static_cast<std::int32_t>(block));
}

Result<std::unique_ptr<CachePager>> CachePager::make(std::shared_ptr<Device> device, const PagerSize& size,
                                                     std::shared_ptr<std::byte> host) {
  if (size.resident < 1 || size.resident > size.pages || size.blocks() > std::numeric_limits<std::int32_t>::max()) {
    return fail(ErrorCode::invalid_argument, "a cache of ", size.pages, " pages of ", size.layers, " layers, ",
                size.resident, " of them in device memory");
  }
  // Before the tables: a cache that is far too large is refused here.
  Buffer memory = LLMINFER_TRY(Buffer::make(device, size.device_bytes()));
  if (!host) {
    const auto buffer = std::make_shared<Buffer>(LLMINFER_TRY(Buffer::make_host(device, size.host_bytes())));
    host = std::shared_ptr<std::byte>(buffer, buffer->at());
  }
  std::unique_ptr<CachePager> pager(new CachePager(device, size, std::move(memory), std::move(host)));
  Event evicted = LLMINFER_TRY(Event::make(device));
  Event done = LLMINFER_TRY(Event::make(device));
  std::vector<Event> filled, read;
  for (std::int32_t l = 0; l < size.layers; ++l) filled.push_back(LLMINFER_TRY(Event::make(device)));
  for (std::int32_t s = 0; s < kSlots; ++s) read.push_back(LLMINFER_TRY(Event::make(device)));
  pager->events_ = Events{std::move(evicted), std::move(done), std::move(filled), std::move(read)};
  LLMINFER_TRY(device->clear(pager->memory_.at(), size.device_bytes()));
  LLMINFER_TRY(device->wait());
  return pager;
}

CachePager::~CachePager() {  // the device reads and writes what is released now
  for (const Stream stream : {Stream::work, Stream::copies}) {
    (void)core::guarded([&] { return device_->wait(stream); });
  }
}

/// The pages that the runs use. Mutex held.
void CachePager::collect_pages(std::span<const Run> runs, std::size_t group) {
  ++pass_;
  used_.clear();
  for (const Run& run : runs) {
    const std::int32_t end = run.first_position + run.rows;
    const std::span<const std::int32_t> table = run.block_tables[group];
    for (std::int32_t first = 0; first < end; first += kPageTokens) {
      const std::int32_t number = table[static_cast<std::size_t>(first / kPageTokens)];
      if (number < 0) continue;
      Page& page = pages_[static_cast<std::size_t>(number)];
      if (page.pass != pass_) {
        page.pass = pass_;
        page.index = static_cast<std::int32_t>(used_.size());
        page.filled = page.written = false;
        used_.push_back(number);
      }
      page.filled = page.filled || first < run.first_position;
      page.written = page.written || first + kPageTokens > run.first_position;
    }
  }
}

/// All layers are kept if there are blocks for them; else as many as leave room for the slots, spread evenly, so that
/// copies go on while they are computed.
void CachePager::choose_layers() noexcept {
  const auto count = static_cast<std::int64_t>(used_.size());
  const std::int64_t blocks = size_.blocks(), layers = size_.layers;
  const std::int64_t kept = count * layers <= blocks ? layers : blocks / count - kSlots;
  std::int32_t next = 0;
  for (std::int64_t l = 0; l < layers; ++l) {
    const bool keep = (l + 1) * kept / layers != l * kept / layers;
    slot_[static_cast<std::size_t>(l)] = keep ? kNone : next++ % kSlots;
  }
}

/// Blocks to take from their pages, so that the pass has those that it needs: of pages that it does not use, those
/// unused for longest first, then of its own in layers that are not kept. Mutex held.
std::vector<std::int32_t> CachePager::choose_victims() {
  std::int64_t needed = 0;
  bool streams = false;
  for (std::int32_t l = 0; l < size_.layers; ++l) {
    if (streamed(l)) {
      streams = true;
      continue;
    }
    for (const std::int32_t page : used_) needed += block_of_[static_cast<std::size_t>(home(l, page))] == kNone;
  }
  if (streams) needed += kSlots * static_cast<std::int64_t>(used_.size());
  needed -= static_cast<std::int64_t>(free_.size());
  std::vector<std::int32_t> victims;
  const auto take_from = [&](std::int32_t page, bool streamed_only) {
    for (std::int32_t l = 0; l < size_.layers; ++l) {
      const std::int32_t block = block_of_[static_cast<std::size_t>(home(l, page))];
      if (block == kNone || (streamed_only && !streamed(l))) continue;
      victims.push_back(block);
      --needed;
    }
  };
  // A layer that is streamed is not looked for in blocks, so none of it may stay in them.
  for (const std::int32_t page : used_) {
    if (streams) take_from(page, true);
  }
  if (needed <= 0) return victims;
  std::vector<std::int32_t> others;
  for (std::int32_t page = 0; page < size_.pages; ++page) {
    const Page& p = pages_[static_cast<std::size_t>(page)];
    if (p.blocks > 0 && p.pass != pass_) others.push_back(page);
  }
  std::sort(others.begin(), others.end(), [this](std::int32_t a, std::int32_t b) {
    return pages_[static_cast<std::size_t>(a)].pass < pages_[static_cast<std::size_t>(b)].pass;
  });
  for (auto page = others.begin(); page != others.end() && needed > 0; ++page) take_from(*page, false);
  return victims;
}

/// Enqueues these copies, neighbours in one: to host memory, or to the blocks.
Result<void> CachePager::copy(std::vector<Transfer>& transfers, bool to_host) {
  std::sort(transfers.begin(), transfers.end(), [](const Transfer& a, const Transfer& b) { return a.home < b.home; });
  for (std::size_t i = 0; i < transfers.size();) {
    std::size_t count = 1;
    const auto follows = [&](std::size_t j) {
      return transfers[j].home == transfers[j - 1].home + 1 && transfers[j].block == transfers[j - 1].block + 1;
    };
    while (i + count < transfers.size() && follows(i + count)) ++count;
    const std::int64_t bytes = static_cast<std::int64_t>(count) * size_.block_bytes;
    std::byte* const on_host = host(transfers[i].home);
    std::byte* const on_device = device(transfers[i].block);
    copies_ = true;
    LLMINFER_TRY(device_->copy(to_host ? on_host : on_device, to_host ? on_device : on_host, bytes, Stream::copies));
    moved_.fetch_add(bytes, std::memory_order_relaxed);
    i += count;
  }
  return {};
}

/// Takes a block from its page. Mutex held.
void CachePager::release(std::int32_t block) noexcept {
  Block& b = blocks_[static_cast<std::size_t>(block)];
  block_of_[static_cast<std::size_t>(b.home)] = kNone;
  --page_of(b.home).blocks;
  b = Block();
  free_.push_back(block);  // reserved: cannot throw
}

/// Blocks for the layers that are kept, and for the slots. Mutex held; all memory is there.
void CachePager::give_blocks() noexcept {
  const auto take = [this] {
    const std::int32_t block = free_.back();
    free_.pop_back();
    return block;
  };
  bool streams = false;
  for (std::int32_t l = 0; l < size_.layers; ++l) {
    auto& fills = fills_[static_cast<std::size_t>(l)];
    streams = streams || streamed(l);
    for (const std::int32_t number : used_) {
      Page& page = pages_[static_cast<std::size_t>(number)];
      const std::int64_t at = home(l, number);
      std::int32_t& block = block_of_[static_cast<std::size_t>(at)];
      if (streamed(l)) {
        if (page.filled) fills.push_back({at, kNone});
        continue;
      }
      if (block == kNone) {
        block = take();
        blocks_[static_cast<std::size_t>(block)].home = at;
        ++page.blocks;
        if (page.filled) fills.push_back({at, block});
      }
      if (page.written) blocks_[static_cast<std::size_t>(block)].dirty = true;
    }
  }
  for (auto& blocks : slot_blocks_) {
    for (std::size_t i = 0; streams && i < used_.size(); ++i) blocks.push_back(take());
  }
  for (std::int32_t l = 0; l < size_.layers; ++l) {
    if (!streamed(l)) continue;
    const auto& blocks = slot_blocks_[slot_[static_cast<std::size_t>(l)]];
    for (Transfer& fill : fills_[static_cast<std::size_t>(l)]) {
      fill.block = blocks[static_cast<std::size_t>(page_of(fill.home).index)];
    }
  }
}

Result<void> CachePager::begin(std::span<const Run> runs, std::size_t group) {
  const std::lock_guard lock(mutex_);
  if (broken_) return core::copy_of(*broken_);
  filled_ = size_.layers;  // nothing to abandon so far
  copies_ = evicted_ = false;
  collect_pages(runs, group);
  if (used_.size() > static_cast<std::size_t>(size_.most())) {
    return fail(ErrorCode::invalid_argument, "the pass uses ", used_.size(),
                " cache pages; device memory has room for ", size_.most(), " at most");
  }
  choose_layers();
  // What may fail comes before any change.
  const std::vector<std::int32_t> victims = choose_victims();
  transfers_.clear();
  for (const std::int32_t block : victims) {
    const Block& b = blocks_[static_cast<std::size_t>(block)];
    if (b.dirty) transfers_.push_back({b.home, block});
  }
  for (auto& fills : fills_) {
    fills.clear();
    fills.reserve(used_.size());
  }
  for (auto& blocks : slot_blocks_) blocks.reserve(used_.size());
  transfers_.reserve(used_.size());
  LLMINFER_TRY(copy(transfers_, true));
  if (copies_) LLMINFER_TRY(events_->evicted.record(Stream::copies));

  evicted_ = copies_;
  for (const std::int32_t block : victims) release(block);
  give_blocks();
  entered_ = filled_ = slots_filled_ = slots_left_ = 0;
  return {};
}

std::int32_t CachePager::block(std::int32_t layer, std::int32_t page) const noexcept {
  if (!streamed(layer)) return block_of_[static_cast<std::size_t>(home(layer, page))];
  const std::int32_t index = pages_[static_cast<std::size_t>(page)].index;
  return slot_blocks_[slot_[static_cast<std::size_t>(layer)]][static_cast<std::size_t>(index)];
}

/// Enqueues what the layer gets. Its slot is free: leave() of the layer before in it has seen to that.
Result<void> CachePager::fill(std::int32_t layer) {
  if (!waits_for_copies(layer)) return {};
  slots_filled_ += streamed(layer);
  LLMINFER_TRY(copy(fills_[static_cast<std::size_t>(layer)], false));
  return events_->filled[static_cast<std::size_t>(layer)].record(Stream::copies);
}

/// Enqueues copies for the layers that come next: as far ahead as slots are free, and no further than the bus is kept
/// busy by, since others wait for it, too.
Result<void> CachePager::fill_ahead() {
  for (; filled_ < size_.layers; ++filled_) {
    if (streamed(filled_) && slots_filled_ == slots_left_ + kSlots) break;
    if (waits_for_copies(filled_) && filled_ > entered_ + kAhead && !streamed(filled_)) break;
    LLMINFER_TRY(fill(filled_));
  }
  return {};
}

Result<void> CachePager::enter(std::int32_t layer) {
  if (layer != entered_) {
    return fail(ErrorCode::invalid_argument, "layer ", layer, " of the cache is used after layer ", entered_ - 1,
                "; where pages lie in host memory, layers are numbered in the order in which they are computed");
  }
  LLMINFER_TRY(fill_ahead());
  if (std::exchange(evicted_, false)) LLMINFER_TRY(events_->evicted.follow(Stream::work));
  if (waits_for_copies(layer)) {
    LLMINFER_TRY(events_->filled[static_cast<std::size_t>(layer)].follow(Stream::work));
  }
  ++entered_;
  return {};
}

Result<void> CachePager::leave(std::int32_t layer) {
  if (streamed(layer)) {
    const std::int32_t slot = slot_[static_cast<std::size_t>(layer)];
    const Event& read = events_->read[static_cast<std::size_t>(slot)];
    LLMINFER_TRY(read.record(Stream::work));
    transfers_.clear();
    for (const std::int32_t page : used_) {
      if (pages_[static_cast<std::size_t>(page)].written) transfers_.push_back({home(layer, page), block(layer, page)});
    }
    LLMINFER_TRY(read.follow(Stream::copies));
    LLMINFER_TRY(copy(transfers_, true));
    ++slots_left_;
  }
  return fill_ahead();
}

/// Mutex held.
void CachePager::take_slots_back() noexcept {
  for (std::int32_t slot = kSlots; slot-- > 0; slot_blocks_[slot].clear()) {  // so that the next pass gets neighbours
    free_.insert(free_.end(), slot_blocks_[slot].rbegin(), slot_blocks_[slot].rend());
  }
}

Result<void> CachePager::finish() {
  if (filled_ < size_.layers) return fail(ErrorCode::internal, "a pass has left out layers of its cache");
  if (copies_) {
    LLMINFER_TRY(events_->done.record(Stream::copies));
    LLMINFER_TRY(events_->done.follow(Stream::work));
  }
  const std::lock_guard lock(mutex_);
  take_slots_back();
  filled_ = size_.layers;
  return {};
}

void CachePager::abandon(const Result<void>& waited) noexcept {
  auto copied = core::guarded([&] { return device_->wait(Stream::copies); });
  const std::lock_guard lock(mutex_);
  if (copies_ && !broken_) {
    if (!waited) broken_ = core::copy_of(waited.error());
    if (!copied) broken_ = std::move(copied).error();
  }
  for (; filled_ < size_.layers; ++filled_) {  // blocks that have not got what their pages hold
    if (streamed(filled_)) continue;
    for (const Transfer& fill : fills_[static_cast<std::size_t>(filled_)]) {
      if (blocks_[static_cast<std::size_t>(fill.block)].home == fill.home) release(fill.block);
    }
  }
  take_slots_back();
}

void CachePager::forget(std::int32_t page) noexcept {
  const std::lock_guard lock(mutex_);
  for (std::int32_t l = 0; l < size_.layers && pages_[static_cast<std::size_t>(page)].blocks > 0; ++l) {
    if (const std::int32_t block = block_of_[static_cast<std::size_t>(home(l, page))]; block != kNone) release(block);
  }
}

Result<void> CachePager::copy_page(std::int32_t from, std::int32_t to) {
  {
    const std::lock_guard lock(mutex_);
    if (broken_) return core::copy_of(*broken_);
    for (std::int32_t l = 0; l < size_.layers; ++l) {
      const std::int32_t block = block_of_[static_cast<std::size_t>(home(l, from))];
      if (block != kNone && blocks_[static_cast<std::size_t>(block)].dirty) {
        LLMINFER_TRY(device_->copy(host(home(l, to)), device(block), size_.block_bytes));
        moved_.fetch_add(size_.block_bytes, std::memory_order_relaxed);
      } else {
        std::memcpy(host(home(l, to)), host(home(l, from)), static_cast<std::size_t>(size_.block_bytes));
      }
    }
    LLMINFER_TRY(device_->wait());
  }
  forget(to);
  return {};
}

Result<void> CachePager::read(std::int32_t page, std::byte* out) {
  const std::lock_guard lock(mutex_);
  if (broken_) return core::copy_of(*broken_);
  for (std::int32_t l = 0; l < size_.layers; ++l, out += size_.block_bytes) {
    const std::int32_t block = block_of_[static_cast<std::size_t>(home(l, page))];
    if (block != kNone) {
      LLMINFER_TRY(device_->copy(out, device(block), size_.block_bytes));
    } else {
      std::memcpy(out, host(home(l, page)), static_cast<std::size_t>(size_.block_bytes));
    }
  }
  return device_->wait();
}

void CachePager::write(std::int32_t page, const std::byte* in) noexcept {
  for (std::int32_t l = 0; l < size_.layers; ++l, in += size_.block_bytes) {
    std::memcpy(host(home(l, page)), in, static_cast<std::size_t>(size_.block_bytes));
  }
  forget(page);
}

}  // namespace llminfer::gpu
