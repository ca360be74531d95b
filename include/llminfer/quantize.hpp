// Quantizing checkpoints: any model that llminfer loads, to a file or directory that it and other tools read.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include <llminfer/backend.hpp>
#include <llminfer/config.hpp>
#include <llminfer/result.hpp>

namespace llminfer::inline v0 {

/// What is written.
enum class QuantizeFormat : std::uint8_t {
  gguf,   ///< one GGUF file
  dense,  ///< a Hugging Face directory with weights in F32, F16 or BF16
  gptq,   ///< a Hugging Face directory as AutoGPTQ and GPTQModel write it; asymmetric: version 2 of the format
  awq,    ///< a Hugging Face directory in AutoAWQ's GEMM layout: 4 bits, asymmetric
  compressed_tensors,  ///< a Hugging Face directory as llm-compressor writes it: pack-quantized, or int-quantized
                       ///< (W8A8)
};

/// How the numbers of linear layers are chosen. All but the first need calibration text.
enum class QuantizeMethod : std::uint8_t {
  round_to_nearest,
  gptq,         ///< second-order error compensation (Frantar et al. 2022, arXiv:2210.17323)
  awq,          ///< activation-aware scales and clipping (Lin et al. 2023, arXiv:2306.00978)
  smoothquant,  ///< outliers of inputs are moved into weights (Xiao et al. 2022, arXiv:2211.10438)
};

/// Setting weights to zero before the others are quantized.
enum class PruneMethod : std::uint8_t {
  none,
  magnitude,  ///< the smallest weights
  wanda,      ///< the smallest products of weight and input norm (Sun et al. 2023, arXiv:2306.11695); needs calibration
};

/// Which part is being worked on ("model.layers.3", "token_embd.weight"), and how much is done of the whole, 0 to 1.
/// Called on the calling thread. Returning false ends the work with Error{cancelled}; what is done stays for a next
/// run.
using QuantizeProgress = std::function<bool(std::string_view part, float fraction)>;

struct QuantizeOptions {
  QuantizeFormat format = QuantizeFormat::gguf;
  QuantizeMethod method = QuantizeMethod::round_to_nearest;

  /// gguf: the type of the file, as llama-quantize names it: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K,
  /// Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K, IQ4_NL, MXFP4_MOE (experts in MXFP4, as gpt-oss
  /// has them, all else in Q8_0). With calibration text, an importance matrix
  /// guides the search. Others: the type of what is not quantized: F32, F16, BF16; empty: the input's, or F16 where
  /// that is quantized.
  std::string type{};

  int bits = 4;           ///< gptq: 2, 3, 4, 8; compressed_tensors: 4, 8; awq: 4
  int group_size = 128;   ///< input features that share a scale; must divide those of every layer; -1: all of them
  bool symmetric = true;  ///< awq is always asymmetric
  /// gptq, awq, compressed_tensors: the matrix that gives logits is quantized, too (rounded, with GPTQ or with AWQ's
  /// clipping, but without the scales of AWQ and SmoothQuant), and pruned where the others are. One that is the
  /// embedding table becomes a matrix of its own. GGUF types say by themselves what it is.
  bool output_matrix = false;
  /// compressed_tensors: int8 weights with a scale per row, and inputs rounded to int8 per token when the model runs.
  bool int8_inputs = false;

  double damping = 0.01;          ///< gptq: share of the Hessian's mean diagonal that is added to it, above 0 to 1
  bool activation_order = false;  ///< gptq: columns in the order of their importance
  double smoothing = 0.5;         ///< smoothquant: how much of the inputs' range goes to the weights, 0 to 1

  PruneMethod prune = PruneMethod::none;
  double sparsity = 0.5;  ///< share of each row of weights that becomes zero, 0 to below 1
  int prune_n = 0;        ///< of each prune_m consecutive weights, prune_n become zero; 0: sparsity counts
  int prune_m = 0;        ///< 0, or above prune_n

  std::string calibration{};       ///< text like what the model will see
  int calibration_sequences = 64;  ///< pieces of the text at most, at least 1
  int calibration_length = 512;    ///< tokens of a piece, 8 up to the model's context

  int threads = 0;      ///< 0: as many as affinity, cgroup quota and physical cores allow
  Executor executor{};  ///< the host's threads; empty: own ones
  QuantizeProgress on_progress{};
};

struct QuantizeReport {
  std::int64_t parameters = 0;
  std::int64_t input_bytes = 0;      ///< of all tensors
  std::int64_t output_bytes = 0;     ///< likewise
  std::int64_t tensors = 0;          ///< of the output
  std::int64_t tensors_resumed = 0;  ///< of these, what an earlier run had written already
  double seconds = 0;
};

/// Reads the checkpoint at `input` (GGUF file or Hugging Face directory) and writes `output`: a file for gguf, else a
/// directory, which is made. Names, order of rotary pairs, settings and vocabulary are converted where input and output
/// are of different kinds; other files of a directory that belong to the model are copied, and those of a model that was
/// in the output before are removed.
///
/// The weights are read and written layer by layer. Until all is done, the weights lie in a file whose name ends in
/// ".partial", beside a ".journal"; the same call goes on where an earlier one ended.
///
/// Memory: the weights of a layer as floats, about twice, but of experts only one; where QuantizeOptions::output_matrix
/// is set, in its turn all of that matrix as floats (with GPTQ twice) and as codes, a byte or two for each; with
/// calibration also the inputs and outputs of the layer's parts for all tokens of the calibration.
///
/// Errors: those of opening a checkpoint; invalid_argument (an option, named; a group size that does not divide a
/// layer's inputs; calibration text that is missing or too short), unsupported (settings or a vocabulary that the
/// output's form cannot say; a value that the type cannot hold); for the output io_error, permission_denied, not_found
/// (its folder), not_a_file (something that is no regular file is where it is to be) and invalid_state (another run is
/// writing it); cancelled, callback_failed, out_of_memory.
LLMINFER_API Result<QuantizeReport> quantize_model(const std::string& input, const std::string& output,
                                                   const QuantizeOptions& options);

}  // namespace llminfer::inline v0
