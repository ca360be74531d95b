#include "backends/gpu/collective.hpp"

#include <sched.h>

#include <chrono>
#include <cstring>
#include <future>
#include <thread>
#include <utility>

#include "core/error.hpp"

namespace llminfer::gpu {
namespace {

using core::fail;
using Clock = std::chrono::steady_clock;

/// The others are about to make the collective as well.
constexpr std::chrono::minutes kLongestStart{2};
/// A pass of one token is over before; longer ones need no processor meanwhile.
constexpr std::chrono::milliseconds kSpin{2};
constexpr std::chrono::microseconds kPause{50};
/// To abort takes no time where the other ranks are threads of this process.
constexpr std::chrono::milliseconds kLongestAbort{200};

}  // namespace

Result<std::vector<std::byte>> GpuCollective::make_id(const Device& device) {
  const auto nccl = LLMINFER_TRY(Nccl::load(device.info().collectives));
  Nccl::Id id{};
  if (const int status = nccl->get_unique_id(&id); status != Nccl::success) {
    return fail(ErrorCode::device_error, nccl->name, ": ", nccl->error_string(status));
  }
  const auto bytes = std::as_bytes(std::span(id.bytes));
  return std::vector<std::byte>(bytes.begin(), bytes.end());
}

Result<std::shared_ptr<GpuCollective>> GpuCollective::make(std::shared_ptr<Device> device,
                                                           std::span<const std::byte> id, int rank, int ranks,
                                                           Watch watch) {
  Nccl::Id unique{};
  if (id.size() != sizeof unique) {
    return fail(ErrorCode::invalid_argument, "an id of ", id.size(), " bytes; expected ", sizeof unique);
  }
  std::memcpy(&unique, id.data(), sizeof unique);
  auto nccl = LLMINFER_TRY(Nccl::load(device->info().collectives));
  const std::shared_ptr<GpuCollective> made(new GpuCollective(std::move(nccl), std::move(device), std::move(watch)));
  for (int i = 0; i < kAhead; ++i) made->sums_.push_back(LLMINFER_TRY(Event::make(made->device_)));
  made->end_.push_back(LLMINFER_TRY(Event::make(made->device_)));
  const Current current(*made->device_);
  Nccl::Config config;
  const int status = made->nccl_->init_rank(&made->communicator_, ranks, unique, rank, &config);
  LLMINFER_TRY(made->check("making a communicator", status));
  const auto begin = Clock::now();
  LLMINFER_TRY(made->wait_until([&]() -> Result<bool> {
    int state = Nccl::success;
    LLMINFER_TRY(made->check("making a communicator", made->nccl_->async_error(made->communicator_, &state)));
    LLMINFER_TRY(made->check("making a communicator", state));
    if (state == Nccl::in_progress && Clock::now() - begin > kLongestStart) {
      return fail(ErrorCode::device_error, made->nccl_->name, ": the other ranks' GPUs did not come");
    }
    return state == Nccl::success;
  }));
  return made;
}

/// Ends at once what waits on the device. The library's call may return only when all ranks have made it, of which
/// others may wait for a message of this one: so it has a thread of its own, which may go on.
void GpuCollective::abort() noexcept {
  if (!communicator_) return;
  const Nccl::Communicator communicator = std::exchange(communicator_, nullptr);
  const auto end = [](const Nccl& nccl, Device& device, Nccl::Communicator of) {
    const Current current(device);
    (void)nccl.abort(of);
  };
  try {
    auto ended = std::make_shared<std::promise<void>>();
    const auto done = ended->get_future();
    std::thread([end, nccl = nccl_, device = device_, communicator, ended] {
      end(*nccl, *device, communicator);
      ended->set_value();
    }).detach();
    (void)done.wait_for(kLongestAbort);
  } catch (...) {  // no thread to be had
    end(*nccl_, *device_, communicator);
  }
}

Result<void> GpuCollective::check(const char* what, int status) const {
  if (status == Nccl::success || status == Nccl::in_progress) return {};
  return fail(ErrorCode::device_error, device_->info().name, ", ", nccl_->name, ": ", what,
              " failed: ", nccl_->error_string(status));
}

/// Whether all is well, here and elsewhere.
Result<void> GpuCollective::look() {
  int state = Nccl::success;
  LLMINFER_TRY(check("asking for its state", nccl_->async_error(communicator_, &state)));
  LLMINFER_TRY(check("a sum", state));
  return watch_ ? watch_() : Result<void>();
}

/// What still waits for others on the device ends before its memory is used for something else.
Result<void> GpuCollective::give_up(Result<void> outcome) {
  if (outcome) return outcome;
  abort();
  (void)device_->wait();
  return outcome;
}

template <class Done>
Result<void> GpuCollective::wait_until(Done done) {
  const auto begin = Clock::now();
  return give_up(core::guarded([&]() -> Result<void> {
    while (!LLMINFER_TRY(done())) {
      LLMINFER_TRY(look());
      if (Clock::now() - begin < kSpin) {
        ::sched_yield();
      } else {
        std::this_thread::sleep_for(kPause);
      }
    }
    return {};
  }));
}

Result<void> GpuCollective::sum(const float* in, float* out, std::int64_t floats) {
  if (aborted()) return fail(ErrorCode::invalid_state, "the collective was aborted");
  const Event& mark = sums_[count_ % kAhead];
  if (count_ >= kAhead) LLMINFER_TRY(wait_until([&] { return mark.reached(); }));
  const int status = nccl_->all_reduce(in, out, static_cast<std::size_t>(floats), Nccl::kFloat, Nccl::kSum,
                                       communicator_, device_->runtime_stream());
  LLMINFER_TRY(give_up(check("a sum", status)));
  if (status == Nccl::in_progress) {  // nothing else may go to the stream before it is there
    LLMINFER_TRY(wait_until([&]() -> Result<bool> {
      int state = Nccl::success;
      LLMINFER_TRY(check("asking for its state", nccl_->async_error(communicator_, &state)));
      return state != Nccl::in_progress;
    }));
    LLMINFER_TRY(give_up(look()));
  }
  ++count_;
  return give_up(mark.record(Stream::work));
}

Result<void> GpuCollective::wait() {
  if (!aborted()) {
    LLMINFER_TRY(give_up(end_.front().record(Stream::work)));
    LLMINFER_TRY(wait_until([&] { return end_.front().reached(); }));
    LLMINFER_TRY(give_up(look()));  // what the library has failed to enqueue does not show in the stream
  }
  return device_->wait();
}

}  // namespace llminfer::gpu
