// gpu_bench_cuda, gpu_bench_hip: the ceilings of a GPU (copies, products on matrix units, launches), and the backend's kernels
// against them. Prints JSON lines; --list says what it measures. Uses the internals of backends/gpu.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <llminfer/gpu.hpp>

#include "backends/gpu/device.hpp"
#include "backends/gpu/kernels/mma.hpp"
#include "backends/gpu/kernels/warpgroup.hpp"
#include "backends/gpu/step_list.hpp"
#include "backends/gpu/weight.hpp"

using namespace llminfer;
using gpu::Buffer;
using gpu::Device;

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
Result<std::shared_ptr<Device>> make_device(const GpuOptions& options);
}
namespace target = llminfer::gpu::LLMINFER_GPU_TARGET;

namespace {

constexpr int kProducts = 4096;  ///< of each warp in the peak loop, of 16x16x16 halves or 16x16x32 bytes
constexpr int kPeakThreads = 256;

/// What mma.hpp has chosen for the architecture.
struct UnitArgs {
  int32_t* found;  ///< which of kUnits, and how many lanes have one product together
};
constexpr const char* kUnits[] = {"mma.sync", "MFMA", "WMMA", "plain arithmetic"};
__global__ void unit_kernel(UnitArgs args) {
#if defined(LLMINFER_GPU_MMA_PTX)
  constexpr int32_t kUnit = 0;
#elif defined(LLMINFER_GPU_MMA_MFMA)
  constexpr int32_t kUnit = 1;
#elif defined(LLMINFER_GPU_MMA_WMMA)
  constexpr int32_t kUnit = 2;
#else
  constexpr int32_t kUnit = 3;
#endif
  target::after_former();
  if (threadIdx.x == 0) args.found[0] = kUnit, args.found[1] = target::kMmaLanes;
}

struct PeakArgs {
  float* out;
};
/// Four independent sums per warp, so that the units' latency is hidden. Sum int32_t: of int8 by int8.
template <class Sum>
__global__ void __launch_bounds__(kPeakThreads) peak_kernel(PeakArgs args) {
  __shared__ __attribute__((aligned(16))) uint16_t tile[16 * 24];
  target::after_former();
  // Not nearly zeros: of these a GPU would make products with less power.
  for (unsigned i = threadIdx.x; i < 16 * 24; i += kPeakThreads) {
    tile[i] = static_cast<uint16_t>((i * 40503u & 0x83ffu) | 0x3800u);
  }
  __syncthreads();
  target::FragmentA a;
  target::FragmentB b;
  target::Accumulator<Sum> sums[4];
  load(a, tile, 24);
  load(b, tile, 24);
  for (auto& sum : sums) clear(sum);
  for (int i = 0; i < kProducts / 4; ++i) {
#pragma unroll
    for (auto& sum : sums) mma(sum, a, b);
  }
  Sum all = 0;
  for (auto& sum : sums) for_each(sum, [&](int, int, Sum value) { all += value; });
  if (all == static_cast<Sum>(12345)) *args.out = 1.0f;  // never; keeps the loop
}

/// The same of E4M3, 16x8x32 each, eight sums.
__global__ void __launch_bounds__(kPeakThreads) e4m3_peak_kernel([[maybe_unused]] PeakArgs args) {
  target::after_former();
#if defined(LLMINFER_GPU_E4M3_CODE)
  const uint32_t bits = (0x38393a3bu + threadIdx.x) & 0xbfbfbfbfu;  // no NaN
  const uint32_t a[4] = {bits, bits + 1, bits + 2, bits + 3}, b[2] = {bits + 4, bits + 5};
  float sums[8][4] = {};
  for (int i = 0; i < kProducts / 8; ++i) {
#pragma unroll
    for (auto& sum : sums) target::mma_m16n8k32_e4m3(sum, a, b);
  }
  float all = 0.0f;
  for (auto& sum : sums) all += sum[0] + sum[1] + sum[2] + sum[3];
  if (all == 12345.0f) *args.out = 1.0f;
#endif
}

#if defined(LLMINFER_GPU_WARPGROUPS)
constexpr int kWarpgroupProducts = 4096;  ///< 64x128x16 products of each warpgroup in its peak loop, of bytes 64x128x32
constexpr int kWarpgroupTiles = 3 * 64 * target::kTileRowBytes;

/// One warpgroup per block, of which several run on a multiprocessor. Sum int32_t: of int8 by int8.
template <class Sum, bool kE4m3 = false>
__global__ void __launch_bounds__(128) warpgroup_peak_kernel([[maybe_unused]] PeakArgs args) {
  target::after_former();
#if defined(LLMINFER_GPU_WARPGROUP_CODE)
  using namespace target;
  unsigned char* tiles = dynamic_shared_memory();
  tiles += (1024 - shared_address(tiles) % 1024) % 1024;
  for (unsigned i = threadIdx.x; i < kWarpgroupTiles / 2; i += 128) {
    reinterpret_cast<uint16_t*>(tiles)[i] = static_cast<uint16_t>((i % 1024 & 0xffbfu) + 0x3800u);  // no NaN of E4M3
  }
  operand_fence();
  __syncthreads();
  const uint64_t a = tile_descriptor(shared_address(tiles)),
                 b = tile_descriptor(shared_address(tiles + 64 * kTileRowBytes));
  Sum sums[64];
  for (int i = 0; i < kWarpgroupProducts / 4; ++i) {
    product_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const uint64_t from = step * kNextDepth;
      if constexpr (kE4m3) product_e4m3(sums, a + from, b + from, i > 0 || step > 0);
      else product(sums, a + from, b + from, i > 0 || step > 0);
    }
    product_commit();
    product_wait<0>();
  }
  Sum all = 0;
#pragma unroll
  for (const Sum sum : sums) all += sum;
  if (all == static_cast<Sum>(12345)) *args.out = 1.0f;
#endif
}
#endif

