// GpuPlan: a compiled Program on a device. A pass is a list of launches on the device's stream: submit() enqueues them
// and returns, wait() waits. What changes from pass to pass (tokens, positions, pages, tasks) goes up in one copy.
// Weights that are streamed go up beside the launches, through a WeightRing, and so do cache pages that lie in host
// memory, by their CachePager. Passes of few rows are padded to a bucket and launched as one graph, those of one row as
// one kernel, if that is wanted.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include <llminfer/backend.hpp>
#include <llminfer/gpu.hpp>

#include "backends/common/steps.hpp"
#include "backends/gpu/cache.hpp"
#include "backends/gpu/collective.hpp"
#include "backends/gpu/device.hpp"
#include "backends/gpu/graphs.hpp"
#include "backends/gpu/profiler.hpp"
#include "backends/gpu/ring.hpp"
#include "backends/gpu/step_list.hpp"
#include "backends/gpu/weight.hpp"

namespace llminfer::gpu {

using namespace backend;  // steps and checks, which all backends of this tree share

/// Logits are computed so many rows at a time: a vocabulary is wide.
inline constexpr std::int32_t kLogitRows = 64;
/// A run of at least so many rows is attended to in tiles.
inline constexpr std::int32_t kTileMinRows = 16;
/// A pass of up to so many rows, of short runs, has the launches of a bucket.
inline constexpr std::int32_t kBucketRows = 64;
static_assert(kBucketRows <= kLogitRows);
/// Keys that a split of a batch-invariant attention has, in pages: the same for every batch.
inline constexpr int kInvariantSplitPages = 16;
/// Arrays that the routing of a mixture makes: RouteArgs' and SortArgs'.
inline constexpr int kExpertWords = 6;
/// Blocks per multiprocessor that attention is split into.
inline constexpr int kBlocksPerUnit = 4;
inline constexpr std::int32_t kAllPages = 1 << 30;  ///< of a split that has them all

RoundingArgs rounding_of(const InputQuantization& input);

/// The sizes of a plan's device memory, known from the program alone. Offsets are in bytes.
struct PlanLayout {
  PlanLayout(const Program& program, const Steps& steps, std::int32_t max_rows);

  std::vector<std::int64_t> buffers;      ///< per Steps buffer: floats [max_rows, stride]
  std::vector<std::int64_t> angles;       ///< per rope table
  std::vector<std::int64_t> frequencies;  ///< per rope table: its floats
  std::int64_t padded_input = 0;          ///< widest input of a linear layer, padded
  std::int64_t rounded_floats = 0;        ///< of inputs, if they are rounded or put in an order; in their own memory
  std::int64_t halves = 0;                ///< [max_rows, padded_input]
  std::int64_t scales = 0;                ///< [max_rows]
  int split_blocks = 0;                   ///< LinearArgs::split_blocks, 0: no weight's tiles are split
  std::int64_t split_parts = 0, split_counters = 0;
  std::int64_t barrier = 0;  ///< PersistentArgs::barrier
  std::int64_t queries = 0, query_width = 0;
  std::int64_t parts = 0, part_floats = 0;  ///< of attention that is split
  std::int64_t gathered = 0;                ///< floats [max_rows, widest value]
  std::int64_t logits = 0;                  ///< floats [kLogitRows, vocab_size], if the last layer writes them
  /// Of rows whose candidates are wanted (CandidatesArgs), so many at a time as of logits; results of all rows.
  struct Candidates {
    std::int64_t parts = 0, part_sums = 0;
    std::int64_t out = 0, sums = 0, draws = 0;  ///< [max_rows, kMaxCandidates], [max_rows], [max_rows]
  } candidates;
  /// Memory of mixtures of experts, for `places` pairs of a token and one of its experts, sorted by expert.
  struct Experts {
    std::int64_t places = 0;              ///< max_rows * most experts that a token uses; 0: no mixtures
    std::int64_t rows = 0, width = 0;     ///< floats [places, width]: outputs
    std::int64_t hidden = 0, ffn = 0;     ///< floats [2][places, ffn]: gate and up; padded
    std::int64_t padded = 0;              ///< the widest input of an expert, padded
    std::int64_t halves = 0, scales = 0;  ///< the same as a linear layer's
    std::int64_t words = 0;               ///< of 4 bytes [kExpertWords][places]: RouteArgs, SortArgs
    std::int64_t tiles = 0;               ///< ExpertTiles [places]
    /// Per value that is a mixture's output, per slot of a ring: ExpertMatrices [gate, up, down][experts].
    std::vector<std::int64_t> tables;
  } experts;
  std::int64_t bytes = 0;
};

class GpuPlan final : public Plan {
 public:
  /// Errors: invalid_argument, shape_mismatch, unsupported, out_of_memory, device_error.
  static Result<std::unique_ptr<GpuPlan>> make(const Program& program,
                                               std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                               const PlanOptions& options, std::shared_ptr<Device> device,
                                               const GpuOptions& gpu_options);
  ~GpuPlan() override;

