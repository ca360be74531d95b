// The functions of NCCL that collectives need, found when the program runs; RCCL has the same. Declared here, so that
// neither is needed to build. Knows nothing of devices.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include <llminfer/result.hpp>

namespace llminfer::gpu {

/// What NCCL's nccl.h declares, as of version 2.14, whose communicators can be made, used and ended without waiting.
struct Nccl {
  enum Status : int { success = 0, in_progress = 7 };
  static constexpr int kFloat = 7, kSum = 0;  ///< ncclFloat32, ncclSum
  static constexpr int kVersion = 21400;
  struct Id {
    char bytes[128];
  };
  struct Config {
    std::size_t size = sizeof(Config);  ///< a library that knows more options takes its defaults for them
    unsigned magic = 0xcafebeef;
    unsigned version = kVersion;
    int blocking = 0;
  };
  using Communicator = void*;

  /// Errors: not_found (no such library), unsupported (one that is too old or has not all the functions).
  static Result<std::shared_ptr<const Nccl>> load(const std::string& file);

  std::string name;  ///< "NCCL 2.28.9"
  int (*get_version)(int* version) = nullptr;
  int (*get_unique_id)(Id* id) = nullptr;
  int (*init_rank)(Communicator* communicator, int ranks, Id id, int rank, Config* config) = nullptr;
  int (*abort)(Communicator communicator) = nullptr;
  int (*async_error)(Communicator communicator, int* error) = nullptr;
  int (*all_reduce)(const void* in, void* out, std::size_t count, int type, int operation, Communicator communicator,
                    void* stream) = nullptr;
  const char* (*error_string)(int error) = nullptr;
};

}  // namespace llminfer::gpu
