// CpuPlan: a compiled program. A pass is one region of the team: its phases are the steps, some of them two.
//
// A token's bits depend on nothing but that token and those before it: each row of a step is computed by the same
// operations in the same order whatever the other rows, the split over threads and the pages.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include <llminfer/backend.hpp>

#include "backends/common/steps.hpp"
#include "backends/cpu/attention_tasks.hpp"
#include "backends/cpu/cache.hpp"
#include "backends/cpu/matrix.hpp"
#include "backends/cpu/plan_inputs.hpp"
#include "backends/cpu/profile.hpp"
#include "core/parallel.hpp"

namespace llminfer::cpu {

/// Memory on cache lines.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  /// Throws std::bad_alloc.
  explicit AlignedBytes(std::int64_t bytes);
  template <class T>
  T* at(std::int64_t offset) const noexcept {
    return reinterpret_cast<T*>(data_.get() + offset);
  }

 private:
  struct Delete {
    void operator()(std::byte* p) const noexcept;
  };
  std::unique_ptr<std::byte[], Delete> data_;
};

/// The sizes of a plan's memory, known from the program alone.
struct PlanLayout {
  PlanLayout(const Program& program, const Steps& steps, std::int32_t max_rows, int threads);

  std::int64_t widest_input = 0;  ///< of a linear layer
  std::int32_t tile_rows = 0;     ///< most rows of an attention tile
  std::int32_t padded_dim = 0;    ///< widest head
  // Offsets in bytes from the start of the shared memory.
  std::vector<std::int64_t> buffers;  ///< per Steps buffer
  std::vector<std::int64_t> angles;   ///< per rope table: [max_rows] of cosines [pairs], sines [pairs]
  std::int64_t normed = 0;            ///< float rows [max_rows, normed_stride]
  std::int64_t normed_stride = 0;
  std::int64_t quantized = 0;         ///< quantized rows [max_rows, quantized_stride]
  std::int64_t quantized_stride = 0;  ///< in groups
  /// Memory of mixtures of experts, for `rows` pairs of a token and one of its experts, sorted by expert ("places").
  struct Experts {
    std::int64_t rows = 0;                       ///< max_rows * most experts that a token uses; 0: no mixtures
    std::int64_t inputs = 0, input_stride = 0;   ///< [rows] of so many QuantizedGroups, or of floats in their place
    std::int64_t hidden = 0, hidden_stride = 0;  ///< floats [2][rows, stride]: gate and up; then the outputs:
    std::int64_t output_stride = 0;              ///< floats [rows, stride]
    std::int64_t chosen = 0, factors = 0;        ///< int32 and float [max_rows, used]: experts and their factors
    std::int64_t places = 0;                     ///< int32 [max_rows, used]
    std::int64_t experts = 0;                    ///< int32 [rows]: of each place
    std::int64_t begins = 0;                     ///< int32 [experts + 1]: first place of each expert
  } experts;
  std::int64_t reduced = 0;  ///< floats [max_rows, widest reduction]
  std::int64_t shared_bytes = 0;
  // Offsets in a thread's own memory.
  std::int64_t own_normed = 0, own_quantized = 0, linear = 0, head = 0, tile = 0;
  std::int64_t own_bytes = 0;
  std::int64_t bytes() const noexcept { return shared_bytes + threads * own_bytes; }
  int threads = 1;
};

class CpuPlan final : public Plan {
 public:
  /// `weights` as in Backend::compile. Errors: invalid_argument, shape_mismatch, out_of_memory.
  static Result<std::unique_ptr<CpuPlan>> make(const Program& program,
                                               std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                               const PlanOptions& options, const Level& level, bool exact,
                                               ActivationCodes codes, std::shared_ptr<core::Team> team);

  /// From now on every pass is reported to `callback`. Throws std::bad_alloc.
  void profile(ProfileCallback callback) {
    profiler_ = std::make_unique<Profiler>(std::move(callback), program_, steps_, weights_, level_.name);
  }

  std::int64_t bytes() const noexcept override;
  Result<void> submit(const Batch& batch, std::span<CacheStorage* const> caches) override;
  Result<void> wait() override;

