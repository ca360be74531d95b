#include "engine/prefix_cache.hpp"

#include <algorithm>
#include <iterator>
#include <new>

#include "engine/sequence.hpp"

namespace llminfer::inline v0::engine {

PrefixCache::PrefixCache(std::span<const CacheGroup> groups, std::vector<PagePool>& pools)
    : groups_(groups), pools_(pools), recent_(groups.size()), found_(groups.size()) {}

/// Leaves first: a tree is as deep as a context has pages, too deep for destructors that call each other.
PrefixCache::~PrefixCache() {
  for (Node* node = &root_; node != &root_ || !node->children.empty();) {
    if (!node->children.empty()) {
      node = node->children.begin()->second.get();
    } else {
      Node* const parent = node->parent;
      parent->children.erase(node->self);
      node = parent;
    }
  }
}

/// The tokens of one page, the first page's with the salt behind them. Throws std::bad_alloc.
const std::vector<Token>& PrefixCache::key(std::string_view salt, std::span<const Token> tokens, std::size_t page) {
  const auto own = tokens.subspan(page * kPageTokens, kPageTokens);
  key_.assign(own.begin(), own.end());
  if (page == 0) key_.insert(key_.end(), salt.begin(), salt.end());
  return key_;
}

/// Made, if there is none. Throws std::bad_alloc.
PrefixCache::Node* PrefixCache::child(Node* node, const std::vector<Token>& tokens) {
  if (const auto found = node->children.find(tokens); found != node->children.end()) return found->second.get();
  auto made = std::make_unique<Node>();
  made->parent = node;
  made->pages.assign(groups_.size(), -1);
  made->place.resize(groups_.size());
  const auto at = node->children.emplace(tokens, std::move(made)).first;
  at->second->self = at;
  return at->second.get();
}

/// Throws std::bad_alloc.
void PrefixCache::hold(Node* node, std::size_t group, std::int32_t page) {
  node->place[group] = recent_[group].insert(recent_[group].begin(), node);
  node->pages[group] = page;
  pools_[group].keep(page);
}

void PrefixCache::add(std::string_view salt, std::span<const Token> tokens,
                      const std::vector<std::vector<std::int32_t>>& pages, std::size_t count) noexcept {
  const auto embedding = std::find(tokens.begin(), tokens.end(), -1);
  count = std::min(count, static_cast<std::size_t>(embedding - tokens.begin()) / kPageTokens);
  path_.clear();
  Node* node = &root_;
  try {
    while (path_.size() < count) {
      const std::size_t page = path_.size();
      node = child(node, key(salt, tokens, page));
      for (std::size_t group = 0; group < groups_.size(); ++group) {
        const std::int32_t own = pages[group][page];
        if (own >= 0 && node->pages[group] < 0 && !pools_[group].kept(own)) hold(node, group, own);
      }
      path_.push_back(node);
    }
  } catch (const std::bad_alloc&) {  // what there is will do
  }
  use(path_);
  prune(node);
}

std::span<const std::vector<std::int32_t>> PrefixCache::find(std::string_view salt, std::span<const Token> tokens,
                                                             std::size_t own, std::size_t most) noexcept try {
  path_.clear();
  for (Node* node = &root_; path_.size() < most; path_.push_back(node)) {
    const auto next = node->children.find(key(salt, tokens, path_.size()));
    if (next == node->children.end()) break;
    node = next->second.get();
  }
  const auto whole = [&](std::size_t count) {
    for (std::size_t group = 0; group < groups_.size(); ++group) {
      const std::size_t first = first_needed(groups_[group], static_cast<std::int32_t>(count) * kPageTokens);
      for (std::size_t page = std::max(first, own); page < count; ++page) {
        if (path_[page]->pages[group] < 0) return false;
      }
    }
    return true;
  };
  std::size_t count = path_.size();
  while (count > own && !whole(count)) --count;
  if (count <= own) return {};
  path_.resize(count);
  for (std::size_t group = 0; group < groups_.size(); ++group) {
    auto& found = found_[group];
    found.assign(count - own, -1);
    // A sequence has pages up to its end, from some page on.
    for (std::size_t page = count; page-- > own && path_[page]->pages[group] >= 0;) {
      found[page - own] = path_[page]->pages[group];
    }
  }
  use(path_);
  return found_;
} catch (const std::bad_alloc&) {
  return {};
}

/// The nodes are the last used. Layers that see all tokens lose the last page of a path first, those with a window the
/// first one: so the least is lost.
void PrefixCache::use(std::span<Node* const> path) noexcept {
  for (std::size_t group = 0; group < groups_.size(); ++group) {
    Recent& recent = recent_[group];
    for (std::size_t i = 0; i < path.size(); ++i) {
      Node* const node = path[groups_[group].window > 0 ? i : path.size() - 1 - i];
      if (node->pages[group] >= 0) recent.splice(recent.begin(), recent, node->place[group]);
    }
  }
}

std::int32_t PrefixCache::evict(std::size_t group) noexcept {
  Recent& recent = recent_[group];
  for (std::size_t left = recent.size(); left > 0; --left) {
    Node* const node = recent.back();
    const std::int32_t page = node->pages[group];
    if (pools_[group].idle(page)) {
      recent.pop_back();
      node->pages[group] = -1;
      pools_[group].drop(page);
      prune(node);
      return page;
    }
    recent.splice(recent.begin(), recent, std::prev(recent.end()));  // a sequence has it: it is in use now
  }
  return -1;
}

/// Takes out the node and those before it that lead to no page.
void PrefixCache::prune(Node* node) noexcept {
  const auto none = [](std::int32_t page) { return page < 0; };
  while (node != &root_ && node->children.empty() && std::all_of(node->pages.begin(), node->pages.end(), none)) {
    Node* const parent = node->parent;
    parent->children.erase(node->self);
    node = parent;
  }
}

}  // namespace llminfer::inline v0::engine
