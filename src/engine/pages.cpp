// Pages of the KV cache: taking, sharing, copying on write, and taking them back from idle or younger sequences.
#include <algorithm>
#include <new>
#include <utility>

#include "core/error.hpp"
#include "engine/core.hpp"

namespace llminfer::inline v0::engine {

std::shared_ptr<Sequence> EngineCore::new_sequence(std::string salt) {
  auto sequence = std::make_shared<Sequence>();
  sequence->salt = std::move(salt);
  sequence->pages.resize(pools_.size());
  const std::lock_guard lock(mutex_);
  std::erase_if(sequences_, [](const auto& weak) { return weak.expired(); });
  sequences_.push_back(sequence);
  return sequence;
}

void EngineCore::close(const std::shared_ptr<Sequence>& sequence) noexcept {
  const std::lock_guard lock(mutex_);
  free_pages(*sequence, 0);
}

std::shared_ptr<Sequence> EngineCore::fork(const Sequence& sequence) {
  auto copy = new_sequence(sequence.salt);
  copy->tokens = sequence.tokens;
  copy->embeddings = sequence.embeddings;
  copy->logits = sequence.logits;
  copy->hidden = sequence.hidden;
  const std::lock_guard lock(mutex_);
  auto pages = sequence.pages;
  copy->pages.swap(pages);  // from here on nothing fails: pages that a sequence has are counted
  copy->cached = sequence.cached;
  copy->computed = sequence.computed;
  copy->last_used = ++use_counter_;
  for (std::size_t group = 0; group < pools_.size(); ++group) {
    for (const std::int32_t page : copy->pages[group]) {
      if (page >= 0) pools_[group].share(page);
    }
  }
  return copy;
}

void EngineCore::truncate(Sequence& sequence, std::int32_t count) {
  if (count == sequence.size()) return;
  const std::lock_guard lock(mutex_);
  sequence.tokens.resize(static_cast<std::size_t>(count));
  std::erase_if(sequence.embeddings, [&](const auto& row) { return row.first >= count; });
  sequence.logits.clear();
  sequence.hidden.clear();
  free_pages(sequence, std::min(count, sequence.cached));
}

bool EngineCore::seals_pages() const noexcept {
  return std::any_of(model_->caches.begin(), model_->caches.end(),
                     [](const auto& cache) { return cache->seals_pages(); });
}

/// The first page that a sequence with so many tokens keeps: a sliding window has left those before it behind. Where
/// pages are sealed a rewind goes to a page's begin.
std::size_t EngineCore::first_kept(std::size_t group, std::int32_t cached) const noexcept {
  const std::int32_t rewind = kRewindTokens + (seals_pages() ? kPageTokens : 0);
  return first_needed(model_->program.cache_groups[group], cached - rewind);
}

/// Mutex held.
void EngineCore::release_page(std::size_t group, std::int32_t page) noexcept {
  if (pools_[group].release(page)) model_->caches[group]->forget_page(page);
}

/// Keeps the pages of the first `keep_tokens` cached tokens; not the last of them, if that was full and is sealed;
/// none, if a sliding window needs pages that were given back: what they held hangs on all tokens before it, layer by
/// layer, so all is computed again. Mutex held.
void EngineCore::free_pages(Sequence& sequence, std::int32_t keep_tokens) noexcept {
  const std::int32_t begin = keep_tokens / kPageTokens * kPageTokens;
  if (seals_pages() && sequence.cached >= begin + kPageTokens) keep_tokens = begin;
  for (std::size_t group = 0; group < sequence.pages.size(); ++group) {
    const auto& pages = sequence.pages[group];
    const std::size_t first = first_needed(model_->program.cache_groups[group], keep_tokens);
    if (first < pages.size() && pages[first] < 0) keep_tokens = 0;
  }
  const auto keep = static_cast<std::size_t>((keep_tokens + kPageTokens - 1) / kPageTokens);
  for (std::size_t group = 0; group < sequence.pages.size(); ++group) {
    auto& pages = sequence.pages[group];
    while (pages.size() > keep) {
      if (pages.back() >= 0) release_page(group, pages.back());
      pages.pop_back();
    }
  }
  sequence.cached = std::min(sequence.cached, keep_tokens);
}

/// Gives a request the pages that other sequences have computed of its beginning, but for the tokens of which it wants
/// more than that. Mutex held; no pass in flight.
void EngineCore::find_prefix(Request& request) noexcept {
  Sequence& sequence = *request.sequence;
  std::int32_t most = sequence.size() - 1;  // the last one is computed for its logits
  if (request.want_hidden) most = std::min(most, static_cast<std::int32_t>(request.tokens_before.size()));
  if (request.on_logits) most = std::min(most, request.logits_given);
  const std::int32_t own = sequence.cached / kPageTokens;
  if (!prefixes_ || most / kPageTokens <= own) return;
  const auto found = prefixes_->find(sequence.salt, sequence.tokens, static_cast<std::size_t>(own),
                                     static_cast<std::size_t>(most / kPageTokens));
  if (found.empty()) return;
  const std::size_t end = static_cast<std::size_t>(own) + found[0].size();
  try {
    for (auto& pages : sequence.pages) pages.reserve(end);
  } catch (const std::bad_alloc&) {
    return;
  }
  for (std::size_t group = 0; group < pools_.size(); ++group) {
    auto& pages = sequence.pages[group];
    for (const std::int32_t page : found[group]) {
      if (page >= 0) pools_[group].share(page);
    }
    // What follows its whole pages is in a page that was found, and nothing may lie before one that is missing.
    const std::size_t keep = found[group][0] >= 0 ? static_cast<std::size_t>(own) : 0;
    for (std::size_t i = keep; i < pages.size(); ++i) {
      if (pages[i] >= 0) release_page(group, std::exchange(pages[i], -1));
    }
    pages.resize(static_cast<std::size_t>(own), -1);
    pages.insert(pages.end(), found[group].begin(), found[group].end());
  }
  sequence.cached = static_cast<std::int32_t>(end) * kPageTokens;
}

/// The requests that may take part in a pass, oldest first, each with its rows at most: all, or where device memory has
/// room for some pages only, as many of the oldest as have room for theirs beside each other. If it has not even for
/// those of the oldest one, layers pass through it, and others may join. Those that are left out wait until older ones
/// have ended: pages that came and went with every pass would cost more than they could gain. Mutex held.
std::vector<EngineCore::Share> EngineCore::with_room() {
  std::vector<Share> chosen;
  std::int32_t budget = max_batch_tokens_;
  ++room_counter_;
  for (PassRoom& room : rooms_) room.used = 0;
  for (const auto& request : running_) {
    const Sequence& sequence = *request->sequence;
    const std::int32_t pending = sequence.size() - sequence.cached;
    const std::int32_t rows = pending == 1 ? 1 : std::min(pending, budget);
    if (rows == 0) continue;
    if (pending > 1 && !rooms_.empty()) budget -= rows;
    const auto written = static_cast<std::size_t>(sequence.cached / kPageTokens);
    const auto end = static_cast<std::size_t>((sequence.cached + rows + kPageTokens - 1) / kPageTokens);
    bool fits = true;
    for (std::size_t group = 0; group < rooms_.size(); ++group) {
      PassRoom& room = rooms_[group];
      const auto& pages = sequence.pages[group];
      for (std::size_t i = first_kept(group, sequence.cached); i < end; ++i) {
        // A page that is shared and written to will be copied first.
        const bool fresh = i >= pages.size() || (i >= written && pools_[group].shared(pages[i]));
        if (!fresh && pages[i] < 0) continue;
        const auto counts = [&](std::int32_t page) {
          return std::exchange(room.counted[static_cast<std::size_t>(page)], room_counter_) != room_counter_;
        };
        if (fresh || counts(pages[i])) ++room.used;
      }
      if (chosen.empty()) room.room = room.used <= room.limit.resident ? room.limit.resident : room.limit.most;
      fits = fits && room.used <= room.room;
    }
    if (!fits && !chosen.empty()) break;
    chosen.push_back({request, rows});
  }
  return chosen;
}

/// Sees that the request's next `rows` tokens have pages of their own. False: not in this step. Error: what copying a
/// page gave. Mutex held; no pass in flight.
Result<bool> EngineCore::make_room(Request& request, std::int32_t rows) {
  Sequence& sequence = *request.sequence;
  const auto first = static_cast<std::size_t>(sequence.cached / kPageTokens);
  const auto needed = static_cast<std::size_t>((sequence.cached + rows + kPageTokens - 1) / kPageTokens);
  for (std::size_t group = 0; group < pools_.size(); ++group) {
    const auto take = [&] {
      auto page = pools_[group].take();
      while (!page && (evict_prefix(group) || reclaim_pages(request))) page = pools_[group].take();
      return page;
    };
    auto& pages = sequence.pages[group];
    for (std::size_t i = first_kept(group, sequence.cached); i-- > 0;) {  // those left behind go back first
      if (pages[i] < 0) break;
      release_page(group, std::exchange(pages[i], -1));
    }
    pages.reserve(needed);
    while (pages.size() < needed) {
      const auto page = take();
      if (!page) return false;
      pages.push_back(*page);
    }
    if (pools_[group].shared(pages[first])) {  // copy on write; later pages were taken above or would be shared too
      const auto page = take();
      if (!page) return false;
      auto copied = model_->caches[group]->copy_page(pages[first], *page, sequence.cached % kPageTokens);
      if (!copied) {
        release_page(group, *page);
        return std::move(copied).error();
      }
      release_page(group, pages[first]);
      pages[first] = *page;
    }
    for (std::size_t i = first + 1; i < needed; ++i) {
      if (!pools_[group].shared(pages[i])) continue;
      const auto page = take();
      if (!page) return false;
      release_page(group, pages[i]);
      pages[i] = *page;
    }
  }
  return true;
}

/// Frees a page that no sequence has. Mutex held.
bool EngineCore::evict_prefix(std::size_t group) noexcept {
  const std::int32_t page = prefixes_ ? prefixes_->evict(group) : -1;
  if (page >= 0) model_->caches[group]->forget_page(page);
  return page >= 0;
}

/// Takes the pages of another sequence, which computes them again when it goes on: of the idle one that was used least
/// recently, else of the youngest request that is younger than the asking one. False if there is none. Mutex held.
bool EngineCore::reclaim_pages(const Request& asking) {
  const auto holds_pages = [](const Sequence& sequence) {
    return std::any_of(sequence.pages.begin(), sequence.pages.end(), [](const auto& pages) { return !pages.empty(); });
  };
  std::shared_ptr<Sequence> victim;
  for (const auto& weak : sequences_) {
    const auto sequence = weak.lock();
    if (!sequence || sequence->active || !holds_pages(*sequence)) continue;
    if (!victim || sequence->last_used < victim->last_used) victim = sequence;
  }
  // Requests that wait in the queue hold pages too, if their session did.
  const auto youngest = [&](auto begin, auto end) {
    for (auto it = begin; it != end && !victim && it->get() != &asking; ++it) {
      if (holds_pages(*(*it)->sequence)) victim = (*it)->sequence;
    }
  };
  if (!victim) youngest(waiting_.rbegin(), waiting_.rend());
  if (!victim) youngest(running_.rbegin(), running_.rend());
  if (!victim) return false;
  free_pages(*victim, 0);
  if (std::exchange(victim->computed, false)) victim->taken = true;
  return true;
}

}  // namespace llminfer::inline v0::engine
