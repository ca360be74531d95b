// CachePager: a cache that is larger than the device memory for it. The home of its pages is host memory; device memory
// has blocks, each of which holds one layer of one page for a while. Copies run on a stream of their own beside the
// launches that use other layers; events alone order the two. Knows nothing of what a page holds.
//
// A pass whose pages fit finds them in their blocks, or has them copied there, layer by layer, ahead of the launches;
// blocks that were written go home when others need the room, those that no pass has used for longest first. A pass
// with more pages than fit keeps some layers in their blocks, and the others pass through two slots, as weights do
// through a WeightRing (FlexGen, arXiv:2303.06865).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include <llminfer/backend.hpp>

#include "backends/gpu/device.hpp"

namespace llminfer::gpu {

struct PagerSize {
  std::int32_t layers = 0, pages = 0;
  std::int32_t resident = 0;  ///< pages whose layers device memory has blocks for, 1 to `pages`
  std::int64_t block_bytes = 0;

  std::int64_t blocks() const noexcept { return std::int64_t{layers} * resident; }
  std::int64_t device_bytes() const noexcept { return blocks() * block_bytes; }
  std::int64_t host_bytes() const noexcept { return std::int64_t{layers} * pages * block_bytes; }
  /// Pages of one pass at most: two layers of them have to fit.
  std::int32_t most() const noexcept;
};

/// Used by one thread, but for forget() and moved_bytes(). In each pass: begin(); for each layer in order enter(), the
/// launches that read and write it, leave(); at the end finish(), or after a failure abandon(). Once finish() was
/// called, what comes on Stream::work comes after all copies of the pass.
class CachePager {
 public:
  /// `host`: PagerSize::host_bytes() for all pages, or null. Errors: out_of_memory, device_error.
  static Result<std::unique_ptr<CachePager>> make(std::shared_ptr<Device> device, const PagerSize& size,
                                                  std::shared_ptr<std::byte> host = nullptr);
  ~CachePager();

  const PagerSize& size() const noexcept { return size_; }
  std::byte* blocks() const noexcept { return memory_.at(); }  ///< device memory [blocks][block_bytes]

  /// Finds blocks for the pages of these runs, whose tables are those of the group. The pass before has ended.
  /// Errors: invalid_argument (more pages than PagerSize::most()), out_of_memory, device_error; then nothing has begun.
  Result<void> begin(std::span<const Run> runs, std::size_t group);
  /// Where a layer of one of the pass's pages is, or will be when the layer is entered.
  std::int32_t block(std::int32_t layer, std::int32_t page) const noexcept;
  /// Errors: invalid_argument, if the layer is not the next one.
  Result<void> enter(std::int32_t layer);
  Result<void> leave(std::int32_t layer);
  Result<void> finish();
  /// Waits for the copies; `waited`: how Stream::work has ended. Pages are what they were before the pass, but for the
  /// tokens that it was to add; unless copies have failed: then all that follows has that error.
  void abandon(const Result<void>& waited) noexcept;

  /// No sequence has the page any more. Any thread, but not while a pass uses the page.
  void forget(std::int32_t page) noexcept;

  // Between passes; they wait.
  Result<void> copy_page(std::int32_t from, std::int32_t to);
  /// All layers of a page, [layers][block_bytes] in memory of the host.
  Result<void> read(std::int32_t page, std::byte* out);
  void write(std::int32_t page, const std::byte* in) noexcept;

  /// Bytes that were copied between host and device since the cache was made. Any thread.
  std::int64_t moved_bytes() const noexcept { return moved_.load(std::memory_order_relaxed); }

 private:
  static constexpr std::int32_t kNone = -1;
  static constexpr std::int32_t kSlots = 2;
  /// Layers that are copied ahead of the one whose launches are enqueued.
  static constexpr std::int32_t kAhead = 2;

  /// A layer of a page, as its place in host memory, [layer][page], and a block for it.
  struct Transfer {
    std::int64_t home;
    std::int32_t block;
  };
  struct Page {
    std::uint64_t pass = 0;   ///< the last one that used it
    std::int32_t index = 0;   ///< in that pass
    std::int32_t blocks = 0;  ///< that it has
    bool filled = false;      ///< in that pass: holds tokens of earlier ones
    bool written = false;     ///< in that pass: gets tokens
  };
  struct Block {
    std::int64_t home = kNone;  ///< whose it is
    bool dirty = false;         ///< differs from host memory
  };

  CachePager(std::shared_ptr<Device> device, const PagerSize& size, Buffer memory, std::shared_ptr<std::byte> host);
  std::int64_t home(std::int32_t layer, std::int32_t page) const noexcept {
    return std::int64_t{layer} * size_.pages + page;
  }
  Page& page_of(std::int64_t home) noexcept { return pages_[static_cast<std::size_t>(home % size_.pages)]; }
  std::byte* host(std::int64_t home) const noexcept { return host_.get() + home * size_.block_bytes; }
  std::byte* device(std::int32_t block) const noexcept { return memory_.at(block * size_.block_bytes); }
  bool streamed(std::int32_t layer) const noexcept { return slot_[static_cast<std::size_t>(layer)] != kNone; }
  bool waits_for_copies(std::int32_t layer) const noexcept {
    return streamed(layer) || !fills_[static_cast<std::size_t>(layer)].empty();
  }
  void collect_pages(std::span<const Run> runs, std::size_t group);
  void choose_layers() noexcept;
  std::vector<std::int32_t> choose_victims();
  Result<void> copy(std::vector<Transfer>& transfers, bool to_host);
  void release(std::int32_t block) noexcept;
  void give_blocks() noexcept;
  void take_slots_back() noexcept;
  Result<void> fill(std::int32_t layer);
  Result<void> fill_ahead();

  const std::shared_ptr<Device> device_;
  const PagerSize size_;
  Buffer memory_;
  const std::shared_ptr<std::byte> host_;
  std::atomic<std::int64_t> moved_{0};

  std::mutex mutex_;  ///< guards what follows, but for what only changes where the pass begins or ends
  std::vector<Page> pages_;
  std::vector<std::int32_t> block_of_;  ///< per home, or kNone: then host memory has it
  std::vector<Block> blocks_;
  std::vector<std::int32_t> free_;  ///< blocks of nobody; has room for all there are
  std::optional<Error> broken_;     ///< copies have failed, so what pages hold is not known

  // The pass.
  std::uint64_t pass_ = 0;
  std::vector<std::int32_t> used_;                 ///< its pages, by Page::index
  std::vector<std::int32_t> slot_;                 ///< per layer, kNone: kept in its blocks
  std::vector<std::vector<Transfer>> fills_;       ///< per layer: what it gets
  std::vector<std::int32_t> slot_blocks_[kSlots];  ///< by Page::index
  std::vector<Transfer> transfers_;                ///< kept for its memory
  std::int32_t entered_ = 0;                       ///< layers
  std::int32_t filled_ = 0;                        ///< layers whose copies have been enqueued
  std::int32_t slots_filled_ = 0, slots_left_ = 0;
  bool copies_ = false;   ///< some were enqueued
  bool evicted_ = false;  ///< some of them home, which work has not waited for yet

  struct Events {
    Event evicted, done;
    std::vector<Event> filled;  ///< per layer
    std::vector<Event> read;    ///< per slot
  };
  std::optional<Events> events_;
};

}  // namespace llminfer::gpu
