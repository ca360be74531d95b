// The safetensors header of any bytes: an error, or tensors that lie inside the file one after the other.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "load/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto source = llminfer::core::memory_source("fuzz", std::as_bytes(std::span(data, size)), nullptr);
  const auto tensors = llminfer::load::read_safetensors_header(*source, 0);
  if (!tensors) return 0;
  std::uint64_t end = tensors->empty() ? size : tensors->front().offset;
  for (const llminfer::load::TensorInfo& tensor : *tensors) {
    if (tensor.offset != end || tensor.rows < 1 || tensor.cols < 1) std::abort();
    end += tensor.bytes;
  }
  if (end != size) std::abort();
  return 0;
}
