// CpuBackend: the Backend interface over levels, prepared weights, plans and caches.
#include <cstdlib>
#include <limits>
#include <utility>

#include "backends/cpu/arena.hpp"
#include "backends/cpu/cache.hpp"
#include "backends/cpu/level.hpp"
#include "backends/cpu/matrix.hpp"
#include "backends/cpu/plan.hpp"
#include "core/checked.hpp"
#include "core/cpu_count.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "quant/format.hpp"

namespace llminfer::cpu {
namespace {

using core::fail;

constexpr int kMaxThreads = 1024;
constexpr const char* kLevelVariable = "LLMINFER_CPU_LEVEL";

class CpuBackend final : public Backend {
 public:
  CpuBackend(const Level& level, const BackendOptions& options, std::shared_ptr<core::Team> team)
      : level_(level),
        exact_(options.exact),
        codes_(options.activation_bits == 8 ? kCodes8 : kCodes16),
        team_(std::move(team)),
        on_profile_(options.on_profile) {}

  std::string_view name() const noexcept override { return "cpu"; }
  std::string description() const override {
    const int threads = team_->threads();
    return std::string("cpu, level ") + level_.name + ", " + std::to_string(threads) +
           (threads == 1 ? " thread" : " threads") +
           (exact_             ? ", exact"
            : codes_.shift > 0 ? ", activations of 8 bits"
                               : "");
  }

  Result<void> supports(const Program& program, std::span<const WeightType> types) override {
    return core::guarded([&]() -> Result<void> {
      if (types.size() != program.weights.size()) {
        return fail(ErrorCode::invalid_argument, types.size(), " types; the program has ", program.weights.size(),
                    " weights");
      }
      LLMINFER_TRY(make_steps(program));
      for (std::size_t i = 0; i < types.size(); ++i) {
        const WeightSpec& weight = program.weights[i];
        if (exact_ || weight.rows == 1 || panel_kind(packed_type(types[i]))) continue;
        return fail(ErrorCode::unsupported, "weight ", weight.name, " has type ", weight_type_info(types[i]).name,
                    ", which the CPU backend has no kernels for");
      }
      return {};
    });
  }

  std::int64_t prepared_bytes(WeightType type, std::int64_t rows, std::int64_t cols,
                              const WeightDetails& details) override {
    if (rows == 1) return cols * static_cast<std::int64_t>(sizeof(float));
    return exact_ ? 0 : packed_bytes(packed_type(type), rows, cols, details);
  }

  std::int64_t plan_bytes(const Program& program, std::span<const WeightView> weights,
                          const PlanOptions& options) override {
    const auto bytes = core::guarded([&]() -> Result<std::int64_t> {
      Steps steps = LLMINFER_TRY(make_steps(program));
      const std::int32_t rows = std::max(1, options.max_batch_rows);
      const PlanLayout layout(program, steps, rows, team_->threads());
      std::vector<WeightInput> inputs;
      for (const WeightView& weight : weights) inputs.push_back(input_of(weight));
      inputs.resize(program.weights.size());
      const PlanInputs plan = PlanInputs::make(steps, inputs, codes_);
      const InputRowsLayout more(plan, layout.widest_input, layout.quantized_stride, rows, team_->threads());
      return layout.bytes() + more.bytes;
    });
    return bytes ? *bytes : 0;
  }

  std::int64_t page_bytes(const CacheGroup& group, CacheType type) override { return cache_page_bytes(group, type); }
  std::int64_t open_page_bytes(const CacheGroup& group, CacheType type) override {
    return cpu::open_page_bytes(group, type);
  }

  Result<std::unique_ptr<PreparedWeight>> prepare(const WeightView& weight) override {
    return core::guarded([&]() -> Result<std::unique_ptr<PreparedWeight>> {
      if (!has_shape(weight)) {
        return fail(ErrorCode::invalid_argument, weight.name, ": a weight of shape [", weight.rows, ", ", weight.cols,
                    "]");
      }
      auto prepared = weight.rows == 1 ? prepare_vector(weight)
                      : exact_         ? prepare_exact(weight)
                                       : prepare_packed(weight);
      if (!prepared) return core::at(weight.name, std::move(prepared).error());
      return prepared;
    });
  }

  Result<std::unique_ptr<PreparedWeight>> prepare_later(const WeightView& weight, ReleaseBytes release) override {
    const bool packs =
        !exact_ && weight.rows > 1 && has_shape(weight) && panel_kind(weight.type) && !weight.details.permutation;
    if (!packs) return Backend::prepare_later(weight, std::move(release));
    return core::guarded([&]() -> Result<std::unique_ptr<PreparedWeight>> {
      auto packed = PackedWeight::pack_later(weight, &arena_, two_of_four(weight), std::move(release));
      if (!packed) return std::move(packed).error();
      return std::unique_ptr<PreparedWeight>(std::move(*packed));
    });
  }

