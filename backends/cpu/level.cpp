#include "backends/cpu/level.hpp"

#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "core/error.hpp"

namespace llminfer::cpu {
namespace {

#if defined(__x86_64__)
// Which of them are called depends on the levels that are built. The compiler's checks look at what the operating
// system saves, too; where one does not know a feature, CPUID tells, and what needs to be saved is AVX2's.

[[maybe_unused]] bool has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1) != 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
}
/// CPUID leaf 7.1, EAX bit 4.
[[maybe_unused]] bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}
[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
[[maybe_unused]] bool has_avx512vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
/// CPUID leaf 7.1, EAX bit 5, and permutations of bytes, which only Cooper Lake has not.
[[maybe_unused]] bool has_avx512bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512vnni() && __builtin_cpu_supports("avx512vbmi") && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 &&
         (a >> 5 & 1) != 0;
}
#ifdef __linux__
/// CPUID leaf 7, EDX bits 24 and 25, and that the operating system saves tiles: XCR0 bits 17 and 18.
[[maybe_unused]] bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512bf16() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d >> 24 & 3) != 3) return false;
  unsigned low = 0, high = 0;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3;
}
/// Lets this process use tiles, which Linux asks for (arch_prctl). It stays so: alternative signal stacks must then
/// hold tiles, too, so that only those who want the level pay for it. Returns an errno, or 0.
[[maybe_unused]] int permit_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : errno;
}
#else
[[maybe_unused]] bool has_amx() { return false; }
[[maybe_unused]] int permit_tiles() { return ENOSYS; }
#endif
#elif defined(__aarch64__)
#ifdef __linux__
[[maybe_unused]] bool has_neon_dotprod() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
[[maybe_unused]] bool has_neon_i8mm() { return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
#else
[[maybe_unused]] bool has_neon_dotprod() { return false; }
[[maybe_unused]] bool has_neon_i8mm() { return false; }
#endif
#endif

/// The levels that are built.
struct Levels {
  std::vector<Level> runnable;
  std::vector<std::string_view> missing;
  void add(bool runs, const Level& level) {
    if (runs) {
      runnable.push_back(level);
    } else {
      missing.push_back(level.name);
    }
  }
};

// Tiles and products of bytes or BF16 numbers change linear layers only, VNNI those and attention; the other kernels
// are those of the level below.
Levels find_levels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  Levels levels;
  levels.add(true, {"scalar", &isa_scalar::linear_kernels(), &isa_scalar::elementwise_kernels(),
                    &isa_scalar::attention_kernels()});
#ifdef LLMINFER_LEVEL_AVX2
  levels.add(has_avx2(),
             {"avx2", &isa_avx2::linear_kernels(), &isa_avx2::elementwise_kernels(), &isa_avx2::attention_kernels()});
#endif
#ifdef LLMINFER_LEVEL_AVXVNNI
  levels.add(has_avxvnni(), {"avxvnni", &isa_avxvnni::linear_kernels(), &isa_avx2::elementwise_kernels(),
                             &isa_avxvnni::attention_kernels()});
#endif
#ifdef LLMINFER_LEVEL_AVX512
  levels.add(has_avx512(), {"avx512", &isa_avx512::linear_kernels(), &isa_avx512::elementwise_kernels(),
                            &isa_avx512::attention_kernels()});
#endif
#ifdef LLMINFER_LEVEL_AVX512VNNI
  levels.add(has_avx512vnni(), {"avx512vnni", &isa_avx512vnni::linear_kernels(), &isa_avx512::elementwise_kernels(),
                                &isa_avx512vnni::attention_kernels()});
#endif
#ifdef LLMINFER_LEVEL_AVX512BF16
  levels.add(has_avx512bf16(), {"avx512bf16", &isa_avx512bf16::linear_kernels(), &isa_avx512::elementwise_kernels(),
                                &isa_avx512vnni::attention_kernels()});
#endif
#ifdef LLMINFER_LEVEL_AMX
  levels.add(has_amx(), {"amx", &isa_amx::linear_kernels(), &isa_avx512::elementwise_kernels(),
                         &isa_avx512vnni::attention_kernels()});
#endif
#ifdef LLMINFER_LEVEL_NEON
  levels.add(true,
             {"neon", &isa_neon::linear_kernels(), &isa_neon::elementwise_kernels(), &isa_neon::attention_kernels()});
#endif
#ifdef LLMINFER_LEVEL_NEON_DOTPROD
  levels.add(has_neon_dotprod(), {"neon_dotprod", &isa_neon_dotprod::linear_kernels(), &isa_neon::elementwise_kernels(),
                                  &isa_neon::attention_kernels()});
#endif
#ifdef LLMINFER_LEVEL_NEON_I8MM
  levels.add(has_neon_i8mm(), {"neon_i8mm", &isa_neon_i8mm::linear_kernels(), &isa_neon::elementwise_kernels(),
                               &isa_neon::attention_kernels()});
#endif
  return levels;
}

const Levels& all_levels() {
  static const Levels levels = find_levels();
  return levels;
}

/// Lets this process run a level. Returns an errno, or 0.
int permit([[maybe_unused]] const Level& level) {
#ifdef LLMINFER_LEVEL_AMX
  if (level.linear == &isa_amx::linear_kernels()) return permit_tiles();
#endif
  return 0;
}

}  // namespace

std::span<const Level> runnable_levels() { return all_levels().runnable; }
std::span<const std::string_view> missing_levels() { return all_levels().missing; }

Result<Level> choose_level(std::string_view name, std::string_view option) {
  const std::span<const Level> levels = runnable_levels();
  std::string possible;
  for (auto level = levels.rbegin(); level != levels.rend(); ++level) {
    if (name.empty() ? permit(*level) == 0 : level->name == name) {
      if (const int error = permit(*level)) {
        return core::fail(ErrorCode::unsupported, option, " is \"", name,
                          "\", but the operating system refuses it: ", std::system_category().message(error));
      }
      return Level(*level);
    }
    possible = level->name + (possible.empty() ? "" : ", " + possible);
  }
  return core::fail(ErrorCode::invalid_argument, option, " is \"", name, "\"; this machine can run: ", possible);
}

}  // namespace llminfer::cpu
