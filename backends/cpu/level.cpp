#include "backends/cpu/level.hpp"

#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "core/error.hpp"

namespace llminfer::cpu {
namespace {

#if defined(__x86_64__)
// Inline, since which of them are called depends on the levels that are built. The compiler's checks look at what the
// operating system saves, too; where one does not know a feature, CPUID tells, and what needs to be saved is AVX2's.

inline bool has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1) != 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
}
/// CPUID leaf 7.1, EAX bit 4.
inline bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}
inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
inline bool has_avx512vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

std::vector<Level> find_levels() {
  std::vector<Level> levels;
  levels.push_back(
      {"scalar", &isa_scalar::linear_kernels(), &isa_scalar::elementwise_kernels(), &isa_scalar::attention_kernels()});
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
#ifdef LLMINFER_LEVEL_AVX2
  if (has_avx2()) {
    levels.push_back(
        {"avx2", &isa_avx2::linear_kernels(), &isa_avx2::elementwise_kernels(), &isa_avx2::attention_kernels()});
  }
#endif
#ifdef LLMINFER_LEVEL_AVXVNNI  // VNNI serves linear layers only
  if (has_avxvnni()) {
    levels.push_back(
        {"avxvnni", &isa_avxvnni::linear_kernels(), &isa_avx2::elementwise_kernels(), &isa_avx2::attention_kernels()});
  }
#endif
#ifdef LLMINFER_LEVEL_AVX512
  if (has_avx512()) {
    levels.push_back({"avx512", &isa_avx512::linear_kernels(), &isa_avx512::elementwise_kernels(),
                      &isa_avx512::attention_kernels()});
  }
#endif
#ifdef LLMINFER_LEVEL_AVX512VNNI
  if (has_avx512vnni()) {
    levels.push_back({"avx512vnni", &isa_avx512vnni::linear_kernels(), &isa_avx512::elementwise_kernels(),
                      &isa_avx512::attention_kernels()});
  }
#endif
  return levels;
}

}  // namespace

std::span<const Level> runnable_levels() {
  static const std::vector<Level> levels = find_levels();
  return levels;
}

Result<Level> choose_level(std::string_view name, std::string_view option) {
  const std::span<const Level> levels = runnable_levels();
  if (name.empty()) return Level(levels.back());
  std::string possible;
  for (const Level& level : levels) {
    if (level.name == name) return Level(level);
    possible += possible.empty() ? "" : ", ";
    possible += level.name;
  }
  return core::fail(ErrorCode::invalid_argument, option, " is \"", name, "\"; this machine can run: ", possible);
}

}  // namespace llminfer::cpu
