// The tile registers of AMX, by name. Included inside the level's namespace after tile_config-inl.hpp. In assembly,
// since the compilers' own functions take tile numbers as tokens only, and gcc's do not say that they read and write
// memory.
//
// The first use in a thread makes the kernel set up 8 KiB of state for it. Between configure() and release() the
// thread's tiles are live and are saved at context switches; after it they cost nothing.

namespace {

struct Tiles {
  [[gnu::always_inline]] static void configure(const TileConfig& config) {
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  [[gnu::always_inline]] static void release() { asm volatile("tilerelease"); }
  template <int T>
  [[gnu::always_inline]] static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(T));
  }
  /// Rows `stride` bytes apart.
  template <int T>
  [[gnu::always_inline]] static void load(const void* from, std::int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  [[gnu::always_inline]] static void store(void* to, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
  }
  /// C [rows][n] += A [rows][4 k] * B [k][n][4], of signed bytes.
  template <int C, int A, int B>
  [[gnu::always_inline]] static void add_products() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
  /// The same of signed bytes in A and unsigned ones in B.
  template <int C, int A, int B>
  [[gnu::always_inline]] static void add_mixed_products() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
};

}  // namespace
