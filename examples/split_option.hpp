// The value of --split in the example programs: which backends share a model's layers. Also llminfer-bench's backends
// by name.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <llminfer/gpu.hpp>
#include <llminfer/llminfer.hpp>

/// "cpu" and the GPU backends of this build.
std::vector<std::string> backend_names();

/// Null for "cpu", which the engine makes itself. Errors: not_found, and those of the backend.
llminfer::Result<std::shared_ptr<llminfer::Backend>> backend_by_name(const std::string& name,
                                                                     const llminfer::GpuOptions& options);

inline constexpr const char* kSplitHelp =
    "Backends that share the layers, first layers first: NAME[:AMOUNT][:stream[=LIMIT]],…, where a GPU's name may end "
    "in its number and AMOUNT is a number of layers, or a limit such as 8GiB or 500MiB; one without gets the rest. "
    "\"cpu,cuda0:8GiB\" puts as many of the last layers on the GPU as 8 GiB hold; \"cuda0:8GiB:stream\" computes all "
    "on the GPU, and copies what 8 GiB do not hold there in each pass; of that \"cuda0:8GiB:stream=20GiB\" keeps 20 "
    "GiB in memory and the rest in --stream-folder";
inline constexpr const char* kStreamFolderHelp =
    "Folder for temporary files, which have the streamed weights in place of memory";

/// EngineOptions::split of such a text. Errors: invalid_argument, not_found, and those of the backends.
llminfer::Result<std::vector<llminfer::LayerShare>> parse_split(const std::string& text);
