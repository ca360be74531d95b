// What LDTILECFG reads: the shapes of tile registers. Included inside the level's namespace.

namespace {

struct alignas(64) TileConfig {
  std::uint8_t palette, start_row;
  std::uint8_t reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace
