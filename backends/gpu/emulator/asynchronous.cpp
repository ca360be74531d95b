#include "backends/gpu/emulator/asynchronous.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <unordered_map>
#include <utility>
#include <vector>

#include "backends/gpu/emulator/e4m3.hpp"
#include "backends/gpu/emulator/emulator.hpp"
#include "core/half.hpp"

namespace llminfer::gpu::emulator {
namespace {

constexpr std::uint32_t kRowBytes = 128;       ///< of a swizzled tile
constexpr std::uint32_t kPatternBytes = 1024;  ///< after which the swizzle repeats itself

struct Barrier {
  std::uint32_t count = 0, pending = 0;
  std::int64_t bytes = 0;  ///< that are expected and have not come
  std::uint32_t phase = 0;
  bool fenced = false;
  std::vector<int> waiting;
};

struct Copy {
  TensorMap map;
  std::int32_t column, row;
  std::uint32_t to;
  void* barrier;
  std::uint32_t done = 0;  ///< rows
};

/// A warp's sixteen rows of a product.
struct Product {
  std::array<void*, 32> d;  ///< floats, or of bytes int32_t
  std::uint64_t a, b;
  bool accumulate;
  Factors factors;
  std::uint64_t group;
};
struct Warp {
  std::deque<Product> products;
  std::uint64_t group = 0;  ///< that is not yet committed
  std::size_t issued = 0;
  bool fenced = false;
  std::vector<int> waiting;
};

struct Store {
  std::byte* to;
  std::array<std::byte, 16> bytes;
};

/// A thread's copies, in groups, of which the last one is not yet committed.
struct Piece {
  std::byte* to;
  std::array<std::byte, 16> bytes;
  std::size_t count;
  std::uint64_t group;
};
struct Pieces {
  std::deque<Piece> pieces;
  std::uint64_t group = 0;
};

struct Asynchronous {
  std::vector<std::byte> memory;
  std::uint32_t base = 0;  ///< its address in the shared window
  std::unordered_map<void*, Barrier> barriers;
  std::vector<Copy> copies;
  std::vector<Warp> warps;
  std::vector<std::vector<std::pair<std::uint64_t, std::uint64_t>>> descriptors;  ///< of a warpgroup, in their order
  std::vector<std::vector<Store>> stores;                                         ///< of each thread
  std::vector<Pieces> pieces;                                                     ///< of each thread
  std::size_t under_way = 0;                                                      ///< pieces and products of all
  bool misused = false;
  std::uint32_t laziness = 1;
  std::uint64_t random = 0;