  Result<bool> prepare_more(const PreparedWeight& weight) override {
    return core::guarded([&]() -> Result<bool> {
      const auto* packed = dynamic_cast<const PackedWeight*>(&weight);
      PendingPanels* const panels = packed ? packed->pending() : nullptr;
      if (!panels) {
        if (packed) packed->finish();
        return false;
      }
      constexpr std::int64_t kBytes = std::int64_t{4} << 20;  // a few milliseconds
      const auto [first, last] = panels->take(kBytes);
      const int units = last - first;
      auto body = [&, begin = first](int, int unit, int) { panels->pack(begin + unit); };
      LLMINFER_TRY(team_->run(std::span(&units, 1), body));
      return units > 0;
    });
  }

  std::string stored_form() const override {
    return exact_ ? std::string() : "cpu panels " + std::to_string(kPanelVersion);
  }
  Result<std::unique_ptr<PreparedWeight>> restore(const WeightView& weight, std::span<const std::byte> stored,
                                                  std::shared_ptr<const void> keep) override {
    return core::guarded([&]() -> Result<std::unique_ptr<PreparedWeight>> {
      return std::unique_ptr<PreparedWeight>(LLMINFER_TRY(PackedWeight::adopt(weight, stored, std::move(keep))));
    });
  }

  Result<std::unique_ptr<Plan>> compile(const Program& program,
                                        std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                        const PlanOptions& options) override {
    return core::guarded([&]() -> Result<std::unique_ptr<Plan>> {
      auto plan = LLMINFER_TRY(CpuPlan::make(program, std::move(weights), options, level_, exact_, codes_, team_));
      if (on_profile_) plan->profile(on_profile_);
      return std::unique_ptr<Plan>(std::move(plan));
    });
  }

  Result<std::unique_ptr<CacheStorage>> make_cache(const CacheGroup& group, CacheType type,
                                                   std::int32_t pages) override {
    return core::guarded([&]() -> Result<std::unique_ptr<CacheStorage>> {
      return std::unique_ptr<CacheStorage>(LLMINFER_TRY(CpuCache::make(group, type, pages)));
    });
  }
  bool takes_cache_memory() const noexcept override { return true; }
  Result<std::unique_ptr<CacheStorage>> make_cache_in(std::shared_ptr<std::byte> memory, const CacheGroup& group,
                                                      CacheType type, std::int32_t pages, std::int32_t) override {
    return core::guarded([&]() -> Result<std::unique_ptr<CacheStorage>> {
      return std::unique_ptr<CacheStorage>(LLMINFER_TRY(CpuCache::make(group, type, pages, std::move(memory))));
    });
  }

 private:
  static bool has_shape(const WeightView& weight) noexcept {
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    return weight.rows >= 1 && weight.rows <= kMost && weight.cols >= 1 && weight.cols <= kMost;
  }
  /// As Matrix will tell it of the prepared weight.
  WeightInput input_of(const WeightView& weight) const {
    if (weight.rows == 1) return {};
    WeightInput input{InputForm::floats, nullptr, weight.details.input};
    if (exact_) return input;
    const bool ordered = weight.details.permutation != nullptr;
    if (ordered && quant::format(weight.type).shape.bits == 0) return input;
    input.form = packed_form(packed_type(weight.type), weight.cols, weight.details, codes_);
    if (panel_kind(weight.type)) input.order = weight.details.permutation.get();
    return input;
  }

  /// Types that no kernel reads are packed as floats.
  static WeightType packed_type(WeightType type) { return panel_kind(type) ? type : WeightType::f32; }

  static Result<WeightView> as_floats(const WeightView& weight) {
    const auto values = std::make_shared<std::vector<float>>(static_cast<std::size_t>(weight.rows * weight.cols));
    LLMINFER_TRY(unpack_rows(weight, 0, weight.rows, *values));
    WeightView view = weight;
    view.type = WeightType::f32;
    view.data = std::as_bytes(std::span(*values));
    view.keep = values;
    view.details.permutation = nullptr;
    return view;
  }

  static Result<std::unique_ptr<PreparedWeight>> prepare_vector(const WeightView& weight) {
    std::vector<float> values(static_cast<std::size_t>(weight.cols));
    LLMINFER_TRY(unpack_rows(weight, 0, 1, values));
    return std::unique_ptr<PreparedWeight>(std::make_unique<VectorWeight>(std::move(values)));
  }

