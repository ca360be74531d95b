#include "backends/gpu/backend.hpp"

#include <algorithm>
#include <limits>
#include <mutex>
#include <string>
#include <utility>

#include "backends/common/check.hpp"
#include "backends/gpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {
namespace {

using core::fail;

class GpuBackend final : public Backend {
 public:
  GpuBackend(std::shared_ptr<Device> device, const GpuOptions& options)
      : device_(std::move(device)), options_(options) {}

  std::string_view name() const noexcept override { return device_->info().kind; }
  std::string description() const override {
    const DeviceInfo& info = device_->info();
    return info.kind + ", " + info.name + " (" + info.architecture + "), " + std::to_string(info.memory >> 20) +
           " MiB" + (options_.batch_invariant ? ", batch-invariant" : "");
  }

  Result<void> supports(const Program& program, std::span<const WeightType> types) override {
    return core::guarded([&]() -> Result<void> {
      if (types.size() != program.weights.size()) {
        return fail(ErrorCode::invalid_argument, types.size(), " types; the program has ", program.weights.size(),
                    " weights");
      }
      LLMINFER_TRY(check_program(program));
      for (const CacheGroup& group : program.cache_groups) {
        if (group.head_dim <= kMaxHeadDim) continue;
        return fail(ErrorCode::unsupported, "a cache group has head_dim ", group.head_dim,
                    "; the GPU backends' attention has kernels up to ", kMaxHeadDim);
      }
      return {};
    });
  }

  std::int64_t prepared_bytes(WeightType type, std::int64_t rows, std::int64_t cols,
                              const WeightDetails& details) override {
    return GpuWeight::bytes_of(type, rows, cols, details);
  }

  std::int64_t plan_bytes(const Program& program, std::span<const WeightView> weights,
                          const PlanOptions& options) override {
    const auto bytes = core::guarded([&]() -> Result<std::int64_t> {
      const Steps steps = LLMINFER_TRY(make_steps(program));
      const int max_rows = std::max(1, options.max_batch_rows);
      const PlanLayout layout(program, steps, max_rows);
      std::int64_t scratch = layout.bytes;
      const auto changes_inputs = [](const WeightView& w) {
        return w.details.input.kind != InputQuantization::Kind::none ||
               matrix_layout(w.type, w.rows, w.cols, w.details).order;
      };
      if (std::any_of(weights.begin(), weights.end(), changes_inputs)) {
        scratch += layout.rounded_floats * static_cast<std::int64_t>(sizeof(float));
      }
      if (options.streamed.size() != weights.size()) return scratch;
      std::vector<std::int64_t> sizes;
      for (const WeightView& w : weights) sizes.push_back(prepared_bytes(w.type, w.rows, w.cols, w.details));
      return scratch + RingLayout(options.streamed, sizes).bytes();
    });
    return bytes ? *bytes : 0;
  }

  std::int64_t page_bytes(const CacheGroup& group, CacheType type) override { return cache_page_bytes(group, type); }
  std::int64_t open_page_bytes(const CacheGroup& group, CacheType type) override {
    return gpu::open_page_bytes(group, type);
  }

  Result<std::unique_ptr<PreparedWeight>> prepare(const WeightView& weight) override { return make(weight, {}); }
  bool streams() const noexcept override { return true; }
  Result<std::unique_ptr<PreparedWeight>> prepare_streamed(const WeightView& weight) override {
    return make(weight, {WeightHome::Kind::host});
  }
  std::int64_t stream_buffer_bytes(std::int64_t group_bytes) const noexcept override {
    return WeightRing::buffer_bytes(group_bytes);
  }
  Result<std::unique_ptr<PreparedWeight>> prepare_streamed_in(std::shared_ptr<WeightStorage> storage,
                                                              std::int64_t offset, const WeightView& weight) override {
    return make(weight, {WeightHome::Kind::storage, std::move(storage), offset});
  }

  Result<std::unique_ptr<Plan>> compile(const Program& program,
                                        std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                        const PlanOptions& options) override {
    return core::guarded([&]() -> Result<std::unique_ptr<Plan>> {
      {  // No more weights are likely to come.
        const std::lock_guard lock(mutex_);
        if (const auto load = load_.lock()) load->staging = nullptr;
      }
      return std::unique_ptr<Plan>(
          LLMINFER_TRY(GpuPlan::make(program, std::move(weights), options, device_, options_)));
    });
  }

