// The engine's thread: which requests take part in a step, and what becomes of them after it. Pages are in pages.cpp,
// the forward pass in forward.cpp, what a request does with its logits in generate.cpp.
#include "engine/core.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.hpp"
#include "engine/sampler.hpp"

namespace llminfer::inline v0::engine {

using core::fail;

EngineCore::EngineCore(std::unique_ptr<Model> model, const EngineOptions& options)
    : model_(std::move(model)),
      max_batch_tokens_(options.max_batch_tokens),
      max_sequences_(options.max_sequences),
      max_queue_(options.max_queue) {
  for (const std::int32_t pages : model_->pages) {
    pools_.emplace_back(pages);
    stats_.pages_total += pages;
  }
  if (options.prefix_cache) prefixes_.emplace(model_->program.cache_groups, pools_);
  const auto limited = [](const auto& cache) { return cache->pass_pages().most < PassPages().most; };
  if (std::any_of(model_->caches.begin(), model_->caches.end(), limited)) {
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      PassRoom& room = rooms_.emplace_back();
      room.limit = model_->caches[g]->pass_pages();
      room.counted.resize(static_cast<std::size_t>(pools_[g].size()));
    }
  }
  stats_.weight_bytes = model_->weight_bytes;
  pending_ = std::exchange(model_->pending, {});
  std::reverse(pending_.begin(), pending_.end());
  stats_.pending_weights = static_cast<std::int32_t>(pending_.size());
  stats_.load_seconds = model_->load_seconds;
  // So that admitting requests takes no memory; sixteen more of those that end in the queue.
  running_.reserve(static_cast<std::size_t>(max_sequences_) + 16);
  thread_ = std::thread([this] { run(); });
}

EngineCore::~EngineCore() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

EngineStats EngineCore::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.waiting = static_cast<std::int32_t>(waiting_.size());
  for (const PagePool& pool : pools_) {
    stats.pages_used += pool.used();
    stats.pages_kept += pool.idle();
  }
  for (const auto& cache : model_->caches) {
    stats.cache_bytes += cache->bytes();
    stats.moved_cache_bytes += cache->moved_bytes();
  }
  return stats;
}

Result<void> EngineCore::check_tokens(std::span<const Token> tokens) const {
  for (const Token token : tokens) {
    if (token < 0 || token >= model_->info.vocab_size) {
      return fail(ErrorCode::invalid_argument, "token ", token, " is outside the vocabulary, 0 to ",
                  model_->info.vocab_size - 1);
    }
  }
  return {};
}

namespace {

Result<void> check_generation(const GenerateOptions& options, const ModelInfo& info) {
  if (options.max_tokens < 0) {
    return fail(ErrorCode::invalid_argument, "GenerateOptions::max_tokens is ", options.max_tokens,
                ", expected 0 or more");
  }
  if (options.stop.size() > 64) {
    return fail(ErrorCode::invalid_argument, "GenerateOptions::stop has ", options.stop.size(),
                " texts, expected at most 64");
  }
  for (const std::string& stop : options.stop) {
    if (stop.empty()) return fail(ErrorCode::invalid_argument, "GenerateOptions::stop has an empty text");
  }
  for (const Token token : options.stop_tokens) {
    if (token < 0 || token >= info.vocab_size) {
      return fail(ErrorCode::invalid_argument, "GenerateOptions::stop_tokens: ", token,
                  " is outside the vocabulary, 0 to ", info.vocab_size - 1);
    }
  }
  if (options.keep_tokens < 0 || options.keep_tokens > info.context_length / 2) {
    return fail(ErrorCode::invalid_argument, "GenerateOptions::keep_tokens is ", options.keep_tokens,
                ", expected 0 to ", info.context_length / 2, ", half the context");
  }
  if (options.overflow > OverflowPolicy::shift) {
    return fail(ErrorCode::invalid_argument, "GenerateOptions::overflow is ", static_cast<int>(options.overflow),
                ", expected stop or shift");
  }
  if (options.overflow == OverflowPolicy::shift && info.context_length < 2) {
    return fail(ErrorCode::invalid_argument,
                "GenerateOptions::overflow is shift, which a context of one token has no room for");
  }
  if (options.deadline && options.deadline->count() < 0) {
    return fail(ErrorCode::invalid_argument, "GenerateOptions::deadline is negative");
  }
  return {};
}

}  // namespace