  std::int64_t bytes() const noexcept override {
    return memory_.bytes() + rounded_.bytes() + (ring_ ? ring_->bytes() : 0);
  }
  Result<void> submit(const Batch& batch, std::span<CacheStorage* const> caches) override;
  Result<void> wait() override;
  Result<void> sum_with(std::shared_ptr<Collective> collective) override;
  std::int32_t max_candidates() const noexcept override;
  Result<void> fetch_logits(std::size_t index, std::span<float> logits) override;

 private:
  /// Rows [first, first + count), of which the last positions go up to `longest`.
  struct RowRange {
    std::int32_t first = 0, count = 0, longest = 0;
  };
  /// The pass that is being enqueued or runs.
  struct Pass {
    std::vector<GpuCache*> caches;
    std::vector<std::int32_t> words;  ///< what goes up: all that follows, as offsets into it
    std::int64_t tokens = 0, positions = 0;
    std::int64_t selected = 0;  ///< ascending rows whose logits or hidden states are wanted
    std::int64_t selected_positions = 0;
    std::int64_t logit_index = 0, hidden_index = 0;  ///< of each wanted row among the selected ones
    std::vector<std::int64_t> begins;                ///< per cache group [rows]
    std::int64_t pages = 0;                          ///< all block tables of the groups without a pager
    std::vector<std::vector<std::int64_t>> blocks;   ///< per group with a pager and per layer: its block tables
    std::int64_t tasks = 0;                          ///< TileTasks
    std::int32_t task_count = 0;
    /// Per cache group that seals pages, else empty: the page of each row; what the words have of them.
    struct Open {
      std::vector<std::int32_t> page_of_row;
      std::int64_t rows = 0;        ///< [rows] addresses of open pages
      std::int64_t seals = 0;       ///< SealTasks; with a pager, of each layer one after the other
      std::int32_t seal_count = 0;  ///< of a layer
    };
    std::vector<Open> open;
    std::vector<RowRange> single_rows;  ///< that attention takes one by one, if it takes tiles
    RowRange all_rows{};
    /// Rows that are launched. In a bucket they are more than the batch's: the position of one that is none of these is
    /// negative, and nobody reads what is computed for it.
    std::int32_t rows = 0;
    bool bucket = false;             ///< launches depend on graph_key() alone
    bool selects = false;            ///< not the outputs of all rows are wanted, but of some
    std::int32_t selected_rows = 0;  ///< in a bucket padded likewise
    std::int32_t launched_logits = 0;
    std::int32_t current_rows = 0;  ///< that the next step works on
    std::int64_t current_positions = 0;
    bool has_embeddings = false;
    std::int64_t logit_rows = 0, hidden_rows = 0;
    std::span<float> logits, hidden;
    std::span<const CandidateWish> wishes;  ///< empty: no row has candidates
    std::span<TokenLogit> candidates;
    std::span<double> sums;
    std::span<DrawnToken> draws;
    std::int64_t candidate_tasks = 0;  ///< CandidateTasks [logit_rows]
    int candidate_tokens = 0;
    std::int64_t piece = -1;  ///< the first of the logit rows that PlanLayout::logits holds; -1: none
    bool done = false;        ///< wait() has said so
    int layers = 0;           ///< attention steps enqueued
    bool sums_on_devices = false;
    int sums_made = 0;     ///< of them
    bool streams = false;  ///< the present step reads weights that are streamed
    bool stop = false;     ///< interrupted
  };

