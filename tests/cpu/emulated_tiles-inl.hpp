// The linear kernels on tiles, with the tile registers in plain C++: what a processor without AMX can run of level
// "amx". Included inside a namespace after the vector operations, unpack-inl.hpp and grouped-inl.hpp of a level that
// can run here.
//
// Shapes that would fault on a processor end the test run with a message.

namespace {

[[noreturn]] void tile_fault(const char* what) {
  std::fprintf(stderr, "emulated tiles: %s\n", what);
  std::abort();
}

#include "backends/cpu/kernels/tile_config-inl.hpp"

struct Tiles {
  struct Tile {
    std::uint8_t bytes[16][64];
  };
  static inline thread_local TileConfig config{};
  static inline thread_local Tile tiles[8];

  static void configure(const TileConfig& wanted) {
    if (wanted.palette != 1 || wanted.start_row != 0) tile_fault("palette or start row");
    for (int t = 0; t < 16; ++t) {
      if (wanted.rows[t] > 16 || wanted.row_bytes[t] > 64 || (t >= 8 && wanted.rows[t] + wanted.row_bytes[t] > 0)) {
        tile_fault("shape");
      }
    }
    config = wanted;
    for (Tile& tile : tiles) std::memset(tile.bytes, 0, sizeof tile.bytes);
  }
  static void release() { config = {}; }
  static void check(int t) {
    if (config.rows[t] == 0 || config.row_bytes[t] == 0) tile_fault("a tile that is not configured");
  }
  template <int T>
  static void zero() {
    check(T);
    std::memset(tiles[T].bytes, 0, sizeof tiles[T].bytes);
  }
  template <int T>
  static void load(const void* from, std::int64_t stride) {
    check(T);
    zero<T>();
    for (int r = 0; r < config.rows[T]; ++r) {
      std::memcpy(tiles[T].bytes[r], static_cast<const char*>(from) + r * stride, config.row_bytes[T]);
    }
  }
  template <int T>
  static void store(void* to, std::int64_t stride) {
    check(T);
    for (int r = 0; r < config.rows[T]; ++r) {
      std::memcpy(static_cast<char*>(to) + r * stride, tiles[T].bytes[r], config.row_bytes[T]);
    }
  }
  template <int C, int A, int B>
  static void add_products() {
    add<C, A, B, std::int8_t>();
  }
  template <int C, int A, int B>
  static void add_mixed_products() {
    add<C, A, B, std::uint8_t>();
  }
  template <int C, int A, int B, class Right>
  static void add() {
    check(A), check(B), check(C);
    if (config.rows[A] != config.rows[C] || config.row_bytes[A] != 4 * config.rows[B] ||
        config.row_bytes[B] != config.row_bytes[C]) {
      tile_fault("shapes that do not fit each other");
    }
    for (int m = 0; m < config.rows[C]; ++m) {
      std::int32_t sums[16];
      std::memcpy(sums, tiles[C].bytes[m], sizeof sums);
      for (int n = 0; n < config.row_bytes[C] / 4; ++n) {
        for (int k = 0; k < config.row_bytes[A]; ++k) {
          sums[n] +=
              static_cast<std::int8_t>(tiles[A].bytes[m][k]) * static_cast<Right>(tiles[B].bytes[k / 4][n * 4 + k % 4]);
        }
      }
      std::memcpy(tiles[C].bytes[m], sums, sizeof sums);
    }
  }
};

const LinearKernels& few_rows_kernels() { return isa_scalar::linear_kernels(); }

}  // namespace

#include "backends/cpu/kernels/linear_tiles-inl.hpp"