Result<void> EngineCore::submit(const std::shared_ptr<Request>& request) noexcept {
  auto queued = core::guarded([&] { return enqueue(request); });
  if (queued) {
    wake_.notify_one();
  } else {
    const std::lock_guard lock(mutex_);
    restore(*request);
  }
  return queued;
}

Result<void> EngineCore::enqueue(const std::shared_ptr<Request>& request) {
  Sequence& sequence = *request->sequence;
  request->submitted = Clock::now();
  if (sequence.tokens.empty()) return fail(ErrorCode::invalid_argument, "the prompt has no tokens");
  if (request->generate) {
    const GenerateOptions& options = request->options;
    LLMINFER_TRY(check_generation(options, model_->info));
    request->sampler = LLMINFER_TRY(Sampler::create(options.sampling, model_->tokenizer));
    for (const Token& token : sequence.tokens) {
      if (token >= 0) request->sampler->accept(std::span(&token, 1));
    }
    request->decoder.emplace(model_->tokenizer, DecodeOptions{.skip_special = true});
    request->stop = StopMatcher(options.stop);
    if (options.deadline) request->deadline = request->submitted + in_clock_range(*options.deadline);
  }
  if (sequence.size() > model_->info.context_length) {
    if (!request->generate || request->options.overflow == OverflowPolicy::stop) {
      return fail(ErrorCode::context_overflow, sequence.size(), " tokens do not fit the context of ",
                  model_->info.context_length);
    }
    shift(*request);
  }
  const std::lock_guard lock(mutex_);
  if (waiting_.size() >= static_cast<std::size_t>(max_queue_)) {
    return fail(ErrorCode::queue_full, "EngineOptions::max_queue requests, ", max_queue_, ", are waiting already");
  }
  waiting_.push_back(request);
  sequence.active = true;
  request->result.prompt_tokens = sequence.size();
  request->result.cached_tokens = sequence.cached;
  return {};
}

void EngineCore::run() noexcept {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      const auto wanted = [this] { return stopping_ || !waiting_.empty() || !running_.empty(); };
      for (; !pending_.empty() && !wanted(); stats_.pending_weights = static_cast<std::int32_t>(pending_.size())) {
        lock.unlock();
        prepare_more();
        lock.lock();
      }
      wake_.wait(lock, wanted);
      if (stopping_) break;
    }
    std::vector<Share> shares;
    const auto outcome = core::guarded([&]() -> Result<void> {
      {
        const std::lock_guard lock(mutex_);
        admit();
      }
      begin_step();
      {
        const std::lock_guard lock(mutex_);
        LLMINFER_TRY(schedule(shares));
      }
      if (shares.empty()) return {};
      LLMINFER_TRY(forward(shares));
      commit(shares);
      return {};
    });
    if (!outcome && outcome.error().code != ErrorCode::cancelled) {
      // A failed pass ends the requests that took part (all, if it failed before that was decided), and the engine goes
      // on.
      for (const auto& request : running_) {
        const auto same = [&](const Share& share) { return share.request == request; };
        if (shares.empty() || std::any_of(shares.begin(), shares.end(), same)) {
          finish(request, core::copy_of(outcome.error()));
        }
      }
    }
    drop_done();
    drop_complete();
    const std::lock_guard lock(mutex_);
    stats_.running = static_cast<std::int32_t>(running_.size());
    stats_.pending_weights = static_cast<std::int32_t>(pending_.size());
  }
  const auto close = [this](const std::shared_ptr<Request>& request) {
    finish(request, core::guarded([&]() -> Result<void> {
             if (!request->answered) end_answer(*request, FinishReason::cancelled);
             if (request->generate && request->started) return {};
             return fail(ErrorCode::cancelled, "the engine was closed");
           }));
  };
  for (const auto& request : running_) close(request);
  running_.clear();
  for (; !waiting_.empty(); waiting_.pop_front()) close(waiting_.front());
}

namespace {

/// Whether something of the weight may be left. Where preparing fails, plans do it when they need it.
bool prepares_more(const PendingWeight& pending) noexcept {
  const auto more = pending.backend->prepare_more(*pending.weight);
  return more && *more;
}

}  // namespace

void EngineCore::prepare_more() noexcept {
  if (!prepares_more(pending_.back())) pending_.pop_back();
}