  /// Splits of attention, and the pages of each.
  struct Splits {
    std::int32_t count = 1, pages = kAllPages;
  };
  /// What a step reads of the ring.
  struct StepGroup {
    std::int32_t group = -1;  ///< or none
    bool last = false;        ///< nothing after it reads the group
  };

  GpuPlan(const Program& program, Steps steps, const PlanLayout& layout,
          std::vector<std::shared_ptr<const PreparedWeight>> weights, const PlanOptions& options,
          std::shared_ptr<Device> device, const GpuOptions& gpu_options);
  Result<void> bind_weights(const PlanOptions& options);
  Result<void> make_ring(const PlanOptions& options);
  Result<void> begin(const Batch& batch, std::span<CacheStorage* const> caches);
  void lay_out(const Batch& batch);
  static bool launches_alone(const Steps& steps);
  void choose_bucket(const Batch& batch, std::int32_t selected);
  Splits splits_of(std::size_t group, const RowRange& range) const;
  std::vector<std::int64_t> graph_key() const;
  bool launch_graph();
  Result<void> launch_into(void* queue);
  Result<Buffer> list_steps();
  void lay_out_open_pages(const Batch& batch);
  Result<void> begin_pages(const Batch& batch);
  void lay_out_blocks(const Batch& batch);
  Result<void> finish_pages();
  void abandon_pages(const Result<void>& waited) noexcept;
  /// Makes room for so many bytes, once the device no longer uses what is there. What was in it is lost.
  Result<void> grow(Buffer& buffer, std::int64_t bytes, bool host);
  Result<void> upload(const Batch& batch);
  Result<void> enqueue(const Batch& batch);
  Result<void> fetch_outputs();
  // plan_collective.cpp
  /// Waits for what the pass has enqueued.
  Result<void> settle();
  Result<void> end_on_device(const Result<void>& settled);
  Result<void> sum_on_devices(const op::Reduce& op);
  Result<void> owe_sums();
  void lay_out_candidates(const Batch& batch);
  /// Of logit rows [first, first + count), which are in `rows`: the logits that are wanted, to the host, and
  /// candidates.
  Result<void> give_logits(const RowsArgs& rows, std::int64_t first, std::int64_t count);
  Result<void> fetch_candidates();
  /// Where in host_out_ the candidates lie, and behind them their sums; in bytes.
  std::int64_t candidates_at() const noexcept;
  void give_candidates() const noexcept;

  Result<void> run(const EmbedStep& step);
  Result<void> run(const NormStep& step);
  Result<void> run(const LinearStep& step);
  Result<void> run(const RopeStep& step);
  Result<void> run(const AttentionStep& step);
  Result<void> run(const GluStep& step);
  Result<void> run(const AddStep& step);
  Result<void> run(const ReduceStep& step);
  Result<void> run(const MoeStep& step);
  Result<void> run(const SelectStep& step);
  // plan_moe.cpp
  Result<void> make_expert_tables();
  ExpertMatrix expert_matrix(WeightId id, WeightId bias, std::int64_t slot) const noexcept;
  Result<SortArgs> route(const op::Moe& op, std::int32_t tile_rows);
  Result<void> prepare_places(const RowsArgs& in, const std::int32_t* indices, const SortArgs& sorted,
                              const GpuWeight& first, ExpertsArgs& layer);
  /// One launch for each form that the matrices have.
  Result<void> multiply_experts(ExpertsArgs args, const std::vector<WeightId>& matrices, bool few);
  Result<LinearArgs> prepare(const RowsArgs& in, const LinearStep& step, std::int32_t rows);
  Result<LinearArgs> quantize(const RowsArgs& in, const LinearStep& step, LinearArgs layer);
  template <class Wanted>
  bool all_weights(const LinearStep& step, Wanted wanted) const noexcept;
  /// Whether so many rows may be multiplied in other ways than fewer. `exact`: ways make no difference to the sums.
  bool many(std::int32_t rows, bool exact) const noexcept;
  bool by_warpgroups(std::int32_t rows, bool exact) const noexcept;
  bool as_e4m3(const LinearStep& step, std::int32_t rows) const noexcept;
  bool as_int8(const LinearStep& step, std::int32_t rows) const noexcept;
  bool few(std::int32_t rows) const noexcept;
  LinearArgs layer_of(const LinearArgs& common, WeightId id, WeightId bias, const RowsArgs& out) const noexcept;
  Result<void> gated_unit(const LinearArgs& gate, const LinearArgs& up);
  Result<void> linear(const LinearArgs& args);
  Result<void> linear_few(const LayersArgs& args);
  Result<void> run_logits(const LinearStep& step);
  /// The logit rows from `first` on, at most kLogitRows, by the last layer, to logits().
  Result<void> compute_logits(const LinearStep& step, std::int64_t first);
  Result<void> attend_rows(const AttendArgs& args, std::size_t group, const RowRange& range);
  Result<void> compute_angles(std::int64_t positions, std::int32_t rows);
  /// The rows of a value that `indices` (words) names, to the gathered rows.
  Result<RowsArgs> gather(const RowsArgs& in, std::int64_t width, std::int64_t indices, std::int32_t count);