  static Result<std::unique_ptr<PreparedWeight>> prepare_exact(const WeightView& weight) {
    return std::unique_ptr<PreparedWeight>(LLMINFER_TRY(ExactWeight::make(weight)));
  }

  /// Packs with all threads.
  Result<std::unique_ptr<PreparedWeight>> prepare_packed(const WeightView& weight) {
    if (!panel_kind(weight.type)) return prepare_packed(LLMINFER_TRY(as_floats(weight)));
    if (weight.details.permutation) {
      if (quant::format(weight.type).shape.bits == 0) return prepare_packed(LLMINFER_TRY(as_floats(weight)));
      LLMINFER_TRY(unpack_rows(weight, 0, 0, {}));  // checks that it is one
    }
    const WeightTypeInfo info = weight_type_info(weight.type);
    const std::int64_t blocks = weight.cols / info.block_values;
    const auto row_bytes = core::checked_mul(static_cast<std::uint64_t>(blocks), info.block_bytes);
    const auto bytes =
        row_bytes ? core::checked_mul(*row_bytes, static_cast<std::uint64_t>(weight.rows)) : std::nullopt;
    if (weight.cols % info.block_values != 0 || !bytes || *bytes != weight.data.size()) {
      return fail(ErrorCode::invalid_argument, weight.data.size(), " bytes do not fit a ", info.name,
                  " weight of shape [", weight.rows, ", ", weight.cols, "]");
    }
    std::unique_ptr<PackedWeight> packed = LLMINFER_TRY(
        PackedWeight::allocate(weight.type, weight.rows, weight.cols, weight.details, &arena_, two_of_four(weight)));
    const int panels = packed->panels(), chunks = std::min((panels + 7) / 8, core::Team::kMaxChunks);
    const auto bound = [&](int chunk) { return static_cast<std::int32_t>(std::int64_t{panels} * chunk / chunks); };
    auto body = [&](int, int chunk, int) { packed->pack_panels(weight, bound(chunk), bound(chunk + 1)); };
    LLMINFER_TRY(team_->run(std::span(&chunks, 1), body));
    return std::unique_ptr<PreparedWeight>(std::move(packed));
  }

  const Level level_;
  const bool exact_;
  const ActivationCodes codes_;
  const std::shared_ptr<core::Team> team_;
  const ProfileCallback on_profile_;
  WeightArena arena_;
};

}  // namespace
}  // namespace llminfer::cpu

namespace llminfer::inline v0 {

Result<std::shared_ptr<Backend>> make_cpu_backend(const BackendOptions& options) {
  return core::guarded([&]() -> Result<std::shared_ptr<Backend>> {
    if (options.threads < 0 || options.threads > cpu::kMaxThreads) {
      return core::fail(ErrorCode::invalid_argument, "BackendOptions::threads is ", options.threads, "; expected 0 to ",
                        cpu::kMaxThreads);
    }
    if (options.activation_bits != 8 && options.activation_bits != 16) {
      return core::fail(ErrorCode::invalid_argument, "BackendOptions::activation_bits is ", options.activation_bits,
                        "; expected 8 or 16");
    }
    std::string_view level_name = options.cpu_level, option = "BackendOptions::cpu_level";
    if (level_name.empty()) {
      if (const char* forced = std::getenv(cpu::kLevelVariable)) level_name = forced, option = cpu::kLevelVariable;
    }
    const cpu::Level level = LLMINFER_TRY(cpu::choose_level(level_name, option));
    const int threads = options.threads > 0 ? options.threads : std::min(core::usable_cpus(), cpu::kMaxThreads);
    std::shared_ptr<core::Team> team = LLMINFER_TRY(core::Team::make(threads, options.executor));
    if (options.executor) {  // one that cannot run is an error of the load, not of the first pass
      const int one = 1;
      LLMINFER_TRY(team->run(std::span(&one, 1), [](int, int, int) {}));
    }
    return std::shared_ptr<Backend>(std::make_shared<cpu::CpuBackend>(level, options, std::move(team)));
  });
}

std::vector<std::string> cpu_levels() {
  auto names = core::guarded([]() -> Result<std::vector<std::string>> {
    std::vector<std::string> found;
    for (const cpu::Level& level : cpu::runnable_levels()) found.emplace_back(level.name);
    return found;
  });
  return names ? std::move(*names) : std::vector<std::string>();
}

}  // namespace llminfer::inline v0
