// The fragments of WMMA as gfx12 has them.
#define LLMINFER_GPU_EMULATED
#define LLMINFER_GPU_TARGET emulated_gfx12
#define LLMINFER_GPU_MMA_WMMA 12
#include "tests/gpu/fragments.hpp"

TEST_CASE("Products of halves and of bytes by WMMA of gfx12") {
  llminfer::test::check_fragments<float>();
  llminfer::test::check_fragments<std::int32_t>();
}
