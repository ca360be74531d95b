#include "engine/weight_cache.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "core/error.hpp"

namespace llminfer::inline v0::engine {
namespace {

constexpr std::array<char, 8> kMagic = {'l', 'l', 'm', 'i', 'w', 't', 's', '2'};
/// Stored weights start on pages.
constexpr std::uint64_t kAlignment = 4096;
constexpr std::uint64_t kSample = 1024;

/// The file: this, an Entry per tensor, then the weights. Numbers are the machine's own.
struct Header {
  std::array<char, 8> magic;
  std::uint64_t key, tensors, file_bytes;
  std::uint64_t entries;  ///< hash_of them
};

constexpr std::uint64_t aligned(std::uint64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

/// A word at a time, so that all of a checkpoint in memory can be hashed. Each step can be undone: two that differ in
/// one word never have the same hash.
class Hash {
 public:
  void add(std::span<const std::byte> bytes) {
    for (; bytes.size() >= sizeof(std::uint64_t); bytes = bytes.subspan(sizeof(std::uint64_t))) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes.data(), sizeof word);
      add(word);
    }
    for (const std::byte b : bytes) add(static_cast<std::uint64_t>(b));
  }
  void add(std::string_view text) {
    add(text.size());
    add(std::as_bytes(std::span(text)));
  }
  void add(std::uint64_t n) {
    value_ = (value_ ^ n) * 0x9e3779b97f4a7c15;
    value_ ^= value_ >> 32;
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325;
};

template <class T>
std::uint64_t hash_of(const std::vector<T>& table) {
  Hash hash;
  hash.add(std::as_bytes(std::span(table)));
  return hash.value();
}

std::string hexadecimal(std::uint64_t n) {
  std::string text(16, '0');
  for (auto digit = text.rbegin(); digit != text.rend(); ++digit, n /= 16) *digit = "0123456789abcdef"[n % 16];
  return text;
}

/// Whether the file may have a weight: those that are put together from several tensors are prepared each time.
bool storable(const load::TensorInfo& tensor) { return !tensor.packing && tensor.rows > 1; }

Result<std::uint64_t> key_of(const load::Checkpoint& checkpoint, std::span<const load::TensorInfo* const> tensors,
                             std::string_view form) {
  Hash hash;
  hash.add(form);
  for (const load::TensorInfo* tensor : tensors) {
    if (!storable(*tensor)) continue;
    hash.add(tensor->name);
    hash.add(static_cast<std::uint64_t>(tensor->type));
    hash.add(static_cast<std::uint64_t>(tensor->rows));
    hash.add(static_cast<std::uint64_t>(tensor->cols));
    const core::ByteSource& source = *checkpoint.sources[tensor->source];
    hash.add(source.size());
    hash.add(source.modified());
    if (source.modified() == 0) {  // not a file
      hash.add(LLMINFER_TRY(source.read(tensor->offset, tensor->bytes)).data);
      continue;
    }
    const std::uint64_t last = tensor->bytes - std::min(tensor->bytes, kSample);
    for (const std::uint64_t at : {std::uint64_t{0}, last / 2, last}) {
      hash.add(LLMINFER_TRY(source.read(tensor->offset + at, tensor->bytes - last)).data);
    }
  }
  return hash.value();
}

}  // namespace

Result<WeightCache> WeightCache::open(const std::string& folder, const load::Checkpoint& checkpoint,
                                      std::span<const load::TensorInfo* const> tensors, std::string_view form) {
  WeightCache cache;
  cache.key_ = LLMINFER_TRY(key_of(checkpoint, tensors, form));
  cache.path_ = folder + "/" + hexadecimal(cache.key_) + ".weights";
  for (const load::TensorInfo* tensor : tensors) cache.storable_.push_back(storable(*tensor));
  if (!cache.map(tensors.size())) cache.entries_.clear();
  return cache;
}

Result<void> WeightCache::map(std::size_t tensors) {
  source_ = LLMINFER_TRY(core::open_file(path_, true));
  const auto damaged = [&] { return core::fail(ErrorCode::corrupt, path_, ": not a file of prepared weights"); };
  Header header{};
  const core::Bytes first = LLMINFER_TRY(source_->read(0, sizeof header));
  std::memcpy(&header, first.data.data(), sizeof header);
  if (header.magic != kMagic || header.key != key_ || header.tensors != tensors ||
      header.file_bytes != source_->size()) {
    return damaged();
  }
  const core::Bytes table = LLMINFER_TRY(source_->read(sizeof header, tensors * sizeof(Entry)));
  entries_.resize(tensors);
  std::memcpy(entries_.data(), table.data.data(), table.data.size());
  return hash_of(entries_) == header.entries ? Result<void>{} : damaged();
}

Result<core::Bytes> WeightCache::read(std::size_t index) const {
  const Entry& entry = entries_[index];
  if (entry.bytes == 0) return core::Bytes{};
  return source_->read(entry.offset, entry.bytes);
}

Result<void> WeightCache::save(std::span<const std::shared_ptr<const PreparedWeight>> weights) const {
  std::vector<Entry> entries(weights.size());
  std::vector<core::FilePart> parts(2);
  std::uint64_t end = sizeof(Header) + weights.size() * sizeof(Entry);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const std::span<const std::byte> stored = weights[i]->stored();
    if (!storable_[i] || stored.empty()) continue;
    entries[i] = {aligned(end), stored.size()};
    parts.push_back({entries[i].offset, stored});
    end = entries[i].offset + stored.size();
  }
  const Header header{kMagic, key_, weights.size(), end, hash_of(entries)};
  parts[0] = {0, std::as_bytes(std::span(&header, 1))};
  parts[1] = {sizeof header, std::as_bytes(std::span(entries))};
  return core::write_file(path_, parts);
}

}  // namespace llminfer::inline v0::engine
