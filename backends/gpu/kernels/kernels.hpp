// What the kernels' files share: the launchers that make up the table, and the rotation.
#pragma once

#include "backends/gpu/kernels/decode.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

int embed(void* stream, const EmbedArgs& args);
int prepare(void* stream, const PrepareArgs& args);
int linear_few(void* stream, const LayersArgs& args);
int linear_many(void* stream, const LinearArgs& args);
int linear_warpgroups(void* stream, const LinearArgs& args);
int linear_stages(void* stream, const LinearArgs& args);
int quantize(void* stream, const QuantizeArgs& args);
int linear_e4m3_warpgroups(void* stream, const LinearArgs& args);
int linear_e4m3_stages(void* stream, const LinearArgs& args);
int route(void* stream, const RouteArgs& args);
int sort_pairs(void* stream, const SortArgs& args);
int experts_few(void* stream, const ExpertsArgs& args);
int experts_many(void* stream, const ExpertsArgs& args);
int angles(void* stream, const AnglesArgs& args);
int rotate(void* stream, const RotateArgs& args);
int store(void* stream, const StoreArgs& args);
int seal(void* stream, const SealArgs& args);
int attend(void* stream, const AttendArgs& args);
int attend_tiles(void* stream, const AttendTilesArgs& args);
int glu(void* stream, const GluArgs& args);
int add(void* stream, const AddArgs& args);
int gather(void* stream, const GatherArgs& args);
int combine(void* stream, const CombineArgs& args);
int candidates(void* stream, const CandidatesArgs& args);
int persistent(void* stream, const PersistentArgs& args);

/// The kernels of this target.
const KernelTable& kernel_table();

/// Element i of a head after its rotation (Su et al. 2021).
__device__ __forceinline__ float rotated(const RopeArgs& rope, int row, const float* head, int i) {
  if (!rope.angles || i >= 2 * rope.pairs) return head[i];
  const int pair = rope.interleaved ? i / 2 : i % rope.pairs;
  const bool second = rope.interleaved ? i % 2 == 1 : i >= rope.pairs;
  const float a = head[rope.interleaved ? 2 * pair : pair],
              b = head[rope.interleaved ? 2 * pair + 1 : pair + rope.pairs];
  const float* angles = rope.angles + static_cast<int64_t>(row) * 2 * rope.pairs;
  const float cosine = angles[pair], sine = angles[rope.pairs + pair];
  return second ? b * cosine + a * sine : a * cosine - b * sine;
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
