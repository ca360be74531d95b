#include "backends/gpu/emulator/memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace llminfer::gpu::emulator {
namespace {

constexpr std::size_t kStep = 256;  ///< bytes that are compared, and hidden, together
constexpr std::byte kFresh{0xff};   ///< of NaN: what was never written shows

std::uint8_t bit_of(Stream stream) { return static_cast<std::uint8_t>(1u << static_cast<unsigned>(stream)); }

}  // namespace

void* Memory::allocate(std::int64_t bytes, bool pinned, std::int64_t limit) {
  const std::lock_guard lock(mutex_);
  std::int64_t& used = used_[pinned];
  void* memory = used + bytes <= limit ? std::malloc(static_cast<std::size_t>(bytes)) : nullptr;
  if (!memory) return nullptr;
  std::memset(memory, std::to_integer<int>(kFresh), static_cast<std::size_t>(bytes));
  try {
    pieces_[memory] = {bytes, pinned};
  } catch (...) {
    std::free(memory);
    throw;
  }
  used += bytes;
  return memory;
}

Memory::Piece Memory::release(void* memory) noexcept {
  const std::lock_guard lock(mutex_);
  const auto it = pieces_.find(memory);
  Piece piece = std::move(it->second);
  used_[piece.pinned] -= piece.bytes;
  pieces_.erase(it);
  auto* const begin = static_cast<std::byte*>(memory);
  std::erase_if(changes_, [&](const Change& change) { return change.at >= begin && change.at < begin + piece.bytes; });
  std::free(memory);
  return piece;
}

/// The piece that has these bytes, or the end. Mutex held.
std::map<void*, Memory::Piece>::iterator Memory::find(const void* memory, std::int64_t bytes) {
  auto it = pieces_.upper_bound(const_cast<void*>(memory));
  if (it == pieces_.begin()) return pieces_.end();
  --it;
  const bool inside =
      static_cast<const std::byte*>(memory) + bytes <= static_cast<std::byte*>(it->first) + it->second.bytes;
  return inside ? it : pieces_.end();
}

std::optional<Memory::Piece> Memory::piece_of(const void* memory, std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto it = find(memory, bytes);
  return it == pieces_.end() ? std::nullopt : std::optional(Piece{it->second.bytes, it->second.pinned});
}

void Memory::copied(const void* to, std::int64_t bytes, Stream stream) {
  const std::lock_guard lock(mutex_);
  const auto it = find(to, bytes);
  if (it == pieces_.end() || it->second.pinned || bytes == 0) return;
  Piece& piece = it->second;
  piece.copied.resize((static_cast<std::size_t>(piece.bytes) + kStep - 1) / kStep);
  const auto first = static_cast<std::size_t>(static_cast<const std::byte*>(to) - static_cast<std::byte*>(it->first));
  for (std::size_t i = first / kStep; i * kStep < first + static_cast<std::size_t>(bytes); ++i) {
    piece.copied[i] |= bit_of(stream);
  }
}

void Memory::settle(Stream stream) {
  const std::lock_guard lock(mutex_);
  for (auto& [memory, piece] : pieces_) {
    for (std::uint8_t& streams : piece.copied) streams &= static_cast<std::uint8_t>(~bit_of(stream));
  }
}

void Memory::begin() {
  const std::lock_guard lock(mutex_);
  changes_.clear();
  for (auto& [memory, piece] : pieces_) {
    const auto* bytes = static_cast<const std::byte*>(memory);
    const auto size = static_cast<std::size_t>(piece.bytes);
    if (piece.pinned) continue;
    if (piece.before.empty()) piece.before.resize(size, kFresh);
    piece.copied.resize((size + kStep - 1) / kStep);
    for (std::size_t i = 0; i < piece.copied.size(); ++i) {
      if (piece.copied[i] != 0) continue;
      std::memcpy(piece.before.data() + i * kStep, bytes + i * kStep, std::min(kStep, size - i * kStep));
    }
  }
}

void Memory::update() {
  const std::lock_guard lock(mutex_);
  changes_.clear();
  for (auto& [memory, piece] : pieces_) {
    auto* const bytes = static_cast<std::byte*>(memory);
    for (std::size_t i = 0; i < piece.before.size(); i += kStep) {
      const std::size_t size = std::min(kStep, piece.before.size() - i);
      if (std::memcmp(bytes + i, piece.before.data() + i, size) == 0) continue;
      if (!changes_.empty() && changes_.back().at + changes_.back().now.size() == bytes + i) {
        changes_.back().now.resize(changes_.back().now.size() + size);
      } else {
        changes_.push_back({bytes + i, piece.before.data() + i, std::vector<std::byte>(size)});
      }
    }
  }
}

void Memory::hide() {
  hidden_ = std::unique_lock(mutex_);
  for (Change& change : changes_) {
    std::memcpy(change.now.data(), change.at, change.now.size());
    std::memcpy(change.at, change.before, change.now.size());
  }
}

bool Memory::show(bool anywhere) {
  bool same = true;
  if (anywhere) {
    for (const auto& [memory, piece] : pieces_) {
      const std::vector<std::byte>& before = piece.before;
      same = same && (before.empty() || std::memcmp(memory, before.data(), before.size()) == 0);
    }
  }
  for (const Change& change : changes_) {
    same = same && std::memcmp(change.at, change.before, change.now.size()) == 0;
    std::memcpy(change.at, change.now.data(), change.now.size());
  }
  hidden_.unlock();
  return same;
}

}  // namespace llminfer::gpu::emulator