/// Seconds of one call, the best of five times twenty, or of fewer times where five would take long.
double seconds(Device& device, const std::function<int()>& call) {
  const gpu::Current current(device);
  double best = 1e9, all = 0;
  for (int turn = 0; turn < 2 || (turn < 6 && all < 2); ++turn) {
    device.wait().value();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 20; ++i) device.check(call(), "benchmark").value();
    device.wait().value();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    all += took.count();
    if (turn > 0) best = std::min(best, took.count() / 20);
  }
  return best;
}

/// Seconds of a step that does next to nothing and waits for the one before, in a kernel of many.
double seconds_of_step(const std::shared_ptr<Device>& device) {
  constexpr int kSteps = 1000;
  const Buffer number = Buffer::make(device, 4).value(), barrier = Buffer::make(device, 4).value();
  const gpu::RowsArgs row{number.at<float>(), 1};
  gpu::StepList list;
  for (int i = 0; i < kSteps; ++i) gpu::StepList::table().add(&list, {row, row, row, 1, 1});
  const Buffer steps = Buffer::make(device, kSteps * sizeof(gpu::PersistentStep)).value();
  device->copy(steps.at(), list.steps().data(), steps.bytes()).value();
  device->clear(number.at(), number.bytes()).value();
  device->clear(barrier.at(), barrier.bytes()).value();
  const gpu::PersistentArgs args{steps.at<gpu::PersistentStep>(), kSteps, device->info().resident_blocks,
                                 barrier.at<std::uint32_t>()};
  return seconds(*device, [&] { return device->kernels().persistent(device->stream(), args); }) / kSteps;
}

/// `took`: seconds.
void report(const std::string& what, double value, const char* unit, double ceiling, double took = 0) {
  std::printf("{\"bench\":\"%s\",\"value\":%.6g,\"unit\":\"%s\",\"share\":%.4f", what.c_str(), value, unit,
              ceiling > 0 ? value / ceiling : 0.0);
  if (took > 0) std::printf(",\"us\":%.6g", took * 1e6);
  std::printf("}\n");
  std::fflush(stdout);
}

/// A weight of random codes; halves and E4M3 numbers are kept finite.
std::unique_ptr<gpu::GpuWeight> random_weight(WeightType type, std::int64_t rows, std::int64_t cols,
                                              gpu::Staging& staging) {
  const WeightTypeInfo info = weight_type_info(type);
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows * cols / info.block_values * info.block_bytes));
  std::mt19937 random(1);
  for (std::size_t i = 0; i + 4 <= bytes.size(); i += 4) {
    const std::uint32_t word = random() & (type == WeightType::fp8 ? 0xbfbfbfbfu : 0x3fff3fffu);
    std::memcpy(&bytes[i], &word, 4);
  }
  return gpu::GpuWeight::make({"random", type, rows, cols, bytes, nullptr}, staging).value();
}

struct Linear {
  const char* name;
  std::int64_t rows, cols;
  bool residual = false;  ///< is added to it
};