  Result<std::string> collective_kind() override {
    return core::guarded([&]() -> Result<std::string> {
      const DeviceInfo& info = device_->info();
      if (info.collectives.empty()) return fail(ErrorCode::unsupported, info.kind, " devices have no collectives");
      if (options_.batch_invariant) {
        return fail(ErrorCode::unsupported,
                    "GpuOptions::batch_invariant: the order of sums over several GPUs may depend "
                    "on how many rows a batch has");
      }
      return LLMINFER_TRY(Nccl::load(info.collectives))->name;
    });
  }
  Result<std::vector<std::byte>> collective_id() override {
    return core::guarded([&] { return GpuCollective::make_id(*device_); });
  }
  Result<std::shared_ptr<Collective>> make_collective(std::span<const std::byte> id, int rank, int ranks,
                                                      Watch watch) override {
    return core::guarded([&]() -> Result<std::shared_ptr<Collective>> {
      return std::shared_ptr<Collective>(LLMINFER_TRY(GpuCollective::make(device_, id, rank, ranks, std::move(watch))));
    });
  }

  Result<std::unique_ptr<CacheStorage>> make_cache(const CacheGroup& group, CacheType type,
                                                   std::int32_t pages) override {
    return core::guarded([&]() -> Result<std::unique_ptr<CacheStorage>> {
      return std::unique_ptr<CacheStorage>(LLMINFER_TRY(GpuCache::make(group, type, pages, pages, device_)));
    });
  }
  bool swaps() const noexcept override { return true; }
  Result<std::unique_ptr<CacheStorage>> make_swapped_cache(const CacheGroup& group, CacheType type, std::int32_t pages,
                                                           std::int32_t resident) override {
    return core::guarded([&]() -> Result<std::unique_ptr<CacheStorage>> {
      return std::unique_ptr<CacheStorage>(LLMINFER_TRY(GpuCache::make(group, type, pages, resident, device_)));
    });
  }
  bool takes_cache_memory() const noexcept override { return true; }
  Result<std::unique_ptr<CacheStorage>> make_cache_in(std::shared_ptr<std::byte> memory, const CacheGroup& group,
                                                      CacheType type, std::int32_t pages,
                                                      std::int32_t resident) override {
    return core::guarded([&]() -> Result<std::unique_ptr<CacheStorage>> {
      return std::unique_ptr<CacheStorage>(
          LLMINFER_TRY(GpuCache::make(group, type, pages, resident, device_, std::move(memory))));
    });
  }

 private:
  /// What the weights of a load have in common, and keep: a load that is given up lets go of it with them.
  struct Load {
    std::unique_ptr<Staging> staging;  ///< null once all are prepared
  };

  Result<std::unique_ptr<PreparedWeight>> make(const WeightView& weight, WeightHome home) {
    return core::guarded([&]() -> Result<std::unique_ptr<PreparedWeight>> {
      if (weight.rows < 1 || weight.cols < 1 || weight.rows > std::numeric_limits<std::int32_t>::max() - 64 ||
          weight.cols > std::numeric_limits<std::int32_t>::max() - 64) {
        return fail(ErrorCode::invalid_argument, weight.name, ": a weight of shape [", weight.rows, ", ", weight.cols,
                    "]");
      }
      const std::lock_guard lock(mutex_);
      std::shared_ptr<Load> load = load_.lock();
      if (!load || !load->staging) {
        load = std::make_shared<Load>();
        load->staging = LLMINFER_TRY(Staging::make(device_, options_.threads, options_.executor));
        load_ = load;
      }
      auto prepared = GpuWeight::make(weight, *load->staging, std::move(home));
      if (!prepared) {
        load->staging = nullptr;
        return core::at(weight.name, std::move(prepared).error());
      }
      (*prepared)->keep(std::move(load));
      return std::unique_ptr<PreparedWeight>(std::move(*prepared));
    });
  }

  const std::shared_ptr<Device> device_;
  const GpuOptions options_;
  std::mutex mutex_;
  std::weak_ptr<Load> load_;
};

}  // namespace

std::shared_ptr<Backend> make_backend(std::shared_ptr<Device> device, const GpuOptions& options) {
  return std::make_shared<GpuBackend>(std::move(device), options);
}

}  // namespace llminfer::gpu