  const GpuWeight& weight(WeightId id) const noexcept { return *weights_[static_cast<std::size_t>(id)]; }
  const std::byte* data(WeightId id, std::int64_t slot) const noexcept {
    return weight(id).streamed() ? ring_->at(static_cast<std::size_t>(id), slot) : weight(id).data();
  }
  /// The ring's slot that holds what the present step reads of it.
  std::int64_t slot() const noexcept { return ring_ ? ring_->slot() : 0; }
  /// For the kernel that is launched next. It begins in turn if the weight was copied in this pass: what kernels read
  /// before has been there since the load.
  const std::byte* data(WeightId id) const noexcept {
    if (weight(id).streamed()) device_->begin_in_turn();
    return data(id, slot());
  }
  MatrixArgs matrix(WeightId id) const noexcept { return weight(id).matrix_at(data(id)); }
  const float* vector(WeightId id) const noexcept {
    return id == WeightId::none ? nullptr : weight(id).vector_at(data(id));
  }
  /// What the last layer computed last.
  RowsArgs logits() const noexcept { return {memory_.at<float>(layout_.logits), program_.vocab_size}; }
  std::int64_t width(ValueId id) const noexcept { return program_.values[static_cast<std::size_t>(id)].width; }
  RowsArgs value(ValueId id) const noexcept;
  RopeArgs rope(std::int32_t table) const noexcept;
  TablesArgs tables(std::int32_t group, std::int32_t layer) const noexcept;
  const std::int32_t* words(std::int64_t at) const noexcept { return words_.at<std::int32_t>(at * 4); }
  const KernelTable& kernels() const noexcept { return lists_steps_ ? StepList::table() : device_->kernels(); }
  void* stream() const noexcept { return queue_ ? queue_ : device_->stream(); }

  const Program program_;
  Steps steps_;
  const PlanLayout layout_;
  const std::int32_t max_rows_;
  const Reduction reduce_;
  std::shared_ptr<GpuCollective> collective_;  ///< or null
  const std::shared_ptr<Device> device_;
  const GpuOptions options_;
  const bool launches_alone_;
  std::vector<std::shared_ptr<const PreparedWeight>> owned_;
  std::vector<const GpuWeight*> weights_;
  std::unique_ptr<WeightRing> ring_;    ///< null: no weight is streamed
  std::vector<StepGroup> step_groups_;  ///< per step
  std::int64_t embed_rows_ = 0;
  Buffer memory_;
  Buffer rounded_;                       ///< PlanLayout::rounded_floats
  bool rotates_selected_ = false;        ///< a RopeStep comes after the selection
  Buffer words_, host_words_;            ///< Pass::words on the device and on its way there; grow
  Buffer embeddings_, host_embeddings_;  ///< likewise
  Buffer host_reduced_;                  ///< rows that are summed over ranks; grows
  Buffer host_out_;                      ///< outputs on their way back; grows
  GraphTable graphs_;
  std::unique_ptr<Profiler> profiler_;  ///< null where nobody asked for it
  void* queue_ = nullptr;               ///< where launches go while a graph or a list of steps is made
  bool lists_steps_ = false;            ///< it is a StepList
  Pass pass_;
  std::optional<Result<void>> outcome_;  ///< of the pass that wait() has not been called for
};

}  // namespace llminfer::gpu