 private:
  /// The phases of a mixture of experts, in their order.
  enum class ExpertStage : std::uint8_t {
    route,     ///< tokens: choose experts
    sort,      ///< one item: places of all pairs
    gather,    ///< tokens: their rows as gate reads them
    gate,      ///< shares of the work: gate, and if it reads the same rows, up and the activation
    regather,  ///< tokens: as up reads them, where that differs
    up,        ///< shares: up and the activation, then
    narrow,    ///< places: the activations as down reads them
    down,      ///< shares
    combine,   ///< tokens: the sum
  };
  /// A part of a pass during which nothing depends on anything else: `items` of a step, which threads take in chunks.
  struct Phase {
    enum class Kind : std::uint8_t {
      angles,   ///< of the batch's positions: the first one
      prepare,  ///< what all items of the step's main phase read: quantized rows, or keys and values in the cache
      main,
      outputs,  ///< what the batch asked for: the last one
    };
    Kind kind;
    const Step* step;   ///< of prepare and main
    bool selected;      ///< rows are those of Pass::selected
    std::int32_t rows;  ///< that the step works on
    int items = 0;
    std::int32_t blocks = 1;  ///< linear layers: items are units of output features, for each of so many blocks of rows
    ExpertStage stage = ExpertStage::route;  ///< of a mixture of experts
  };
  /// Rows of a batch by the page that their keys and values are written to, for caches that seal pages.
  struct PageWrites {
    std::vector<std::int32_t> rows;
    std::vector<std::int32_t> begins;  ///< of a page's rows in `rows`, and the end
  };
  /// The pass that is running.
  struct Pass {
    const Batch* batch = nullptr;
    std::vector<CpuCache*> caches;
    std::vector<std::int32_t> run_of_row;
    std::vector<std::int32_t> selected;     ///< ascending rows whose logits or hidden states are wanted
    std::vector<std::int32_t> logit_index;  ///< per logit row its index in `selected`
    std::vector<AttentionTasks> attention;  ///< per cache group and number of heads
    bool write_in_attention = false;        ///< attention tasks write keys and values: every run is one token
    std::vector<PageWrites> writes;         ///< per cache group
    std::size_t steps = 0;                  ///< that the pass goes through
    std::vector<Phase> phases;
    std::vector<int> chunks;        ///< per phase
    std::atomic<bool> stop{false};  ///< what is left of the pass is skipped
    Result<void> reduced;           ///< the error of PlanOptions::reduce; written by the one thread that calls it
  };
  /// What a thread has for itself.
  struct alignas(64) Thread {
    std::byte* memory = nullptr;
    float* rounded = nullptr;         ///< its row of rounded floats, if there are any
    float* ordered = nullptr;         ///< room to bring a row into another order, if that happens
    PanelRoom panels{};               ///< for weights that are not wholly packed
    const Phase* prepared = nullptr;  ///< the phase whose only input row it has normed and quantized

    template <class T>
    T* at(std::int64_t offset) const noexcept {
      return reinterpret_cast<T*>(memory + offset);
    }
  };

  /// How a linear step reads its input in this pass.
  struct LinearInput {
    const StepInput* input = nullptr;
    bool direct = false;  ///< the step writes Batch::logits
    bool gather = false;  ///< rows are picked from the selected ones
    bool copy = false;    ///< float rows are normed or gathered, not read where they lie
    ActivationCodes codes = kCodes16;
    bool prepares() const noexcept { return copy || !input->forms.empty() || input->rounds; }
  };
  CpuPlan(const Program& program, Steps steps, const PlanLayout& layout,
          std::vector<std::shared_ptr<const PreparedWeight>> weights, const PlanOptions& options, const Level& level,
          std::shared_ptr<core::Team> team);
  Result<void> bind_weights(bool exact);
  void bind_inputs(ActivationCodes codes);
  float* rounded_row(std::int64_t row) const noexcept {
    return input_rows_.at<float>(0) + row * input_layout_.rounded_stride;
  }
  QuantizedGroup* quantized_rows(int form, bool own, const Thread& thread) const noexcept;
  Result<void> begin(const Batch& batch, std::span<CacheStorage* const> caches);
  void plan_phases();
  void add_phase(Phase phase, int grain = 0);
  void run_chunks(int phase, int first, int last, int thread) noexcept;