  std::uint32_t draw(std::size_t below) {
    std::uint64_t z = random += 0x9e3779b97f4a7c15u;  // splitmix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<std::uint32_t>((z ^ (z >> 31)) >> 32) % static_cast<std::uint32_t>(below);
  }
  Warp& warp() { return warps[place.thread.x / 32]; }
  /// Null: none of this block's.
  Barrier* barrier(void* at) {
    const auto it = barriers.find(at);
    if (it != barriers.end()) return &it->second;
    misused = true;
    return nullptr;
  }
  /// Bytes of shared memory, or null.
  std::byte* at(std::uint32_t address, std::uint32_t bytes) {
    const std::uint64_t offset = std::uint64_t{address} - base;
    if (address >= base && offset + bytes <= memory.size()) return memory.data() + offset;
    misused = true;
    return nullptr;
  }
};

thread_local Asynchronous block;

/// Swizzles of 128 bytes exchange the 16-byte pieces of a row by the row's place in the pattern: bits 4 to 6 of an
/// address with bits 7 to 9.
std::uint32_t swizzled(std::uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

void advance(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
  for (const int thread : std::exchange(barrier.waiting, {})) wake(thread);
}

void arrive(Barrier& barrier) {
  if (barrier.pending == 0) {
    block.misused = true;
    return;
  }
  --barrier.pending;
  advance(barrier);
}

/// Some more rows of a copy, and all of it in the end.
void run(Copy& copy) {
  const std::uint32_t rows = 1 + block.draw(copy.map.box_rows - copy.done), size = copy.map.element_bytes;
  for (const std::uint32_t end = copy.done + rows; copy.done < end; ++copy.done) {
    for (std::uint32_t c = 0; c < copy.map.box_columns; ++c) {
      std::uint16_t value = 0;
      const std::int64_t column = std::int64_t{copy.column} + c, row = std::int64_t{copy.row} + copy.done;
      if (column >= 0 && row >= 0 && column < static_cast<std::int64_t>(copy.map.columns) &&
          row < static_cast<std::int64_t>(copy.map.rows)) {
        std::memcpy(&value, copy.map.data + row * static_cast<std::int64_t>(copy.map.stride) + size * column, size);
      }
      std::byte* const to = block.at(swizzled(copy.to + copy.done * kRowBytes + size * c), size);
      if (to) std::memcpy(to, &value, size);
    }
  }
  if (Barrier* barrier = block.barrier(copy.barrier)) {
    barrier->bytes -= rows * kRowBytes;
    advance(*barrier);
  }
}

/// "Matrix Descriptor Format": addresses and offsets in units of 16 bytes. Of a matrix whose rows have k in consecutive
/// places and lie swizzled by 128 bytes, eight rows are one after the other, and eights are the stride apart.
struct Descriptor {
  explicit Descriptor(std::uint64_t bits)
      : start(static_cast<std::uint32_t>(bits & 0x3fff) << 4),
        stride(static_cast<std::uint32_t>(bits >> 32 & 0x3fff) << 4) {
    const bool swizzles_by_128 = bits >> 62 == 1, reserved = (bits & 0x3ff1c000c000c000u) != 0;
    const auto base_offset = static_cast<std::uint32_t>(bits >> 49 & 7);
    // The offset that is needed where the matrix does not begin on a pattern of the swizzle.
    if (!swizzles_by_128 || reserved || base_offset != (start / kRowBytes & 7) || start % kRowBytes + 32 > kRowBytes) {
      block.misused = true;
    }
  }
  float element(std::uint32_t row, std::uint32_t k) const { return core::half_to_float(at<std::uint16_t>(row, k)); }
  float number(std::uint32_t row, std::uint32_t k) const { return core::e4m3_to_float(at<std::uint8_t>(row, k)); }
  template <class Bits>
  Bits at(std::uint32_t row, std::uint32_t k) const {
    constexpr auto kSize = static_cast<std::uint32_t>(sizeof(Bits));
    Bits bits = 0;
    const std::uint32_t address = start + row / 8 * stride + row % 8 * kRowBytes + kSize * k;
    if (const std::byte* from = block.at(swizzled(address), kSize)) std::memcpy(&bits, from, kSize);
    return bits;
  }
  std::uint32_t start, stride;
};

/// "Matrix Fragments for wgmma.mma_async.m64nNk16" and k32: warp w has rows 16 w …, and of each eight columns lane 4 g
/// + t has columns 2t and 2t + 1 of rows g and g + 8.
template <class Sum = float>
Sum& sum_at(const Product& product, std::uint32_t row, std::uint32_t column) {
  return static_cast<Sum*>(product.d[row % 8 * 4 + column % 8 / 2])[column / 8 * 4 + row / 8 * 2 + column % 2];
}

void run(const Product& product, std::uint32_t warp) {
  const Descriptor a(product.a), b(product.b);
  if (product.factors == Factors::bytes) {
    std::array<std::array<std::int32_t, 32>, 16> left;
    std::array<std::array<std::int32_t, 32>, 128> right;  // [column][k]
    for (std::uint32_t k = 0; k < 32; ++k) {
      for (std::uint32_t row = 0; row < 16; ++row) left[row][k] = a.at<std::int8_t>(16 * (warp % 4) + row, k);
      for (std::uint32_t column = 0; column < 128; ++column) right[column][k] = b.at<std::uint8_t>(column, k);
    }
    for (std::uint32_t row = 0; row < 16; ++row) {
      for (std::uint32_t column = 0; column < 128; ++column) {
        std::int32_t sum = 0;
        for (std::uint32_t k = 0; k < 32; ++k) sum += left[row][k] * right[column][k];
        auto& d = sum_at<std::int32_t>(product, row, column);
        d = product.accumulate ? d + sum : sum;
      }
    }
    return;
  }
  if (product.factors == Factors::e4m3) {
    std::array<std::array<float, 32>, 16> left;
    std::array<std::array<float, 32>, 128> right;  // [column][k]
    for (std::uint32_t k = 0; k < 32; ++k) {
      for (std::uint32_t row = 0; row < 16; ++row) left[row][k] = a.number(16 * (warp % 4) + row, k);
      for (std::uint32_t column = 0; column < 128; ++column) right[column][k] = b.number(column, k);
    }
    for (std::uint32_t row = 0; row < 16; ++row) {
      for (std::uint32_t column = 0; column < 128; ++column) {
        float products[32];
        for (std::uint32_t k = 0; k < 32; ++k) products[k] = left[row][k] * right[column][k];
        float& d = sum_at(product, row, column);
        d = add_products(product.accumulate ? d : 0.0f, products);
      }
    }
    return;
  }
  std::array<std::array<float, 16>, 16> left;
  std::array<std::array<float, 128>, 16> right;  // [k][column]
  for (std::uint32_t k = 0; k < 16; ++k) {
    for (std::uint32_t row = 0; row < 16; ++row) left[row][k] = a.element(16 * (warp % 4) + row, k);
    for (std::uint32_t column = 0; column < 128; ++column) right[k][column] = b.element(column, k);
  }
  for (std::uint32_t row = 0; row < 16; ++row) {
    std::array<float, 128> sums{};
    for (std::uint32_t k = 0; k < 16; ++k) {
      for (std::uint32_t column = 0; column < 128; ++column) sums[column] += left[row][k] * right[k][column];
    }
    for (std::uint32_t column = 0; column < 128; ++column) {
      float& d = sum_at(product, row, column);
      d = product.accumulate ? d + sums[column] : sums[column];
    }
  }
}

void run_first(Warp& warp) {
  const Product product = warp.products.front();
  warp.products.pop_front();
  --block.under_way;
  run(product, static_cast<std::uint32_t>(&warp - block.warps.data()));
  for (const int thread : std::exchange(warp.waiting, {})) wake(thread);
}

}  // namespace

bool is_valid(const TensorMap& map) {
  // A narrower box would be allowed, but its layout is another.
  return reinterpret_cast<std::uintptr_t>(map.data) % 16 == 0 && map.stride % 16 == 0 && map.stride < 1ull << 40 &&
         map.columns >= 1 && map.columns <= 1ull << 32 && map.rows >= 1 && map.rows <= 1ull << 32 &&
         map.box_columns * map.element_bytes == kRowBytes && map.box_rows >= 1 && map.box_rows <= 256;
}

std::byte* shared_memory() { return block.memory.data(); }
std::uint32_t shared_address(const void* at) {
  return block.base + static_cast<std::uint32_t>(static_cast<const std::byte*>(at) - block.memory.data());
}

void barrier_init(void* barrier, std::uint32_t count) {
  if (!block.at(shared_address(barrier), 8) || shared_address(barrier) % 8 != 0 || count == 0) {
    block.misused = true;
    return;
  }
  Barrier made;
  made.count = made.pending = count;
  block.barriers[barrier] = std::move(made);
}
void barrier_fence() {
  for (auto& [at, barrier] : block.barriers) barrier.fenced = true;
}
void barrier_arrive(void* barrier) {
  if (Barrier* b = block.barrier(barrier)) arrive(*b);
}
void barrier_expect(void* barrier, std::uint32_t bytes) {
  Barrier* const b = block.barrier(barrier);
  if (!b) return;
  b->bytes += bytes;
  arrive(*b);
}
void barrier_wait(void* barrier, std::uint32_t parity) {
  Barrier* const b = block.barrier(barrier);
  while (b && (b->phase & 1) == parity) {
    b->waiting.push_back(static_cast<int>(place.thread.x));
    sleep();
  }
}

void copy_tile(void* to, const TensorMap& map, std::int32_t column, std::int32_t row, void* barrier) {
  const std::uint32_t address = shared_address(to);
  Barrier* const b = block.barrier(barrier);
  if (!b || !b->fenced || !is_valid(map) || address % kRowBytes != 0) {
    block.misused = true;
    return;
  }
  block.copies.push_back({map, column, row, address, barrier});
}

void store_operand(void* to, const void* bytes) {
  Store store{static_cast<std::byte*>(to), {}};
  std::memcpy(store.bytes.data(), bytes, store.bytes.size());
  block.stores[place.thread.x].push_back(store);
}
void operand_fence() {
  for (const Store& store : std::exchange(block.stores[place.thread.x], {})) {
    if (std::byte* to = block.at(shared_address(store.to), 16)) std::memcpy(to, store.bytes.data(), 16);
  }
}

void copy_piece(void* to, const void* from, std::size_t bytes, bool exists) {
  std::byte* const target = block.at(shared_address(to), static_cast<std::uint32_t>(bytes));
  if (!target || shared_address(to) % bytes != 0 || reinterpret_cast<std::uintptr_t>(from) % bytes != 0 ||
      (bytes != 4 && bytes != 8 && bytes != 16)) {
    block.misused = true;
    return;
  }
  Pieces& mine = block.pieces[place.thread.x];
  Piece piece{target, {}, bytes, mine.group};
  if (exists) std::memcpy(piece.bytes.data(), from, bytes);
  std::memset(target, 0xff, bytes);
  mine.pieces.push_back(piece);
  ++block.under_way;
}
void copies_commit() { ++block.pieces[place.thread.x].group; }
void copies_wait(int groups) {
  Pieces& mine = block.pieces[place.thread.x];
  while (!mine.pieces.empty() && mine.pieces.front().group + static_cast<std::uint64_t>(groups) < mine.group) {
    const Piece& piece = mine.pieces.front();
    std::memcpy(piece.to, piece.bytes.data(), piece.count);
    mine.pieces.pop_front();
    --block.under_way;
  }
}

void product_fence() {
  bool none = true;
  collective(&none, 32, [](void* const*) { block.warp().fenced = true; });
}

void product(void* d, std::uint64_t a, std::uint64_t b, bool accumulate, Factors factors) {
  struct Lane {
    void* d;
    std::uint64_t a, b;
    bool accumulate;
    Factors factors;
  } mine{d, a, b, accumulate, factors};
  collective(&mine, 32, [](void* const* all) {
    Warp& warp = block.warp();
    const auto* first = static_cast<const Lane*>(all[0]);
    Product product{{}, first->a, first->b, first->accumulate, first->factors, warp.group};
    block.misused |= !warp.fenced;
    for (std::size_t i = 0; i < 32; ++i) {
      const auto* lane = static_cast<const Lane*>(all[i]);
      product.d[i] = lane->d;
      block.misused |= lane->a != first->a || lane->b != first->b || lane->accumulate != first->accumulate;
    }
    auto& descriptors = block.descriptors[place.thread.x / 128];
    if (warp.issued == descriptors.size()) descriptors.emplace_back(first->a, first->b);
    block.misused |= descriptors[warp.issued++] != std::pair(first->a, first->b);
    warp.products.push_back(product);
    ++block.under_way;
  });
}

void product_commit() {
  bool none = true;
  collective(&none, 32, [](void* const*) { ++block.warp().group; });
}

void product_wait(int groups) {
  bool none = true;
  collective(&none, 32, [](void* const*) { block.warp().fenced = false; });  // sums may be read and written after it
  Warp& warp = block.warp();
  while (!warp.products.empty() && warp.products.front().group + static_cast<std::uint64_t>(groups) < warp.group) {
    warp.waiting.push_back(static_cast<int>(place.thread.x));
    sleep();
  }
}

void begin_asynchronous(std::uint64_t seed, std::size_t shared_bytes, int threads) {
  block.memory.assign(shared_bytes, std::byte{0xff});
  block.memory.shrink_to_fit();
  block.barriers.clear();
  block.copies.clear();
  block.warps.assign(static_cast<std::size_t>(threads + 31) / 32, {});
  block.descriptors.assign(static_cast<std::size_t>(threads + 127) / 128, {});
  // Of most blocks there is nothing to clear.
  block.stores.resize(std::max(block.stores.size(), static_cast<std::size_t>(threads)));
  for (std::vector<Store>& stores : block.stores) stores.clear();
  block.pieces.resize(std::max(block.pieces.size(), static_cast<std::size_t>(threads)));
  for (Pieces& pieces : block.pieces) {
    if (pieces.group != 0 || !pieces.pieces.empty()) pieces = {};
  }
  block.under_way = 0;
  block.misused = false;
  block.random = seed;
  block.base = kPatternBytes + 16 * block.draw(64);
  block.laziness = 1u << (3 * block.draw(4));
}

bool run_asynchronous() {
  std::vector<Warp*> busy;
  for (Warp& warp : block.warps) {
    if (!warp.products.empty()) busy.push_back(&warp);
  }
  const std::size_t all = block.copies.size() + busy.size();
  if (all == 0) return false;
  const std::size_t chosen = block.draw(all);
  if (chosen >= block.copies.size()) {
    run_first(*busy[chosen - block.copies.size()]);
    return true;
  }
  run(block.copies[chosen]);
  if (block.copies[chosen].done == block.copies[chosen].map.box_rows) {
    block.copies.erase(block.copies.begin() + static_cast<std::ptrdiff_t>(chosen));
  }
  return true;
}

bool maybe_run_asynchronous() {
  return asynchronous_pending() && block.draw(block.laziness) == 0 && run_asynchronous();
}

bool asynchronous_misused() { return block.misused; }
bool asynchronous_pending() { return !block.copies.empty() || block.under_way != 0; }

}  // namespace llminfer::gpu::emulator
