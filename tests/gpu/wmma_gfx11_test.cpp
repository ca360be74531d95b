// The fragments of WMMA as gfx11 has them.
#define LLMINFER_GPU_EMULATED
#define LLMINFER_GPU_TARGET emulated_gfx11
#define LLMINFER_GPU_MMA_WMMA 11
#include "tests/gpu/fragments.hpp"

TEST_CASE("Products of halves and of bytes by WMMA of gfx11") {
  llminfer::test::check_fragments<float>();
  llminfer::test::check_fragments<std::int32_t>();
}
