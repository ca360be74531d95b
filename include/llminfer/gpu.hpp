// Options of the GPU backends, llminfer/cuda.hpp and llminfer/hip.hpp.
#pragma once

#include <cstdint>

#include <llminfer/backend.hpp>

namespace llminfer::inline v0 {

struct GpuOptions {
  int device = 0;  ///< by the runtime's numbering
  /// One kernel for all batches: each request then gives bit for bit what it would give alone. Otherwise few rows are
  /// multiplied by other kernels than many, which differ in the last bits.
  bool batch_invariant = false;
  /// Passes of few tokens, such as those that decode, are launched as one graph (CUDA's or HIP's) each instead of some
  /// hundreds of kernels. Graphs take a little device memory beside what Engine::plan counts; passes for which none can
  /// be made are launched as without. The results are the same bits.
  bool graphs = true;
  /// On NVIDIA GPUs from Hopper on, a kernel is started while the one before it still runs, so that it reads its first
  /// weights meanwhile (programmatic dependent launch). Without effect on others. The results are the same bits.
  bool dependent_launch = true;
  /// Passes of many tokens are multiplied by Hopper's own instructions (wgmma) where the GPU has them and the library
  /// was compiled for sm_90a; without, as on other GPUs. Results differ in the last bits. Not used if
  /// `batch_invariant`.
  bool warpgroups = true;
  /// A pass of one token, such as those that decode for one request, is one kernel that stays on the GPU and does all
  /// steps in turn, instead of some hundreds of kernels in a graph: what small models win by it is the gaps between
  /// these. For dense models whose weights and cache are on the GPU, with `graphs` and not `batch_invariant`; other
  /// passes are launched as without. The results are the same bits. Off, because no GPU has run it yet.
  bool persistent = false;
  /// Threads that bring weights into the form which the kernels read, while the model is loaded and no longer; 0: as
  /// many as EngineOptions::threads = 0 would take.
  int threads = 0;
  /// The host's threads, in place of own ones.
  Executor executor{};
  /// Gets the time that each step of every pass took on the GPU. Passes are then launched step by step, without graphs
  /// and `persistent`, and take longer: where the host launches more slowly than the GPU computes, a step's time is
  /// that of its launch. Costs nothing when empty. Results are the same bits.
  ProfileCallback on_profile{};
};

}  // namespace llminfer::inline v0
