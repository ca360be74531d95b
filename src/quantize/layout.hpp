// Layout: what the output holds. Decides the form of each weight, and where each of its tensors lies in the file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <llminfer/quantize.hpp>
#include <llminfer/result.hpp>

#include "quantize/affine.hpp"
#include "quantize/source.hpp"

namespace llminfer::quantize {

/// A run of bytes of the output: a tensor, or an expert's part of one.
struct Place {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  bool begins = true;  ///< a tensor
};

/// A weight of the model, and its form in the output.
struct Job {
  const load::TensorInfo* tensor = nullptr;  ///< in the source's checkpoint
  bool affine = false;                       ///< in integers with scales, else in blocks of `type`
  bool linear = false;                       ///< a matrix that is quantized
  WeightType type = WeightType::f32;
  AffineScheme scheme;
  std::vector<Place> places;  ///< of its tensors in the output

  std::int64_t tensors() const noexcept {
    return std::count_if(places.begin(), places.end(), [](const Place& place) { return place.begins; });
  }
};

struct Layout {
  std::vector<Job> jobs;
  std::string header;
  std::uint64_t size = 0;  ///< of the file
  std::uint64_t tensor_bytes = 0;
  std::int64_t tensors = 0;
  std::string_view dense;            ///< of a directory: the type of what is not quantized, as safetensors names it
  std::vector<std::string> routers;  ///< of a directory: linear layers of the model's layers that are not quantized
};

/// Errors: invalid_argument (a group size or width that does not fit a layer), unsupported.
Result<Layout> lay_out(Source& source, const QuantizeOptions& options);

/// The tensors of an affine weight in the order of Job::places.
std::vector<std::vector<std::byte>> pack(const AffineWeight& weight, const QuantizeOptions& options);

}  // namespace llminfer::quantize
