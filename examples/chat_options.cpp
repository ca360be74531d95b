// The command line of llminfer-chat.
#include "chat_options.hpp"

#include <map>
#include <random>

#include <CLI/CLI.hpp>

#ifdef LLMINFER_HAS_MPI
#include <llminfer/mpi.hpp>
#endif

#include "names.hpp"
#include "split_option.hpp"

namespace {

const std::map<std::string, llminfer::CacheType> kCacheTypes = {
    {"f16", llminfer::CacheType::f16},   {"bf16", llminfer::CacheType::bf16}, {"int8", llminfer::CacheType::int8},
    {"int4", llminfer::CacheType::int4}, {"fp8", llminfer::CacheType::fp8},   {"f32", llminfer::CacheType::f32}};

}  // namespace

std::optional<ChatCommand> parse_command(int argc, char** argv, int& exit_code) {
  ChatCommand command;
  CLI::App app("Chats with a language model. Ctrl-C stops an answer; /reset begins anew, /exit leaves.",
               "llminfer-chat");
  app.option_defaults()->take_last();  // of an option given twice the last counts, so that a script's defaults give way
  app.set_version_flag("--version", std::string(llminfer::version()));
  app.add_option("-m,--model", command.model, "GGUF file or Hugging Face directory")->required();
  app.add_option("-p,--prompt", command.prompt, "Answer this one message and exit");
  app.add_option("--system", command.system, "System message");
  app.add_flag("--stats", command.stats, "Print speed and memory after each answer");

  const std::string engine = "Engine";
  app.add_option("-t,--threads", command.threads, "CPU threads; 0: as the machine allows")->group(engine);
  app.add_option("--backend", command.backend, "Backend by name")
      ->check(CLI::IsMember(backend_names()))
      ->capture_default_str()
      ->group(engine);
  app.add_option("--split", command.split, kSplitHelp)->group(engine);
  app.add_option("--stream-folder", command.stream_folder, kStreamFolderHelp)->group(engine);
#ifdef LLMINFER_HAS_MPI
  app.add_flag("--mpi", command.mpi, "The processes that mpirun has started share the layers")->group(engine);
  app.add_option("--tensor-parallel", command.tensor_parallel, "With --mpi: so many processes share each layer")
      ->capture_default_str()
      ->group(engine);
#endif
  app.add_flag("--plan", command.plan, "Print what the model would take in memory, and where, and exit")->group(engine);
  app.add_option("--cpu-level", command.cpu_level,
                 "Force an instruction set level: scalar, avx2, avxvnni, avx512, avx512vnni, avx512bf16, amx, neon, "
                 "neon_dotprod, neon_i8mm")
      ->group(engine);
  app.add_option("-c,--ctx", command.context, "Context length in tokens; 0: the model's own limit")->group(engine);
  app.add_option("--device-cache", command.device_cache_tokens,
                 "Tokens of the cache that a GPU has room for; the others lie in host memory. 0: all")
      ->group(engine);
  app.add_option("--cache-folder", command.cache_folder,
                 "Folder for temporary files, which have the cache in place of memory")
      ->group(engine);
  app.add_option(
         "--cache-type", command.cache_type,
         "How keys and values are cached; int8 and (on GPUs) fp8 take half the memory of f16, int4 about a third")
      ->transform(by_name(kCacheTypes))
      ->default_str("f16")
      ->group(engine);
  app.add_option("--weight-cache", command.weight_cache, "Folder for files of prepared weights, which later starts map")
      ->group(engine);
  app.add_option(
         "--activation-bits", command.activation_bits,
         "Bits of activations that meet quantized weights: 16, or 8: long prompts are read faster, less exactly. 0: 16 "
         "for small models, 8 for others")
      ->check(CLI::IsMember({0, 8, 16}))
      ->capture_default_str()
      ->group(engine);
  app.add_option("--output-bits", command.output_bits,
                 "8: an output matrix that the model has in floats is rounded, which makes answers faster")
      ->check(CLI::IsMember({8, 16}))
      ->capture_default_str()
      ->group(engine);

  const std::string sampling = "Sampling (default: what the model's makers recommend, else temperature 0.7)";
  app.add_flag("--greedy", command.greedy, "Always the most likely token; the same as --temp 0")->group(sampling);
  app.add_option("--temp", command.temperature, "Temperature")->group(sampling);
  app.add_option("--top-k", command.top_k, "Keep the K best tokens; 0: off")->group(sampling);
  app.add_option("--top-p", command.top_p, "Nucleus sampling; 1: off")->group(sampling);
  app.add_option("--min-p", command.min_p, "Least share of the best token's probability; 0: off")->group(sampling);
  app.add_option("--typical", command.typical, "Locally typical sampling; 1: off")->group(sampling);
  app.add_option("--xtc-probability", command.xtc_probability, "Chance to exclude top choices; 0: off")
      ->group(sampling);
  app.add_option("--xtc-threshold", command.xtc_threshold, "Least probability of a top choice")->group(sampling);
  app.add_option("--repeat-penalty", command.repeat_penalty, "Repetition penalty; 1: off")->group(sampling);
  app.add_option("--presence-penalty", command.presence_penalty, "Presence penalty; 0: off")->group(sampling);
  app.add_option("--frequency-penalty", command.frequency_penalty, "Frequency penalty; 0: off")->group(sampling);
  app.add_option("--dry-multiplier", command.dry_multiplier, "DRY: penalty on prolonged repetitions; 0: off")
      ->group(sampling);
  app.add_option("--mirostat-tau", command.mirostat_tau, "Mirostat 2: target surprise; 0: off")->group(sampling);
  app.add_option("--seed", command.seed, "Random seed; the same seed gives the same text")->group(sampling);
  app.add_option("-n,--max-tokens", command.max_tokens, "Longest answer in tokens; 0: no limit")->group(sampling);
  app.add_option("--stop", command.stop, "Text that ends an answer; may be given more than once")
      ->allow_extra_args(false)
      ->take_all()
      ->group(sampling);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    exit_code = app.exit(error);
    return std::nullopt;
  }
  return command;
}

