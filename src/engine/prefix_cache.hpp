// PrefixCache: which full KV pages hold which tokens, so that prompts that begin alike compute their beginning once. A
// tree of pages, as in Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs" (2023). Knows
// nothing of requests, and nothing of what is in a page.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include <llminfer/program.hpp>
#include <llminfer/tokenizer.hpp>

#include "engine/page_pool.hpp"

namespace llminfer::inline v0::engine {

/// Pages in it are PagePool::keep()'s, and stay when the last sequence has released them until room is made. It holds
/// no others. What a page holds hangs on all tokens before it, so a page is found by all of them. Not thread-safe; the
/// engine's mutex guards it.
class PrefixCache {
 public:
  /// Both outlive it; one pool for each group.
  PrefixCache(std::span<const CacheGroup> groups, std::vector<PagePool>& pools);
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  /// Adds the first `count` pages of a sequence, which are full: `pages` are its pages by group, -1 where there is
  /// none, and `tokens` begin with its own up to the end of these. Pages of which there is another already are left
  /// out, and so is what comes after an embedding (a token of -1). Sequences with another salt do not find them.
  /// Without memory nothing is added, or the first ones only.
  void add(std::string_view salt, std::span<const Token> tokens, const std::vector<std::vector<std::int32_t>>& pages,
           std::size_t count) noexcept;

  /// The most pages, up to `most`, that can begin a sequence with these tokens, of which it has the first `own`
  /// already: per group one page for each from `own` on, -1 for some of those that are behind the group's window.
  /// Empty, if there are no more than `own`, or no memory. They are good until the next call.
  std::span<const std::vector<std::int32_t>> find(std::string_view salt, std::span<const Token> tokens, std::size_t own,
                                                  std::size_t most) noexcept;

  /// Takes out the page of a group that no sequence has and that was used least recently; it is free then. -1: none.
  std::int32_t evict(std::size_t group) noexcept;

 private:
  struct Node;
  using Children = std::map<std::vector<Token>, std::unique_ptr<Node>>;
  using Recent = std::list<Node*>;
  /// The tokens of one page after those of its parent.
  struct Node {
    Node* parent = nullptr;
    Children::iterator self;
    Children children;
    std::vector<std::int32_t> pages;      ///< per group; -1: none
    std::vector<Recent::iterator> place;  ///< in recent_, where there is a page
  };

  const std::vector<Token>& key(std::string_view salt, std::span<const Token> tokens, std::size_t page);
  Node* child(Node* node, const std::vector<Token>& tokens);
  void hold(Node* node, std::size_t group, std::int32_t page);
  void use(std::span<Node* const> path) noexcept;
  void prune(Node* node) noexcept;

  const std::span<const CacheGroup> groups_;
  std::vector<PagePool>& pools_;
  Node root_;
  std::vector<Recent> recent_;  ///< per group: nodes that have a page of it, the last used first
  // Kept for their memory.
  std::vector<Token> key_;
  std::vector<Node*> path_;
  std::vector<std::vector<std::int32_t>> found_;
};

}  // namespace llminfer::inline v0::engine