/// Products per second of mma.hpp's units and of wgmma, of halves, of E4M3 and of int8; 0: the device has none.
struct Peaks {
  double halves = 0, e4m3 = 0, int8 = 0, warpgroups = 0, e4m3_warpgroups = 0, int8_warpgroups = 0;
};

void bench_linear(const std::shared_ptr<Device>& device, double bandwidth, const Peaks& peaks) {
  const double peak = peaks.halves, warpgroup_peak = peaks.warpgroups;
  const auto staging = gpu::Staging::make(device, 0).value();
  for (const Linear& shape : {Linear{"8B qkv", 6144, 4096}, Linear{"8B gate", 14336, 4096}, Linear{"8B down", 4096, 14336, true},
                              Linear{"1B gate", 8192, 2048}}) {
    for (const WeightType type :
         {WeightType::bf16, WeightType::q4_0, WeightType::q4_k, WeightType::w4_sym, WeightType::q8_0, WeightType::fp8}) {
      // Several copies, so that none stays in the second-level cache.
      std::vector<std::unique_ptr<gpu::GpuWeight>> copies;
      std::int64_t bytes = 0;
      while (bytes < std::int64_t{300} << 20) {
        copies.push_back(random_weight(type, shape.rows, shape.cols, *staging));
        bytes += copies.back()->bytes();
      }
      const int most = 2048;
      const Buffer in = Buffer::make(device, most * shape.cols * 2).value();
      const Buffer scales = Buffer::make(device, most * shape.cols / gpu::kScaleColumns * 4).value();
      const Buffer out = Buffer::make(device, most * shape.rows * 4).value();
      // Of zeros a GPU would make products with less power.
      const Buffer halves = Buffer::make(device, in.bytes(), true).value();
      std::mt19937 random(2);
      for (std::int64_t i = 0; i < in.bytes() / 2; ++i) {
        halves.at<std::uint16_t>()[i] = static_cast<std::uint16_t>(random() & 0xbfbfu);  // magnitudes below 2, also of E4M3
      }
      device->copy(in.at(), halves.at(), in.bytes()).value();
      device->wait().value();
      const Buffer row = Buffer::make(device, shape.cols * 4).value(), floats = Buffer::make(device, row.bytes(), true).value();
      for (std::int64_t i = 0; i < shape.cols; ++i) {
        floats.at<float>()[i] = static_cast<float>(random() % 4096) / 1024.0f - 2.0f;
      }
      device->copy(row.at(), floats.at(), row.bytes()).value();
      device->wait().value();
      device->clear(scales.at(), scales.bytes()).value();
      device->clear(out.at(), out.bytes()).value();
      const Buffer parts = Buffer::make(device, std::int64_t{gpu::kSplitBlocks} * gpu::kSplitRows * gpu::kSplitFeatures * 4).value(),
                   counters = Buffer::make(device, gpu::kSplitBlocks * 4).value();
      device->clear(counters.at(), counters.bytes()).value();
      for (const int rows : {1, 4, 8, 9, 16, 32, 64, 512, 2048}) {
        gpu::LinearArgs args{};
        args.parts = parts.at<float>();
        args.counters = counters.at<std::uint32_t>();
        args.split_blocks = gpu::kSplitBlocks;
        args.splits = rows > gpu::kManyRows ? 1
                                            : gpu::column_splits(static_cast<int>(shape.rows), static_cast<int>(shape.cols));
        args.in = in.at<std::uint16_t>();
        args.in_scales = rows > 1 ? scales.at<float>() : nullptr;
        args.row = row.at<float>();
        args.width = static_cast<int>(shape.cols);
        args.rows = rows;
        args.out = {out.at<float>(), shape.rows};
        if (shape.residual) args.residual = args.out;
        args.units = device->info().units;
        std::size_t turn = 0;
        const std::string name =
            std::string("linear ") + shape.name + " " + std::string(weight_type_info(type).name) + " x" + std::to_string(rows);
        const double moved = static_cast<double>(copies[0]->bytes());
        const double products = 2.0 * rows * static_cast<double>(shape.rows) * static_cast<double>(shape.cols);
        // By memory up to 32 rows, by products beyond.
        const auto measure = [&](const std::string& what, auto launch, double its_peak) {
          const double took = seconds(*device, [&] {
            args.weight = copies[turn++ % copies.size()]->matrix();
            return launch(device->stream(), args);
          });
          if (rows <= 32) {
            report(what, moved / took * 1e-9, "GB/s", bandwidth * 1e-9, took);
          } else {
            report(what, products / took * 1e-12, "TFLOP/s", its_peak * 1e-12);
          }
        };
        const gpu::KernelTable& kernels = device->kernels();
        if (rows <= gpu::kFewRows) {
          measure(name, [&](void* stream, const gpu::LinearArgs& layer) { return kernels.linear_few(stream, {{layer}, 1}); }, peak);
        }
        if (device->info().copies) measure(name + ", stages", kernels.linear_stages, peak);
        if (rows > gpu::kFewRows) measure(name + ", plain", kernels.linear_many, peak);
        if (rows > gpu::kManyRows && warpgroup_peak > 0) {
          measure(name + ", warpgroups", kernels.linear_warpgroups, warpgroup_peak);
        }
        if (rows > gpu::kFewRows && type == WeightType::q8_0) {  // which lie as the weights of W8A8 do
          args.codes = in.at<std::uint8_t>();
          args.in_sums = scales.at<std::int32_t>();
          if (device->info().copies) {
            measure(name + ", int8, stages", kernels.linear_stages, peaks.int8);
          } else {
            measure(name + ", int8, plain", kernels.linear_many, peaks.int8);
          }
          if (rows > gpu::kManyRows && warpgroup_peak > 0) {
            measure(name + ", int8, warpgroups", kernels.linear_warpgroups, peaks.int8_warpgroups);
          }
        }
        if (rows > gpu::kManyRows && type == WeightType::fp8) {
          args.codes = in.at<std::uint8_t>();
          for (const bool groups : {false, true}) {  // with scales per row, and per 128 columns
            args.in_group = args.weight_group = groups ? gpu::kScaleColumns : 0;
            const std::string what = name + ", E4M3" + (groups ? " in groups" : "");
            if (device->info().warpgroups) {
              measure(what + ", warpgroups", kernels.linear_e4m3_warpgroups, peaks.e4m3_warpgroups);
            }
            if (device->info().e4m3) measure(what + ", stages", kernels.linear_e4m3_stages, peaks.e4m3);
          }
        }
      }
    }
  }
}

