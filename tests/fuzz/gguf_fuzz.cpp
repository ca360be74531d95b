// libFuzzer: any bytes as a GGUF file. Opening must give a checkpoint or an error, and every listed tensor must be
// readable.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "load/checkpoint.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace llminfer;
  const auto source = core::memory_source("fuzz.gguf", std::as_bytes(std::span(data, size)), nullptr);
  const auto checkpoint = load::open_gguf(source);
  if (!checkpoint) {
    if (checkpoint.error().code == ErrorCode::internal || checkpoint.error().message.empty()) std::abort();
    return 0;
  }
  for (const load::TensorInfo& tensor : checkpoint->tensors) {
    const auto view = checkpoint->read(tensor);
    if (!view) std::abort();
    std::vector<float> row(static_cast<std::size_t>(tensor.cols));
    if (!unpack_rows(*view, tensor.rows - 1, 1, row)) std::abort();
  }
  return 0;
}