/// Forgets the weights that passes have completed.
void EngineCore::drop_complete() noexcept {
  std::erase_if(pending_, [](const PendingWeight& next) { return next.weight->complete() && !prepares_more(next); });
}

/// Takes requests from the queue as long as there is room, and those that were cancelled or are late, which the step
/// ends. Mutex held.
void EngineCore::admit() {
  std::erase_if(waiting_, [this](const std::shared_ptr<Request>& request) {
    const bool room = running_.size() < static_cast<std::size_t>(max_sequences_);
    const bool cancelled = request->cancelled();
    if (!room && !((cancelled || request->late()) && running_.size() < running_.capacity())) return false;
    if (cancelled) request->cancel_requested.store(true, std::memory_order_relaxed);  // its token may be reset
    running_.push_back(request);
    return true;
  });
}

void EngineCore::begin_step() {
  for (const auto& request : running_) {
    const auto outcome = core::guarded([&] { return begin_step(request); });
    if (!outcome) finish(request, core::copy_of(outcome.error()));
  }
  drop_done();
}

/// Ends a request that was cancelled or is late, before it costs another pass, or one that is complete, and advances a
/// new one whose logits are there.
Result<void> EngineCore::begin_step(const std::shared_ptr<Request>& request) {
  if (request->cancelled() || request->late()) {
    const FinishReason reason = request->cancelled() ? FinishReason::cancelled : FinishReason::deadline;
    if (!request->answered) end_answer(*request, reason);
    if (!request->generate) return fail(ErrorCode::cancelled, "the prefill was cancelled");
    finish(request, {});
    return {};
  }
  Sequence& sequence = *request->sequence;
  if (!request->started) {
    request->started = true;
    request->prefill_start = Clock::now();
    bool computed = false;
    {
      const std::lock_guard lock(mutex_);
      computed = sequence.cached == sequence.size();
      if (computed && sequence.logits.empty()) {  // compute the last token again for its logits
        free_pages(sequence, sequence.cached - 1);
        computed = false;
      }
    }
    if (computed) LLMINFER_TRY(advance(*request));
  }
  if (request->generate && !request->answered) return {};
  bool computed = false;
  {
    const std::lock_guard lock(mutex_);
    computed = sequence.cached == sequence.size();
  }
  if (computed || (request->answered && !request->keep_sequence)) finish(request, {});
  return {};
}

void EngineCore::drop_done() noexcept {
  std::erase_if(running_, [](const auto& request) {
    const std::lock_guard lock(request->mutex);
    return request->done;
  });
}

/// Chooses what the next pass computes: first the requests that need one token, then chunks of prompts, oldest first,
/// up to max_batch_tokens_ rows. After an error `shares` has the request that it ends. Mutex held.
Result<void> EngineCore::schedule(std::vector<Share>& shares) {
  std::int32_t budget = max_batch_tokens_;
  for (const auto& request : running_) find_prefix(*request);
  const auto candidates = with_room();
  for (const bool decoding : {true, false}) {
    for (const auto& [request, most] : candidates) {
      const Sequence& sequence = *request->sequence;
      if (sequence.cached == 0) find_prefix(*request);  // an older one may have taken its pages just now
      const std::int32_t pending = sequence.size() - sequence.cached;
      if (budget == 0 || pending == 0 || (pending == 1) != decoding) continue;
      // Whose pages an older request has taken is not asked a second time: its first share goes below.
      const auto same = [&asked = request](const Share& share) { return share.request == asked; };
      if (std::any_of(shares.begin(), shares.end(), same)) continue;
      const std::int32_t rows = std::min({pending, budget, most});
      const auto room = make_room(*request, rows);
      if (!room) {
        shares.assign(1, {request, rows});
        return core::copy_of(room.error());
      }
      if (!*room) continue;
      shares.push_back({request, rows});
      budget -= rows;
    }
  }
  // Making room for a later request may have taken the pages of an earlier one.
  std::erase_if(shares, [](const Share& share) {
    const Sequence& sequence = *share.request->sequence;
    for (const auto& pages : sequence.pages) {
      if (static_cast<std::int32_t>(pages.size()) * kPageTokens < sequence.cached + share.rows) return true;
    }
    return false;
  });
  return {};
}