void bench_attention(const std::shared_ptr<Device>& device, double bandwidth) {
  const int heads = 32, kv_heads = 8, dim = 128;
  for (const int tokens : {1024, 8192, 32768}) {
    const int pages = tokens / gpu::kPageSlots;
    gpu::AttendArgs args{};
    args.cache.head_bytes = 2ll * gpu::kPageSlots * dim * 2;
    args.cache.value_offset = args.cache.head_bytes / 2;
    args.cache.scale_offset = args.cache.head_bytes;
    args.cache.page_bytes = args.cache.head_bytes * kv_heads;
    args.cache.element = gpu::CacheElement::f16;
    args.cache.kv_heads = kv_heads;
    args.cache.head_dim = args.cache.padded_dim = dim;
    const Buffer cache = Buffer::make(device, args.cache.page_bytes * pages).value();
    device->clear(cache.at(), cache.bytes()).value();
    std::vector<std::int32_t> words;
    for (int i = 0; i < pages; ++i) words.push_back(i);
    words.push_back(0);
    words.push_back(tokens - 1);
    const Buffer tables = Buffer::make(device, static_cast<std::int64_t>(words.size()) * 4).value();
    device->copy(tables.at(), words.data(), tables.bytes()).value();
    const Buffer q = Buffer::make(device, heads * dim * 4).value(), out = Buffer::make(device, heads * dim * 4).value();
    device->clear(q.at(), q.bytes()).value();
    args.splits = std::min(pages, std::max(1, 4 * device->info().units / kv_heads));
    args.pages_per_split = (pages + args.splits - 1) / args.splits;
    args.splits = (pages + args.pages_per_split - 1) / args.pages_per_split;
    const Buffer parts = Buffer::make(device, std::int64_t{heads} * args.splits * (dim + 2) * 4).value();
    args.cache.data = cache.at<unsigned char>();
    args.tables = {tables.at<std::int32_t>(), tables.at<std::int32_t>(pages * 4), tables.at<std::int32_t>(pages * 4 + 4)};
    args.q = {q.at<float>(), heads * dim};
    args.out = {out.at<float>(), heads * dim};
    args.rows = 1;
    args.heads = heads;
    args.parts = parts.at<float>();
    const double took = seconds(*device, [&] { return device->kernels().attend(device->stream(), args); });
    report("decode attention, f16, 32 heads of 8, " + std::to_string(tokens) + " tokens",
           static_cast<double>(cache.bytes()) / took * 1e-9, "GB/s", bandwidth * 1e-9);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const auto device = target::make_device({}).value();
  if (argc > 1 && std::strcmp(argv[1], "--list") == 0) {
    std::printf("copy bandwidth, matrix peak, launch; linear layers; decode attention, on %s\n", device->info().name.c_str());
    return 0;
  }
  double bandwidth = 0;
  {
    const std::int64_t bytes = std::int64_t{1} << 30;
    const Buffer from = Buffer::make(device, bytes).value(), to = Buffer::make(device, bytes).value();
    device->clear(from.at(), bytes).value();
    bandwidth = 2.0 * bytes / seconds(*device, [&] { return device->copy(to.at(), from.at(), bytes) ? 0 : 1; });
    report("copy on the device", bandwidth * 1e-9, "GB/s", 0);
  }
  const Buffer found = Buffer::make(device, 3 * sizeof(std::int32_t)).value();
  std::int32_t unit[2] = {};
  {
    const gpu::Current current(*device);
    device->check(target::launch(device->stream(), {}, 64, unit_kernel, UnitArgs{found.at<std::int32_t>()}), "unit").value();
    device->copy(unit, found.at(), sizeof unit).value();
    device->wait().value();
  }
  const std::string by = kUnits[unit[0]];
  const PeakArgs args{nullptr};
  Peaks peaks;
  const auto products_per_second = [&](double products, int blocks, const std::function<int(unsigned)>& launch) {
    return 2.0 * products * blocks / seconds(*device, [&] { return launch(static_cast<unsigned>(blocks)); });
  };
  const auto peak_of = [&](const char* what, double product, void (*kernel)(PeakArgs)) {
    const double peak = products_per_second(product * kProducts * (kPeakThreads / unit[1]), device->info().units * 8,
                                            [&](unsigned blocks) {
                                              return target::launch(device->stream(), {blocks}, kPeakThreads, kernel, args);
                                            });
    report(std::string("products of ") + what + ", " + by, peak * 1e-12, "TFLOP/s", 0);
    return peak;
  };
  peaks.halves = peak_of("halves", 16.0 * 16 * 16, peak_kernel<float>);
  if (device->info().e4m3) peaks.e4m3 = peak_of("E4M3", 16.0 * 8 * 32, e4m3_peak_kernel);
  peaks.int8 = peak_of("int8", 16.0 * 16 * 32, peak_kernel<std::int32_t>);
  for (const bool overlap : {true, false}) {
    if (!overlap && device->info().kind == "hip") continue;  // whose kernels all do
    const auto of = target::make_device({.dependent_launch = overlap}).value();
    const gpu::ProbeArgs probe{found.at<std::int32_t>()};
    report(overlap ? "nearly empty kernel" : "nearly empty kernel that begins when the former one has ended",
           1e6 * seconds(*of, [&] { return of->kernels().probe(of->stream(), probe); }), "us", 0);
  }
  if (device->info().resident_blocks > 0)
    report("nearly empty step of a kernel of many", 1e6 * seconds_of_step(device), "us", 0);
#if defined(LLMINFER_GPU_WARPGROUPS)
  if (device->info().warpgroups) {
    const auto warpgroup_peak_of = [&](const char* what, double product, void (*kernel)(PeakArgs)) {
      const double peak = products_per_second(product * kWarpgroupProducts, device->info().units * 4, [&](unsigned blocks) {
        return target::launch_with_shared(device->stream(), {blocks}, 128, kWarpgroupTiles + 1024, kernel, args);
      });
      report(std::string("products of ") + what + ", wgmma", peak * 1e-12, "TFLOP/s", 0);
      return peak;
    };
    peaks.warpgroups = warpgroup_peak_of("halves", 64.0 * 128 * 16, warpgroup_peak_kernel<float>);
    peaks.e4m3_warpgroups = warpgroup_peak_of("E4M3", 64.0 * 128 * 32, warpgroup_peak_kernel<float, true>);
    peaks.int8_warpgroups = warpgroup_peak_of("int8", 64.0 * 128 * 32, warpgroup_peak_kernel<int32_t>);
  }
#endif
  bench_linear(device, bandwidth, peaks);
  bench_attention(device, bandwidth);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "gpu_bench: %s\n", error.what());
  return 1;
}