llminfer::Result<llminfer::EngineOptions> engine_options(const ChatCommand& command) {
  llminfer::EngineOptions options;
  if (command.split.empty()) {
    auto backend = backend_by_name(command.backend, {});
    if (!backend) return std::move(backend).error();
    options.custom_backend = std::move(*backend);
  } else {
    auto split = parse_split(command.split);
    if (!split) return std::move(split).error();
    options.split = std::move(*split);
  }
#ifdef LLMINFER_HAS_MPI
  if (command.mpi) {
    auto communicator = llminfer::make_mpi_communicator();
    if (!communicator) return std::move(communicator).error();
    options.communicator = std::move(*communicator);
    options.tensor_parallel = command.tensor_parallel;
  }
#endif
  options.threads = command.threads;
  options.cpu_level = command.cpu_level;
  options.context_length = command.context;
  options.device_cache_tokens = command.device_cache_tokens;
  options.cache_folder = command.cache_folder;
  options.stream_folder = command.stream_folder;
  options.cache_type = command.cache_type;
  options.weight_cache = command.weight_cache;
  options.activation_bits = command.activation_bits;
  options.output_bits = command.output_bits;
  return options;
}

llminfer::GenerateOptions generate_options(const ChatCommand& command, const llminfer::SamplingOptions& recommended) {
  llminfer::GenerateOptions options;
  options.max_tokens = command.max_tokens;
  options.stop = command.stop;
  llminfer::SamplingOptions& sampling = options.sampling;
  sampling = recommended;
  if (sampling.temperature == 0.0f) {  // the makers recommend nothing
    sampling.temperature = 0.7f;
    if (sampling.top_k == 0 && sampling.top_p == 1.0f) sampling.top_p = 0.95f;
  }
  const auto set = [](auto& value, const auto& given) {
    if (given) value = *given;
  };
  set(sampling.temperature, command.temperature);
  set(sampling.top_k, command.top_k);
  set(sampling.top_p, command.top_p);
  set(sampling.min_p, command.min_p);
  set(sampling.typical_p, command.typical);
  set(sampling.xtc_probability, command.xtc_probability);
  set(sampling.xtc_threshold, command.xtc_threshold);
  set(sampling.repetition_penalty, command.repeat_penalty);
  set(sampling.presence_penalty, command.presence_penalty);
  set(sampling.frequency_penalty, command.frequency_penalty);
  set(sampling.dry_multiplier, command.dry_multiplier);
  set(sampling.mirostat_tau, command.mirostat_tau);
  if (command.greedy) {
    sampling.temperature = 0.0f;
    sampling.mirostat_tau = 0.0f;
  }
  sampling.seed = command.seed ? *command.seed : std::random_device()();
  return options;
}
