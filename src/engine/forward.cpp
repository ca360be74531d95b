// One forward pass over the shares of several requests.
#include <algorithm>

#include "backends/common/check.hpp"
#include "core/error.hpp"
#include "engine/core.hpp"
#include "engine/sampler.hpp"

namespace llminfer::inline v0::engine {

namespace {

/// Calls on_logits, unless it has had this position's before its pages were taken and computed again.
void give_logits(Request& request, std::int32_t position, std::span<const float> logits) {
  if (!request.on_logits || position < request.logits_given || request.cancelled()) return;
  request.logits_given = position + 1;
  try {
    if (request.on_logits(position, logits)) return;
  } catch (...) {
    request.callback_failed = true;
  }
  request.cancel_requested = true;
}

/// What a request wants of the logits after its last token.
CandidateWish wish_of(const Request& request, std::int32_t most) {
  if (!request.generate || request.answered || !request.sampler) return {};
  return CandidateSampler::wish(*request.sampler, most);
}

}  // namespace

/// The rows of a pass, and what is wanted of each.
void EngineCore::gather(std::span<const Share> shares) {
  const auto width = static_cast<std::size_t>(model_->program.hidden_size);
  auto& pass = pass_;
  pass.tokens.clear();
  pass.embeddings.clear();
  pass.positions.clear();
  pass.logit_rows.clear();
  pass.hidden_rows.clear();
  pass.runs.clear();
  pass.wishes.clear();
  const std::int32_t most_candidates = model_->plan->max_candidates();

  for (const Share& share : shares) {
    const Request& request = *share.request;
    const Sequence& sequence = *request.sequence;
    Run& run = pass.runs.emplace_back();
    run.first_row = static_cast<std::int32_t>(pass.tokens.size());
    run.rows = share.rows;
    run.first_position = sequence.cached;
    for (const auto& pages : sequence.pages) run.block_tables.emplace_back(pages);
    for (std::int32_t i = 0; i < share.rows; ++i) {
      const std::int32_t position = sequence.cached + i, row = run.first_row + i;
      pass.tokens.push_back(sequence.tokens[static_cast<std::size_t>(position)]);
      pass.positions.push_back(position);
      if (pass.tokens.back() < 0) {
        const std::vector<float>& from = sequence.embeddings.at(position);
        pass.embeddings.resize(pass.tokens.size() * width);
        std::copy(from.begin(), from.end(), pass.embeddings.end() - static_cast<std::ptrdiff_t>(width));
      }
      if (request.want_hidden && position >= static_cast<std::int32_t>(request.tokens_before.size())) {
        pass.hidden_rows.push_back(row);
      }
      if (position + 1 == sequence.size() || (request.on_logits && position >= request.logits_given)) {
        pass.logit_rows.push_back(row);
        pass.wishes.push_back(wish_of(request, most_candidates));
      }
    }
  }
  if (!pass.embeddings.empty()) pass.embeddings.resize(pass.tokens.size() * width);
}

/// One pass over the shares. Engine thread, mutex not held: the sequences of the shares are active, so nobody else
/// touches them.
Result<void> EngineCore::forward(std::span<const Share> shares) {
  gather(shares);
  const auto vocab = static_cast<std::size_t>(model_->program.vocab_size);
  const auto width = static_cast<std::size_t>(model_->program.hidden_size);
  auto& pass = pass_;
  Batch batch;
  batch.tokens = pass.tokens;
  batch.embeddings = pass.embeddings;
  batch.positions = pass.positions;
  batch.runs = pass.runs;
  batch.logit_rows = pass.logit_rows;
  batch.hidden_rows = pass.hidden_rows;
  batch.candidate_wishes = pass.wishes;
  const backend::WantedLogits wanted = backend::wanted_logits(batch);
  pass.logits.resize(wanted.rows * vocab);
  pass.candidates.resize(wanted.candidates);
  pass.sums.resize(wanted.sums ? pass.wishes.size() : 0);
  pass.draws.resize(wanted.draws ? pass.wishes.size() : 0);
  pass.hidden.resize(pass.hidden_rows.size() * width);
  batch.logits = pass.logits;
  if (wanted.candidates == 0) {
    batch.candidate_wishes = {};
  } else {
    batch.candidate_tokens = model_->tokenizer.vocab_size();
    batch.candidates = pass.candidates;
    batch.candidate_sums = pass.sums;
    batch.draws = pass.draws;
  }
  batch.hidden = pass.hidden;
  batch.interrupted = [shares] {
    return std::all_of(shares.begin(), shares.end(),
                       [](const Share& share) { return share.request->cancelled() || share.request->late(); });
  };
  std::vector<CacheStorage*> caches;
  for (const auto& cache : model_->caches) caches.push_back(cache.get());
  LLMINFER_TRY(model_->plan->submit(batch, caches));
  LLMINFER_TRY(model_->plan->wait());
  hand_out(shares);
  return {};
}

/// Gives candidates, logits and hidden states of the pass to the requests and their sequences.
void EngineCore::hand_out(std::span<const Share> shares) {
  const auto vocab = static_cast<std::size_t>(model_->program.vocab_size);
  const auto width = static_cast<std::size_t>(model_->program.hidden_size);
  const auto& pass = pass_;
  std::size_t logit = 0, whole = 0, candidate = 0, hidden = 0;
  for (std::size_t i = 0; i < shares.size(); ++i) {
    Sequence& sequence = *shares[i].request->sequence;
    const std::int32_t end = pass.runs[i].first_row + pass.runs[i].rows;
    for (; logit < pass.logit_rows.size() && pass.logit_rows[logit] < end; ++logit) {
      if (const CandidateWish wish = pass.wishes[logit]; wish.count > 0) {
        const auto first = pass.candidates.begin() + static_cast<std::ptrdiff_t>(candidate);
        auto& given = shares[i].request->candidates;
        shares[i].request->take_logits();
        given.best.assign(first, first + wish.count);
        given.sum = wish.sum ? std::optional(pass.sums[logit]) : std::nullopt;
        given.drawn = wish.temperature > 0 ? std::optional(pass.draws[logit]) : std::nullopt;
        given.row = logit;
        candidate += static_cast<std::size_t>(wish.count);
        continue;
      }
      const std::span<const float> row(pass.logits.data() + whole++ * vocab, vocab);
      const std::int32_t position = pass.positions[static_cast<std::size_t>(pass.logit_rows[logit])];
      give_logits(*shares[i].request, position, row);
      if (position + 1 < sequence.size()) continue;
      shares[i].request->take_logits();
      sequence.logits.assign(row.begin(), row.end());
    }
    for (; hidden < pass.hidden_rows.size() && pass.hidden_rows[hidden] < end; ++hidden) {
      const auto* from = pass.hidden.data() + hidden * width;
      const auto index = static_cast<std::size_t>(pass.positions[static_cast<std::size_t>(pass.hidden_rows[hidden])]) -
                         shares[i].request->tokens_before.size();
      sequence.hidden.resize(std::max(sequence.hidden.size(), (index + 1) * width));
      std::copy(from, from + width, sequence.hidden.begin() + static_cast<std::ptrdiff_t>(index * width));
    }
  }
}

}  // namespace llminfer::inline v0::engine
