#include "peaks.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace bench {
namespace {

using Clock = std::chrono::steady_clock;

/// Runs its innermost loop `rounds` times and returns the operations that this was.
using Loop = double (*)(std::int64_t rounds);
/// Reads [data, data + bytes), whole cache lines, and returns something that depends on it.
using Read = std::uint64_t (*)(const std::uint64_t* data, std::size_t bytes);

/// Keeps the compiler from knowing, moving or dropping what is in a register or variable.
template <class T>
inline void hide(T& value) {
  asm volatile("" : "+m"(value));
}

double plain_float(std::int64_t rounds) {
  float sums[16] = {}, a = 1.0f;
  for (std::int64_t i = 0; i < rounds; ++i) {
    hide(a);
    for (float& sum : sums) sum += a * sum;
  }
  for (float& sum : sums) hide(sum);
  return 2.0 * 16 * static_cast<double>(rounds);
}

double plain_int8(std::int64_t rounds) {
  std::int32_t sums[16] = {};
  std::int8_t a[16] = {1, 2, 3};
  for (std::int64_t i = 0; i < rounds; ++i) {
    hide(a);
    for (int j = 0; j < 16; ++j) sums[j] += std::int32_t{a[j]} * a[15 - j];
  }
  for (auto& sum : sums) hide(sum);
  return 2.0 * 16 * static_cast<double>(rounds);
}

double plain_words(std::int64_t rounds) {
  std::int32_t sums[16] = {};
  std::int16_t a[16] = {1, 2, 3};
  for (std::int64_t i = 0; i < rounds; ++i) {
    hide(a);
    for (int j = 0; j < 16; ++j) sums[j] += std::int32_t{a[j]} * a[15 - j];
  }
  for (auto& sum : sums) hide(sum);
  return 2.0 * 16 * static_cast<double>(rounds);
}

std::uint64_t plain_read(const std::uint64_t* data, std::size_t bytes) {
  std::uint64_t sums[8] = {};
  for (std::size_t i = 0; i < bytes / sizeof *data; i += 8)
    for (std::size_t j = 0; j < 8; ++j) sums[j] ^= data[i + j];
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

#if defined(__x86_64__)
// Twelve sums in registers hide the latency of two units of four cycles. `a` is opaque in each use, so that no product
// is computed once and reused.
#pragma GCC diagnostic push
#ifndef __clang__  // which has no such warning
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

/// `instruction` adds to %0 what %2 times itself is; it may need %1. `constraint`: of its registers.
#define LLMINFER_X86_LOOP(name, target_options, start, constraint, instruction, products)                     \
  __attribute__((target(target_options))) double name(std::int64_t rounds) {                                  \
    const auto a = start;                                                                                     \
    decltype(start) sums[12] = {}, scratch;                                                                   \
    for (std::int64_t i = 0; i < rounds; ++i) {                                                               \
      _Pragma("GCC unroll 12") for (auto& sum : sums) asm volatile(instruction : "+" constraint(sum),         \
                                                                   "=&" constraint(scratch) : constraint(a)); \
    }                                                                                                         \
    return 2.0 * (products)*12 * static_cast<double>(rounds);                                                 \
  }
// Without dot products those of int8 are summed in 16 bits, which is the least that they cost.
LLMINFER_X86_LOOP(avx2_float, "avx2,fma", _mm256_set1_ps(0.5f), "x", "vfmadd231ps %2, %2, %0", 8)
LLMINFER_X86_LOOP(avx2_int8, "avx2", _mm256_set1_epi8(1), "x", "vpmaddubsw %2, %2, %1\n\tvpaddw %1, %0, %0", 32)
LLMINFER_X86_LOOP(avx2_words, "avx2", _mm256_set1_epi16(1), "x", "vpmaddwd %2, %2, %1\n\tvpaddd %1, %0, %0", 16)
LLMINFER_X86_LOOP(avxvnni_int8, "avx2,avxvnni", _mm256_set1_epi8(1), "x", "%{vex%} vpdpbusd %2, %2, %0", 32)
LLMINFER_X86_LOOP(avxvnni_words, "avx2,avxvnni", _mm256_set1_epi16(1), "x", "%{vex%} vpdpwssd %2, %2, %0", 16)
LLMINFER_X86_LOOP(avx512_float, "avx512f", _mm512_set1_ps(0.5f), "v", "vfmadd231ps %2, %2, %0", 16)
LLMINFER_X86_LOOP(avx512_int8, "avx512f,avx512bw", _mm512_set1_epi8(1), "v",
                  "vpmaddubsw %2, %2, %1\n\tvpaddw %1, %0, %0", 64)
LLMINFER_X86_LOOP(avx512_words, "avx512f,avx512bw", _mm512_set1_epi16(1), "v",
                  "vpmaddwd %2, %2, %1\n\tvpaddd %1, %0, %0", 32)
LLMINFER_X86_LOOP(avx512vnni_int8, "avx512f,avx512vnni", _mm512_set1_epi8(1), "v", "vpdpbusd %2, %2, %0", 64)
LLMINFER_X86_LOOP(avx512vnni_words, "avx512f,avx512vnni", _mm512_set1_epi16(1), "v", "vpdpwssd %2, %2, %0", 32)
LLMINFER_X86_LOOP(avx512_bf16, "avx512f,avx512bf16", _mm512_set1_ps(0.5f), "v", "vdpbf16ps %2, %2, %0", 32)
#undef LLMINFER_X86_LOOP

#ifdef __linux__
/// Full tiles: 16 rows times 16 columns, sums over 64 bytes. Six of sums hide the latency.
struct TileSession {
  struct alignas(64) Config {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  TileSession() {
    const Config config;
    asm volatile("ldtilecfg %0" : : "m"(config));  // zeroes all tiles
  }
  ~TileSession() { asm volatile("tilerelease"); }
};
constexpr double kTileSums = 6 * 2.0 * 16 * 16;

double amx_int8(std::int64_t rounds) {
  const TileSession session;
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile(
        "tdpbssd %tmm7, %tmm6, %tmm0\n\ttdpbssd %tmm7, %tmm6, %tmm1\n\ttdpbssd %tmm7, %tmm6, %tmm2\n\t"
        "tdpbssd %tmm7, %tmm6, %tmm3\n\ttdpbssd %tmm7, %tmm6, %tmm4\n\ttdpbssd %tmm7, %tmm6, %tmm5");
  }
  return kTileSums * 64 * static_cast<double>(rounds);
}

double amx_bf16(std::int64_t rounds) {
  const TileSession session;
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile(
        "tdpbf16ps %tmm7, %tmm6, %tmm0\n\ttdpbf16ps %tmm7, %tmm6, %tmm1\n\ttdpbf16ps %tmm7, %tmm6, %tmm2\n\t"
        "tdpbf16ps %tmm7, %tmm6, %tmm3\n\ttdpbf16ps %tmm7, %tmm6, %tmm4\n\ttdpbf16ps %tmm7, %tmm6, %tmm5");
  }
  return kTileSums * 32 * static_cast<double>(rounds);
}
#endif

__attribute__((target("avx2"))) std::uint64_t avx2_read(const std::uint64_t* data, std::size_t bytes) {
  __m256i sums[4] = {};
  const auto* const p = reinterpret_cast<const __m256i*>(data);
  for (std::size_t i = 0; i < bytes / 32; i += 4) {
#pragma GCC unroll 4
    for (std::size_t j = 0; j < 4; ++j) sums[j] = _mm256_xor_si256(sums[j], _mm256_load_si256(p + i + j));
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
  return static_cast<std::uint64_t>(_mm256_extract_epi64(all, 0));
}
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
// As above; `instruction` adds to %0 what %1 times itself is.
#define LLMINFER_NEON_LOOP(name, target_options, instruction, products)                               \
  __attribute__((target(target_options))) double name(std::int64_t rounds) {                          \
    int32x4_t a = vdupq_n_s32(1), sums[12] = {};                                                      \
    for (std::int64_t i = 0; i < rounds; ++i) {                                                       \
      _Pragma("GCC unroll 12") for (auto& sum : sums) asm volatile(instruction : "+w"(sum) : "w"(a)); \
    }                                                                                                 \
    return 2.0 * (products)*12 * static_cast<double>(rounds);                                         \
  }
LLMINFER_NEON_LOOP(neon_float, "arch=armv8-a", "fmla %0.4s, %1.4s, %1.4s", 4)
LLMINFER_NEON_LOOP(neon_int8, "arch=armv8-a", "smlal %0.8h, %1.8b, %1.8b", 8)  // summed in 16 bits
LLMINFER_NEON_LOOP(neon_words, "arch=armv8-a", "smlal %0.4s, %1.4h, %1.4h", 4)
LLMINFER_NEON_LOOP(neon_dotprod_int8, "arch=armv8.2-a+dotprod", "sdot %0.4s, %1.16b, %1.16b", 16)
LLMINFER_NEON_LOOP(neon_i8mm_int8, "arch=armv8.2-a+i8mm", "smmla %0.4s, %1.16b, %1.16b", 32)
#undef LLMINFER_NEON_LOOP
#endif

struct Loops {
  std::string_view level;
  Loop int8, words, floats;
  Read read;
  Loop bf16 = nullptr;  ///< in pairs or on tiles
};

const Loops& loops_of(std::string_view level) {
  static const Loops all[] = {
    {"scalar", plain_int8, plain_words, plain_float, plain_read},
#if defined(__x86_64__)
    {"avx2", avx2_int8, avx2_words, avx2_float, avx2_read},
    {"avxvnni", avxvnni_int8, avxvnni_words, avx2_float, avx2_read},
    {"avx512", avx512_int8, avx512_words, avx512_float, avx2_read},
    {"avx512vnni", avx512vnni_int8, avx512vnni_words, avx512_float, avx2_read},
    {"avx512bf16", avx512vnni_int8, avx512vnni_words, avx512_float, avx2_read, avx512_bf16},
#ifdef __linux__
    {"amx", amx_int8, avx512vnni_words, avx512_float, avx2_read, amx_bf16},
#endif
#elif defined(__aarch64__)
    {"neon", neon_int8, neon_words, neon_float, plain_read},
    {"neon_dotprod", neon_dotprod_int8, neon_words, neon_float, plain_read},
    {"neon_i8mm", neon_i8mm_int8, neon_words, neon_float, plain_read},
#endif
  };
  const auto* found = std::find_if(std::begin(all), std::end(all), [&](const Loops& l) { return l.level == level; });
  return found == std::end(all) ? all[0] : *found;
}

/// Seconds from the time when all threads are ready to the end of the last one's body(index).
template <class Body>
double together(int threads, Body body) {
  std::atomic<int> ready{0};
  std::vector<std::thread> team;
  std::vector<Clock::time_point> begins(static_cast<std::size_t>(threads)), ends(begins);
  for (int i = 0; i < threads; ++i) {
    team.emplace_back([&, i] {
      ++ready;
      while (ready.load() < threads) std::this_thread::yield();
      begins[static_cast<std::size_t>(i)] = Clock::now();
      body(i);
      ends[static_cast<std::size_t>(i)] = Clock::now();
    });
  }
  for (auto& thread : team) thread.join();
  return std::chrono::duration<double>(*std::max_element(ends.begin(), ends.end()) -
                                       *std::min_element(begins.begin(), begins.end()))
      .count();
}

double rate_of(Loop loop, int threads) {
  std::int64_t rounds = 1 << 12;
  for (;; rounds *= 2) {  // until it takes long enough to be measured
    const auto begin = Clock::now();
    loop(rounds);
    if (Clock::now() - begin > std::chrono::milliseconds(20)) break;
  }
  double best = 0;
  for (int turn = 0; turn < 5; ++turn) {
    std::vector<double> operations(static_cast<std::size_t>(threads));
    const double seconds = together(threads, [&](int i) { operations[static_cast<std::size_t>(i)] = loop(rounds); });
    best = std::max(best, operations[0] * threads / seconds);
  }
  return best;
}

double read_rate(Read read, int threads) {
  constexpr std::size_t kBytes = std::size_t{256} << 20;  // more than any cache
  struct alignas(64) Line {
    std::uint64_t words[8];
  };
  std::vector<Line> memory(kBytes / sizeof(Line), Line{{1, 2, 3, 4, 5, 6, 7, 8}});
  const std::size_t share = memory.size() / static_cast<std::size_t>(threads);
  double best = 0;
  std::atomic<std::uint64_t> sink{0};
  for (int turn = 0; turn < 5; ++turn) {
    const double seconds = together(
        threads, [&](int i) { sink += read(memory[static_cast<std::size_t>(i) * share].words, share * sizeof(Line)); });
    best = std::max(best, static_cast<double>(share * sizeof(Line)) * threads / seconds);
  }
  return best;
}

}  // namespace

Peaks measure_peaks(std::string_view level, int threads) {
  const Loops& loops = loops_of(level);
  threads = std::max(threads, 1);
  return {read_rate(loops.read, threads), rate_of(loops.int8, threads), rate_of(loops.words, threads),
          rate_of(loops.floats, threads), loops.bf16 ? rate_of(loops.bf16, threads) : 0.0};
}

}  // namespace bench
