// What a request does with the logits of its last token: choose the next one, give out text, end.
#include <algorithm>
#include <utility>

#include "core/error.hpp"
#include "engine/core.hpp"
#include "engine/sampler.hpp"

namespace llminfer::inline v0::engine {

using core::fail;

/// The logits after the last token, from where the pass left them.
Result<void> EngineCore::fetch_logits(Request& request) {
  Sequence& sequence = *request.sequence;
  if (!sequence.logits.empty()) return {};
  std::vector<float> logits(static_cast<std::size_t>(model_->program.vocab_size));
  LLMINFER_TRY(model_->plan->fetch_logits(request.candidates.row, logits));
  sequence.logits.swap(logits);
  return {};
}

/// From the candidates that the pass gave, or from all logits.
Result<Sample> EngineCore::choose(Request& request) {
  if (request.sequence->logits.empty()) {
    const RowCandidates row{request.candidates.best, request.candidates.sum, request.candidates.drawn};
    auto sample = LLMINFER_TRY(CandidateSampler::sample(*request.sampler, row));
    if (sample) return *std::move(sample);
    LLMINFER_TRY(fetch_logits(request));
  }
  const auto vocab = static_cast<std::size_t>(model_->tokenizer.vocab_size());
  return request.sampler->sample(std::span(request.sequence->logits).first(vocab));
}

/// Chooses the next token. The sequence is computed up to its last token, whose logits or candidates are there. Of a
/// session that goes no further they stay as logits.
Result<void> EngineCore::advance(Request& request) {
  // A handle that was dropped may have taken with it what the callbacks use; the next step ends its request.
  if (!request.generate || request.answered || request.cancel_requested.load(std::memory_order_relaxed)) return {};
  Sequence& sequence = *request.sequence;
  const GenerateOptions& options = request.options;
  CompletionResult& result = request.result;
  if (sequence.size() >= model_->info.context_length) {
    if (options.overflow == OverflowPolicy::stop) {
      if (request.keep_sequence) LLMINFER_TRY(fetch_logits(request));
      end_answer(request, FinishReason::length);
      return {};
    }
    shift(request);  // the logits at hand still serve for this token
  }
  Sample sample = LLMINFER_TRY(choose(request));
  if (result.tokens.empty()) request.first_token = Clock::now();

  const auto is_one_of = [&](std::span<const Token> tokens) {
    return std::find(tokens.begin(), tokens.end(), sample.token) != tokens.end();
  };
  const bool ended = !options.ignore_end && is_one_of(model_->tokenizer.end_tokens());
  if (ended || is_one_of(options.stop_tokens)) {
    if (request.keep_sequence) LLMINFER_TRY(fetch_logits(request));
    end_answer(request, ended ? FinishReason::end_token : FinishReason::stop);
    return {};
  }

  sequence.tokens.push_back(sample.token);
  request.take_logits();
  request.sampler->accept(std::span(&sample.token, 1));
  result.tokens.push_back(sample.token);
  const std::string text = request.stop.push(LLMINFER_TRY(request.decoder->push(sample.token)));
  emit(request, sample.token, text, &sample);
  if (options.sampling.logprobs > 0) result.samples.push_back(std::move(sample));
  if (request.answered) return {};  // the callback ended it
  if (request.stop.matched()) {
    end_answer(request, FinishReason::stop);
  } else if (options.max_tokens > 0 && static_cast<std::int32_t>(result.tokens.size()) >= options.max_tokens) {
    end_answer(request, FinishReason::length);
  }
  return {};
}

/// Gives out a piece of text with the token that made it certain (-1: none, at the end).
void EngineCore::emit(Request& request, Token token, std::string_view text, const Sample* sample) {
  request.result.text += text;
  if (request.stream && !text.empty()) {
    {
      const std::lock_guard lock(request.mutex);
      request.stream_text += text;
    }
    request.changed.notify_all();
  }
  if (!request.options.on_token || request.cancel_requested.load(std::memory_order_relaxed)) return;
  GeneratedToken generated;
  generated.token = token;
  generated.text = text;
  if (sample) {
    generated.logprob = sample->logprob;
    generated.top = sample->top;
  }
  bool go_on = false;
  try {
    go_on = request.options.on_token(generated);
  } catch (...) {
    request.callback_failed = true;
  }
  if (!go_on && !request.answered) end_answer(request, FinishReason::cancelled);
}

/// Decides the reason and gives out the text that was held back. A session's request still computes its last token.
void EngineCore::end_answer(Request& request, FinishReason reason) {
  request.answered = true;
  request.result.reason = reason;
  if (!request.generate || request.stop.matched()) return;
  std::string rest = request.stop.push(request.decoder->finish());
  if (!request.stop.matched()) rest += request.stop.finish();
  if (!rest.empty() && !request.callback_failed) emit(request, -1, rest, nullptr);
}

/// Forgets the oldest tokens after the first keep_tokens, so that half of the room behind those is free.
void EngineCore::shift(Request& request) {
  Sequence& sequence = *request.sequence;
  const std::int32_t keep = request.options.keep_tokens;
  const std::int32_t stay = (model_->info.context_length - keep) / 2;
  const std::int32_t drop = sequence.size() - keep - stay;
  if (!sequence.embeddings.empty()) {
    std::unordered_map<std::int32_t, std::vector<float>> moved;
    for (const auto& [position, row] : sequence.embeddings) {
      if (position < keep) moved.emplace(position, row);
      if (position >= keep + drop) moved.emplace(position - drop, row);
    }
    sequence.embeddings.swap(moved);
    if (!request.embeddings_before) request.embeddings_before = std::move(moved);
  }
  const auto first = sequence.tokens.begin() + keep;
  sequence.tokens.erase(first, first + drop);
  const std::lock_guard lock(mutex_);
  free_pages(sequence, std::min(keep, sequence.cached));
}

}  // namespace llminfer::inline v0::engine
