#include "backends/common/open_pages.hpp"

#include <algorithm>
#include <utility>

#include "core/error.hpp"

namespace llminfer::backend {

using core::fail;

Result<void> OpenPages::open(std::int32_t page) {
  if (is_open(page)) return {};
  const std::lock_guard lock(mutex_);
  if (unused_.empty()) {
    unused_.reserve(made_ + 1);
    unused_.push_back(LLMINFER_TRY(make_()));
    ++made_;
  }
  memory_[static_cast<std::size_t>(page)] = std::move(unused_.back());
  unused_.pop_back();
  return {};
}

void OpenPages::close(std::int32_t page) noexcept {
  if (!is_open(page)) return;
  const std::lock_guard lock(mutex_);
  unused_.push_back(std::move(memory_[static_cast<std::size_t>(page)]));  // reserved: cannot throw
}

std::int64_t OpenPages::bytes() const noexcept {
  const std::lock_guard lock(mutex_);
  return static_cast<std::int64_t>(made_) * page_bytes_;
}

Result<std::vector<std::int32_t>> OpenPages::begin_pass(std::span<const Run> runs, std::size_t group) {
  std::vector<std::int32_t> page_of_row;
  for (const Run& run : runs) {
    for (std::int32_t i = 0; i < run.rows; ++i) {
      const std::int32_t position = run.first_position + i;
      page_of_row.push_back(run.block_tables[group][static_cast<std::size_t>(position / kPageTokens)]);
      if (position % kPageTokens == 0) LLMINFER_TRY(open(page_of_row.back()));
    }
  }
  for (std::size_t row = 0; row < page_of_row.size(); ++row) {
    if (is_open(page_of_row[row])) continue;
    return fail(ErrorCode::invalid_state, "row ", row, ": page ", page_of_row[row],
                " of the int4 cache was full, and cannot be appended to");
  }
  std::vector<std::int32_t> written = page_of_row;
  std::sort(written.begin(), written.end());
  for (const Run& run : runs) {
    const std::span<const std::int32_t> table = run.block_tables[group];
    for (auto i = static_cast<std::size_t>(run.first_position / kPageTokens); i-- > 0;) {
      if (table[i] < 0 || !is_open(table[i])) break;
      if (!std::binary_search(written.begin(), written.end(), table[i])) close(table[i]);
    }
  }
  return page_of_row;
}

Result<bool> open_copy(OpenPages& open, std::int32_t from, std::int32_t to, std::int32_t tokens) {
  if (open.is_open(from)) {
    LLMINFER_TRY(open.open(to));
    return true;
  }
  if (tokens < kPageTokens) {
    return fail(ErrorCode::invalid_state, "copy_page: page ", from,
                " of the int4 cache is full; only all of it can be copied");
  }
  open.close(to);
  return false;
}

}  // namespace llminfer::backend
