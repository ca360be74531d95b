// Linear kernels alone: one [N, K] weight that does not fit the caches times M rows, per type, level and thread count,
// beside the rate at which the machine merely reads memory; and rows that are normed, rotated, activated and quantized.
// GB/s are of packed weights; an operation is a multiplication or an addition of the layer, however many instructions
// its codes take.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "backends/cpu/elementwise.hpp"
#include "backends/cpu/level.hpp"
#include "bench/counters.hpp"

namespace cpu = llminfer::cpu;
using llminfer::WeightType;

namespace {

using Table = const cpu::LinearKernels*;

struct Kind {
  std::string name;
  WeightType type;
  llminfer::WeightDetails details{};
  bool high_only = false;  ///< activations of 8 bits
  bool sparse = false;     ///< two of four weights are zero
};

/// The types of GGUF files, and those of Hugging Face checkpoints with the scales that they usually have.
std::vector<Kind> kinds() {
  std::vector<Kind> all;
  for (const WeightType type :
       {WeightType::q4_0, WeightType::q4_1, WeightType::q5_0, WeightType::q8_0, WeightType::q4_k, WeightType::q5_k,
        WeightType::q6_k, WeightType::q2_k, WeightType::q3_k, WeightType::iq4_nl, WeightType::iq4_xs, WeightType::mxfp4,
        WeightType::nvfp4, WeightType::tq2_0, WeightType::iq3_xxs, WeightType::iq2_s, WeightType::f16, WeightType::bf16,
        WeightType::f32}) {
    all.push_back({std::string(llminfer::weight_type_info(type).name), type});
  }
  for (const WeightType type : {WeightType::w4_sym, WeightType::w4, WeightType::w2, WeightType::w3, WeightType::w8,
                                WeightType::nf4, WeightType::fp4_16, WeightType::fp8}) {
    all.push_back({std::string(llminfer::weight_type_info(type).name), type});
    Kind& kind = all.back();
    if (type != WeightType::fp4_16) kind.details.scale_columns = type == WeightType::nf4 ? 64 : 128;
  }
  all.push_back({"W8A8", WeightType::w8_sym});
  Kind& w8a8 = all.back();
  w8a8.details.scale_columns = std::int64_t{1} << 30;
  w8a8.details.input.kind = llminfer::InputQuantization::Kind::int8;
  all.push_back({"FP8_E4M3", WeightType::fp8});
  Kind& e4m3 = all.back();
  e4m3.details.scale_columns = e4m3.details.input.group = 128;
  e4m3.details.input.kind = llminfer::InputQuantization::Kind::fp8;
  all.push_back({"Q8_0_2of4", WeightType::q8_0, {}, false, true});
  all.push_back({"F16_2of4", WeightType::f16, {}, false, true});
  for (const WeightType type :
       {WeightType::q4_0, WeightType::q5_0, WeightType::q8_0, WeightType::q4_k, WeightType::q6_k, WeightType::bf16}) {
    all.push_back({std::string(llminfer::weight_type_info(type).name) + "_A8", type, {}, true});
  }
  return all;
}

/// Random blocks with zero scales: the time does not depend on the values, and no value can be a slow denormal.
std::shared_ptr<const cpu::PackedWeight> weight(const Kind& kind, std::int64_t rows, std::int64_t cols) {
  static std::map<std::tuple<std::string, std::int64_t, std::int64_t>, std::shared_ptr<const cpu::PackedWeight>> cache;
  auto& entry = cache[{kind.name, rows, cols}];
  if (!entry) {
    entry.reset();
    auto packed = cpu::PackedWeight::allocate(kind.type, rows, cols, kind.details, nullptr, kind.sparse).value();
    std::mt19937 random(1);
    auto* const data = const_cast<std::uint8_t*>(packed->view().data);
    for (std::int64_t i = 0; i < packed->bytes(); ++i) data[i] = (static_cast<std::uint8_t>(random()) & 0x3b) | 0x08;
    entry = std::move(packed);
  }
  return entry;
}

/// `slice_rows`: PackedWeightView's.
void linear(benchmark::State& state, Table table, const Kind& kind, std::int64_t rows, std::int64_t cols,
            std::int32_t slice_rows) {
  const auto m = static_cast<std::int32_t>(state.range(0));
  static std::shared_ptr<const cpu::PackedWeight> shared;
  static std::vector<float> out;
  if (state.thread_index() == 0) {
    shared = weight(kind, rows, cols);
    out.assign(static_cast<std::size_t>(m * rows), 0.0f);
  }
  const cpu::LinearKernels& kernels = *table;
  std::vector<float> x(static_cast<std::size_t>(m * cols), 0.5f);
  const auto packed = cpu::PackedWeight::allocate(kind.type, 1, cols, kind.details).value();
  const cpu::PanelKind panels = packed->kind();
  const bool bytes = m >= kernels.byte_rows && (kernels.byte_rows == 0 || !cpu::wide_codes(cpu::panel_shape(panels)));
  const cpu::ActivationCodes codes = !kind.high_only ? cpu::kCodes16 : bytes ? cpu::kBytes8 : cpu::kCodes8;
  const bool bfloats = packed->form(codes) == cpu::InputForm::bfloats;
  const std::int64_t group_stride = cpu::quantized_row_groups(cols);
  std::vector<cpu::QuantizedGroup> groups(static_cast<std::size_t>(m * group_stride));
  for (std::int32_t i = 0; i < m; ++i) {
    cpu::QuantizedGroup* const to = groups.data() + i * group_stride;
    if (bfloats) {
      kernels.quantize_bfloats(nullptr, x.data() + i * cols, cols, to);
    } else if (kind.details.input.kind == llminfer::InputQuantization::Kind::int8) {
      kernels.quantize_bytes(cpu::rounding_of(kind.details.input), x.data() + i * cols, cols, to);
    } else {
      kernels.quantize_row(x.data() + i * cols, cols, codes, to);
    }
  }
  const std::unique_ptr<void, decltype(&std::free)> scratch(
      std::aligned_alloc(64, (cpu::linear_scratch_bytes(cols) + 63) / 64 * 64), std::free);
  for (auto _ : state) {
    cpu::PackedWeightView view = shared->view();
    view.slice_rows = slice_rows;
    const std::int32_t all = shared->panels(), pairs = all / 2;
    const std::int32_t begin = pairs * state.thread_index() / state.threads() * 2;
    const std::int32_t end =
        state.thread_index() + 1 == state.threads() ? all : pairs * (state.thread_index() + 1) / state.threads() * 2;
    kernels.linear(view, begin, end, {x.data(), cols, groups.data(), group_stride, codes.bytes, bfloats}, 0, m,
                   out.data(), rows, scratch.get());
    benchmark::ClobberMemory();
  }
  bench::count(state, static_cast<double>(shared->bytes()), 2.0 * m * static_cast<double>(rows * cols));
}

/// Bringing a weight of a file into panels, on one thread. GB/s are of the file.
void pack(benchmark::State& state, const Kind& kind) {
  constexpr std::int64_t kRows = 1536, kCols = 1536;
  const llminfer::WeightTypeInfo info = llminfer::weight_type_info(kind.type);
  std::vector<std::byte> file(static_cast<std::size_t>(kRows * kCols / info.block_values) * info.block_bytes);
  std::mt19937 random(1);
  for (std::byte& byte : file) byte = static_cast<std::byte>((random() & 0x3b) | 0x08);
  const auto packed = cpu::PackedWeight::allocate(kind.type, kRows, kCols, kind.details).value();
  for (auto _ : state) {
    packed->pack_panels({"", kind.type, kRows, kCols, file, nullptr, kind.details}, 0, packed->panels());
    benchmark::ClobberMemory();
  }
  bench::count(state, static_cast<double>(file.size()));
}

/// The roof: each thread sums its share of 128 MiB.
void read_memory(benchmark::State& state) {
  static std::vector<std::uint64_t> data;
  if (state.thread_index() == 0) data.assign(std::size_t{16} << 20, 1);
  for (auto _ : state) {
    const std::size_t share = data.size() / static_cast<std::size_t>(state.threads());
    const std::uint64_t* const p = data.data() + share * static_cast<std::size_t>(state.thread_index());
    std::uint64_t sum[32] = {};
    for (std::size_t i = 0; i < share; i += 32) {
      for (std::size_t j = 0; j < 32; ++j) sum[j] += p[i + j];
    }
    benchmark::DoNotOptimize(sum);
  }
  bench::count(state, static_cast<double>(data.size() * 8));
}

/// Rounding a row to integers of 8 bits, or through E4M3. GB/s are of its floats.
void round_row(benchmark::State& state, Table table, bool floats) {
  const std::vector<float> x(1536, 0.5f);
  std::vector<float> out(1536);
  std::vector<cpu::QuantizedGroup> groups(static_cast<std::size_t>(cpu::quantized_row_groups(1536)));
  const cpu::InputRounding how{floats, true, 0, 0.0f, 0};
  for (auto _ : state) {
    floats ? table->round_row(how, x.data(), 1536, out.data())
           : table->quantize_bytes(how, x.data(), 1536, groups.data());
    benchmark::ClobberMemory();
  }
  bench::count(state, 1536.0 * 4);
}

/// Rounding a row to BF16 numbers, or to E4M3 ones with their scales apart. GB/s are of its floats.
void quantize_bfloats(benchmark::State& state, Table table, bool e4m3) {
  const std::vector<float> x(1536, 0.5f);
  std::vector<cpu::QuantizedGroup> groups(static_cast<std::size_t>(cpu::quantized_row_groups(1536)));
  const cpu::InputRounding how{true, true, 128, 0.0f, 0};
  for (auto _ : state) {
    table->quantize_bfloats(e4m3 ? &how : nullptr, x.data(), 1536, groups.data());
    benchmark::ClobberMemory();
  }
  bench::count(state, 1536.0 * 4);
}

/// Rows of 1536 floats through an elementwise kernel that reads `inputs` of them; bytes are those read and written.
template <class F>
void rows(benchmark::State& state, int inputs, const F& kernel) {
  std::vector<float> a(1536), b(1536, 0.25f), out(1536);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = 0.01f * static_cast<float>(i % 300) - 1.5f;
  for (auto _ : state) {
    kernel(a.data(), b.data(), std::int64_t{1536}, out.data());
    benchmark::ClobberMemory();
  }
  bench::count(state, 1536.0 * 4 * (inputs + 1));
}

void elementwise(const std::string& level, const cpu::ElementwiseKernels& kernels) {
  const auto add = [&](const char* name, int inputs, auto kernel) {
    benchmark::RegisterBenchmark((level + "/" + name).c_str(),
                                 [=](benchmark::State& state) { rows(state, inputs, kernel); });
  };
  add("rms_norm", 2,
      [&](const float* a, const float* b, std::int64_t n, float* out) { kernels.rms_norm(a, b, 1e-5f, n, out); });
  for (const bool interleaved : {false, true}) {  // heads of 64
    add(interleaved ? "rope_neighbours" : "rope_halves", 1,
        [&kernels, interleaved](const float* a, const float* b, std::int64_t n, float* out) {
          for (std::int64_t i = 0; i < n; i += 64) kernels.rope(a + i, b, b, 32, interleaved, 64, 1.0f, out + i);
        });
  }
  add("silu", 2, [&](const float* a, const float* b, std::int64_t n, float* out) { kernels.glu[0](a, b, n, out); });
  add("add", 2, [&](const float* a, const float* b, std::int64_t n, float* out) { kernels.add(a, b, n, out); });
}

void quantize(benchmark::State& state, Table table) {
  std::vector<float> x(1536, 0.5f);
  std::vector<cpu::QuantizedGroup> groups(static_cast<std::size_t>(cpu::quantized_row_groups(1536)));
  for (auto _ : state) {
    table->quantize_row(x.data(), 1536, cpu::kCodes16, groups.data());
    benchmark::ClobberMemory();
  }
  bench::count(state, 1536.0 * 4);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::RegisterBenchmark("read_memory", read_memory)->Threads(1)->Threads(2)->UseRealTime();
  for (const Kind& kind : kinds()) {
    if (kind.sparse || kind.high_only) continue;
    benchmark::RegisterBenchmark(("pack/" + kind.name).c_str(), pack, kind)->Unit(benchmark::kMillisecond);
  }
  for (const cpu::Level& at : cpu::runnable_levels().subspan(1)) {
    if (!cpu::choose_level(at.name, "level").has_value()) continue;
    const std::string level = at.name;
    const Table table = at.linear;
    elementwise(level, *at.elementwise);
    benchmark::RegisterBenchmark((level + "/quantize").c_str(), quantize, table);
    benchmark::RegisterBenchmark((level + "/quantize_bytes").c_str(), round_row, table, false);
    benchmark::RegisterBenchmark((level + "/round_e4m3").c_str(), round_row, table, true);
    benchmark::RegisterBenchmark((level + "/quantize_bfloats").c_str(), quantize_bfloats, table, false);
    benchmark::RegisterBenchmark((level + "/quantize_e4m3").c_str(), quantize_bfloats, table, true);
    for (const Kind& kind : kinds()) {
      const std::string name = level + "/" + kind.name;
      // Batch 1 reads 80 MB and more; prompts use a layer's own size.
      // Weights that no cache holds, as when decoding; then layers of real models, some of which a cache holds.
      for (const int threads : {1, 2}) {
        benchmark::RegisterBenchmark((name + "/stream").c_str(), linear, table, kind, 98304, 1536, 0)
            ->Arg(1)
            ->Arg(2)
            ->Arg(4)
            ->Arg(8)
            ->Threads(threads)
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
      // The two ways of grouped weights, whose crossovers docs/adr/0022 has.
      for (const auto& [way, slice_rows] : {std::pair{"registers", cpu::kNever}, {"slices", 1}}) {
        auto* const bench =
            benchmark::RegisterBenchmark((name + "/" + way).c_str(), linear, table, kind, 1536, 1536, slice_rows);
        for (const int m : {4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96}) bench->Arg(m);
        bench->UseRealTime()->Unit(benchmark::kMillisecond);
      }
      for (const auto& [rows, cols] : {std::pair{1536, 576}, {4864, 896}, {1536, 8960}, {1535, 1536}}) {
        if (cols % llminfer::weight_type_info(kind.type).block_values != 0) continue;
        const std::string shape = std::to_string(rows) + "x" + std::to_string(cols);
        benchmark::RegisterBenchmark((name + "/" + shape).c_str(), linear, table, kind, rows, cols, 0)
            ->Arg(1)
            ->Arg(2)
            ->Arg(3)
            ->Arg(4)
            ->Arg(8)
            ->Arg(16)
            ->Arg(64)
            ->Arg(512)
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
