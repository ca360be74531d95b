// Sums over the devices of several ranks, in the order of the other launches. Once a pass has begun, the other ranks'
// sums wait on their devices for this one's, so each is made, whatever becomes of the pass; or the collective is
// aborted.
#include "backends/gpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {

Result<void> GpuPlan::sum_with(std::shared_ptr<Collective> collective) {
  auto ours = std::dynamic_pointer_cast<GpuCollective>(collective);
  if (collective && (!ours || ours->device() != device_.get())) {
    return core::fail(ErrorCode::invalid_argument, "the collective was not made by this GPU backend");
  }
  collective_ = std::move(ours);
  return {};
}

Result<void> GpuPlan::settle() { return pass_.sums_on_devices ? collective_->wait() : device_->wait(); }

/// How this device's own work has ended, once settle() has given an error: that of another rank is none of it.
Result<void> GpuPlan::end_on_device(const Result<void>& settled) {
  if (pass_.sums_on_devices) return core::guarded([&] { return device_->wait(); });
  return settled ? Result<void>() : Result<void>(core::copy_of(settled.error()));
}

Result<void> GpuPlan::sum_on_devices(const op::Reduce& op) {
  const std::int64_t n = width(op.in), floats = n * pass_.current_rows;
  RowsArgs in = value(op.in), out = value(op.out);
  const RowsArgs packed{memory_.at<float>(layout_.gathered), n};
  const bool gaps = in.stride != n || out.stride != n;
  const auto pack = [&](const RowsArgs& from, const RowsArgs& to) {
    const GatherArgs args{from, nullptr, pass_.current_rows, static_cast<int>(n), to};
    return device_->check(kernels().gather(device_->stream(), args), "gather");
  };
  if (gaps) LLMINFER_TRY(pack(in, packed));
  LLMINFER_TRY(gaps ? collective_->sum(packed.data, packed.data, floats) : collective_->sum(in.data, out.data, floats));
  ++pass_.sums_made;
  return gaps ? pack(packed, out) : Result<void>();
}

/// Makes the sums that a pass that ends early has not made, of whatever lies there.
Result<void> GpuPlan::owe_sums() {
  if (!pass_.sums_on_devices) return {};
  float* const rows = memory_.at<float>(layout_.gathered);
  std::int32_t count = pass_.rows;
  int sum = 0;
  for (const Step& step : steps_.steps) {
    if (std::holds_alternative<SelectStep>(step)) count = pass_.selected_rows;
    if (count == 0) return {};
    const auto* reduce = std::get_if<ReduceStep>(&step);
    if (reduce && sum++ >= pass_.sums_made) LLMINFER_TRY(collective_->sum(rows, rows, width(reduce->op.in) * count));
  }
  return {};
}

}  // namespace llminfer::gpu