/// After a pass: the new tokens count as cached, and requests that are up to date go on.
void EngineCore::commit(std::span<const Share> shares) {
  {
    const std::lock_guard lock(mutex_);
    ++stats_.forward_passes;
    for (const Share& share : shares) {
      Sequence& sequence = *share.request->sequence;
      const auto first = static_cast<std::size_t>(sequence.cached / kPageTokens);
      if (!share.request->computed) {
        share.request->result.cached_tokens = sequence.cached;
        stats_.cached_tokens += sequence.cached;
      }
      stats_.preemptions += std::exchange(sequence.taken, false);
      sequence.cached += share.rows;
      share.request->computed = sequence.computed = true;
      const auto last = static_cast<std::size_t>(sequence.cached / kPageTokens);
      for (std::size_t group = 0; group < pools_.size(); ++group) {
        for (std::size_t i = first; i < last; ++i) model_->caches[group]->finish_page(sequence.pages[group][i]);
      }
      if (prefixes_ && first < last) prefixes_->add(sequence.salt, sequence.tokens, sequence.pages, last);
      sequence.last_used = ++use_counter_;
      (share.request->result.tokens.empty() ? stats_.prefill_tokens : stats_.decode_tokens) += share.rows;
    }
  }
  for (const Share& share : shares) {
    Request& request = *share.request;
    if (request.sequence->cached < request.sequence->size()) continue;
    const auto outcome = core::guarded([&] { return advance(request); });
    if (!outcome) finish(share.request, core::copy_of(outcome.error()));
  }
}

/// Makes the sequence what it was before the request. Mutex held.
void EngineCore::restore(Request& request) noexcept {
  Sequence& sequence = *request.sequence;
  const auto before = static_cast<std::int32_t>(request.tokens_before.size());
  const auto same = std::mismatch(sequence.tokens.begin(), sequence.tokens.end(), request.tokens_before.begin(),
                                  request.tokens_before.end());
  auto common = static_cast<std::int32_t>(same.first - sequence.tokens.begin());
  if (request.embeddings_before) {  // moved rows are not told apart by their tokens
    common = std::min(common, request.options.keep_tokens);
    sequence.embeddings.swap(*request.embeddings_before);
  }
  free_pages(sequence, std::min(common, sequence.cached));
  std::erase_if(sequence.embeddings, [&](const auto& row) { return row.first >= before; });
  sequence.tokens.swap(request.tokens_before);
  if (request.hidden_before) sequence.hidden.swap(*request.hidden_before);
  if (request.logits_before) sequence.logits.swap(*request.logits_before);
}

namespace {

/// Without a message where there is no memory for it.
Error callback_threw(const Request& request) noexcept {
  try {
    const char* const callback = request.generate ? "GenerateOptions::on_token" : "PrefillOptions::on_logits";
    return fail(ErrorCode::callback_failed, callback, " threw");
  } catch (...) {
    return Error{ErrorCode::callback_failed, {}};
  }
}

}  // namespace

/// Ends a request: its sequence is idle again, and whoever waits learns of it. Engine thread, mutex not held.
void EngineCore::finish(const std::shared_ptr<Request>& request, Result<void> outcome) noexcept {
  Sequence& sequence = *request->sequence;
  if (request->callback_failed) outcome = callback_threw(*request);
  {
    const std::lock_guard lock(mutex_);
    if (!outcome) restore(*request);
    // What needed no pass found all of its tokens.
    if (outcome && request->started && !request->computed) stats_.cached_tokens += request->result.cached_tokens;
    if (!request->keep_sequence) {  // the request lives as long as its handle, and needs these no more
      free_pages(sequence, 0);
      std::vector<Token>().swap(sequence.tokens);
      std::vector<float>().swap(sequence.logits);
      request->sampler.reset();
      request->decoder.reset();
    }
    sequence.active = false;
    sequence.last_used = ++use_counter_;
  }
  if (request->generate) {
    const auto end = Clock::now();
    const auto seconds = [](auto duration) { return std::chrono::duration<double>(duration).count(); };
    Timings& timings = request->result.timings;
    const auto start = request->started ? request->prefill_start : end;
    const auto first = request->result.tokens.empty() ? end : request->first_token;
    timings = {seconds(start - request->submitted), seconds(first - start), seconds(end - first)};
  }
  {
    const std::lock_guard lock(request->mutex);
    request->outcome = std::move(outcome);
    request->done = true;
  }
  request->changed.notify_all();
}

}  // namespace llminfer::inline v0::engine
