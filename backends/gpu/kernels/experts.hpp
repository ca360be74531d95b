// The linear layer of a tile of rows that have the same expert (ExpertsArgs), as that of a block.
#pragma once

#include "backends/gpu/kernels/platform.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

/// Gives the block's threads the layer of tile blockIdx.x, and the table of its weight if the form has one. False:
/// there is nothing to do for this form.
template <Form kForm>
__device__ __forceinline__ bool take_tile(const ExpertsArgs& a, LinearArgs& layer, float* table) {
  const ExpertTile tile = a.tiles[blockIdx.x];
  if (tile.count == 0) return false;
  const ExpertMatrix& expert = a.experts[tile.expert];
  if (expert.weight.form != kForm) return false;
  if (threadIdx.x == 0) {
    layer.weight = expert.weight;
    layer.bias = expert.bias;
    layer.up.rows = 0;
    if (a.ups) {
      layer.up = a.ups[tile.expert].weight;
      layer.up_bias = a.ups[tile.expert].bias;
    }
    layer.in = a.in + static_cast<int64_t>(tile.first) * expert.weight.cols;
    layer.in_scales = a.in_scales ? a.in_scales + tile.first : nullptr;
    layer.row = a.floats.data + tile.first * a.floats.stride;
    layer.norm = nullptr;
    layer.width = a.width;
    layer.rows = tile.count;
    layer.residual.data = nullptr;
    layer.activation = a.activation;
    layer.out = {a.out.data + tile.first * a.out.stride, a.out.stride};
  }
  if (kForm == Form::table4 && threadIdx.x < 16) table[threadIdx.x] = expert.weight.table[threadIdx.x];
  __syncthreads();
  return true;
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