  // Items [first, last) of a phase of the step.
  void run(const EmbedStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept;
  void run(const NormStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept;
  void run(const LinearStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept;
  void run(const RopeStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept;
  void run(const AttentionStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept;
  void run(const GluStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept;
  void run(const AddStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept;
  void run(const ReduceStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept;
  void run(const MoeStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept;
  void run(const SelectStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept;
  void give_out() noexcept;

  void compute_angles(int first, int last) noexcept;
  void make_panel_room();
  Result<void> open_pages();
  void write_key_value(const AttentionStep& step, std::int32_t row, std::int32_t kv_head, Thread& thread) noexcept;
  void seal(const AttentionStep& step, std::int32_t row, std::int32_t kv_head) noexcept;
  void attend_chunk(const AttentionStep& step, std::int32_t kv_head, const AttentionTile& tile, const PageRange& range,
                    const AttentionState& state, const AttentionState& more, float* scratch) noexcept;
  void rotate_queries(const AttentionStep& step, const AttentionTask& task, std::int32_t sharing, float* out) noexcept;
  void finish_tile(const AttentionStep& step, const AttentionTask& task, std::int32_t sharing, std::int32_t padded_dim,
                   const AttentionState& total) noexcept;
  void attend(const AttentionStep& step, AttentionTasks& tasks, std::size_t first, std::size_t last,
              Thread& thread) noexcept;
  LinearInput linear_input(const Step& step, std::int32_t rows) const noexcept;
  void prepare_rows(const LinearStep& step, const LinearInput& input, std::int32_t first, std::int32_t last, bool own,
                    Thread& thread) noexcept;
  ActivationView view_input(const LinearStep& step, const LinearInput& input, int form, bool own,
                            Thread& thread) noexcept;
  void quantize_row(const RowForm& form, const InputQuantization& rounding, ActivationCodes codes,
                    const float* unrounded, const float* x, std::int64_t k, QuantizedGroup* to,
                    Thread& thread) noexcept;
  /// Of an expert's rows.
  ActivationCodes codes_of(const Matrix& expert) const noexcept { return codes_for(expert.input(), codes_); }
  InputForm form_of(const Matrix& expert) const noexcept { return expert.form(codes_); }
  void add_expert_phases(const Step& step, bool selected, std::int32_t rows);
  void route(const op::Moe& op, std::int32_t token) noexcept;
  void sort_places(const Step& step, std::int32_t rows) noexcept;
  void gather(const op::Moe& op, const std::vector<WeightId>& weights, bool alike, std::int32_t token,
              Thread& thread) noexcept;
  void read_row(const Matrix& weight, const float* x, std::int32_t place, Thread& thread) noexcept;
  template <class F>
  void for_share(const std::vector<WeightId>& weights, int share, int shares, const F& f) noexcept;
  void run_experts(const op::Moe& op, const Phase& phase, int share, Thread& thread) noexcept;
  void combine(const op::Moe& op, std::int32_t token) noexcept;
  void run_part(const LinearPart& part, std::int32_t first, std::int32_t last, const ActivationView& x,
                const ActivationView& up_x, std::int32_t row_begin, std::int32_t row_end, bool direct,
                Thread& thread) noexcept;

  std::size_t index_of(const Step& step) const noexcept {
    return static_cast<std::size_t>(&step - steps_.steps.data());
  }
  AttentionTasks& tasks_of(const AttentionStep& step) noexcept;
  std::int64_t stride(ValueId id) const noexcept;
  float* row(ValueId id, std::int32_t row) const noexcept;
  std::int64_t width(ValueId id) const noexcept;
  const float* vector(WeightId id) const noexcept { return vectors_[static_cast<std::size_t>(id)]; }
  const Matrix& matrix(WeightId id) const noexcept { return matrices_[static_cast<std::size_t>(id)]; }
  const float* cosines(std::int32_t table, std::int32_t batch_row) const noexcept;
  const float* sines(std::int32_t table, std::int32_t batch_row) const noexcept;

  const Program program_;
  Steps steps_;
  const PlanLayout layout_;
  const std::int32_t max_rows_;
  const Reduction reduce_;
  const Level level_;
  const std::shared_ptr<core::Team> team_;
  std::vector<std::shared_ptr<const PreparedWeight>> weights_;
  std::vector<Matrix> matrices_;       // per weight
  std::vector<const float*> vectors_;  // per weight, nullptr for matrices
  std::int64_t embed_rows_ = 0;        // tokens that can be looked up
  AlignedBytes memory_;
  PlanInputs inputs_;
  ActivationCodes codes_ = kCodes16;  // of experts' rows
  InputRowsLayout input_layout_;
  AlignedBytes input_rows_;

  std::vector<Thread> threads_;
  bool packs_ = true;    // some weights may not be wholly packed
  bool passed_ = false;  // a pass has begun
  AlignedBytes panels_;  // of the threads, as long as `packs_`
  Pass pass_;
  std::unique_ptr<Profiler> profiler_;   // null where nobody asked for it
  std::optional<Result<void>> outcome_;  // of the pass that wait() has not been called for
};

}  // namespace llminfer::cpu
