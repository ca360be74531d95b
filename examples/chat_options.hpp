// The command line of llminfer-chat. Knows nothing of terminals or conversations.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <llminfer/llminfer.hpp>

/// What the command line says. A sampling option that is not given leaves the model's own value.
struct ChatCommand {
  std::string model;
  std::string system;
  std::optional<std::string> prompt;  ///< one answer, then exit
  bool stats = false;

  int threads = 0;
  std::string backend = "cpu";
  std::string split;  ///< as parse_split() takes it
  bool mpi = false;
  int tensor_parallel = 1;
  bool plan = false;
  std::string cpu_level;
  std::int32_t context = 0;
  std::int64_t device_cache_tokens = 0;
  std::string cache_folder;
  std::string stream_folder;
  llminfer::CacheType cache_type = llminfer::CacheType::f16;
  std::string weight_cache;
  int activation_bits = 0;
  int output_bits = 16;

  bool greedy = false;
  std::optional<float> temperature, top_p, min_p, typical, xtc_probability, xtc_threshold;
  std::optional<float> repeat_penalty, presence_penalty, frequency_penalty, dry_multiplier, mirostat_tau;
  std::optional<std::int32_t> top_k;
  std::optional<std::uint64_t> seed;
  std::int32_t max_tokens = 0;
  std::vector<std::string> stop;
};

/// Parses the command line. Empty if the program should end now with `exit_code`: help was asked for, or an error was
/// printed.
std::optional<ChatCommand> parse_command(int argc, char** argv, int& exit_code);

/// Errors: those of --split and of the backends.
llminfer::Result<llminfer::EngineOptions> engine_options(const ChatCommand& command);

/// The command line's sampling on top of what the model's makers recommend, and on top of sensible values where they
/// recommend nothing. Without --seed the seed is random.
llminfer::GenerateOptions generate_options(const ChatCommand& command, const llminfer::SamplingOptions& recommended);
