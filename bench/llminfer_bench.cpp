// llminfer-bench: prefill, decode and batched decode rates of whole models, load time and peak memory. Takes the main
// flags of llama.cpp's llama-bench and prints its JSON, so that scripts can run the two in turn. Public API only.
#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>

#include "measure.hpp"
#include "profile.hpp"
#include "report.hpp"
#include "split_option.hpp"

namespace {

constexpr int kMost = 1 << 24;  ///< bound of every count

struct Options {
  std::vector<std::string> models;
  std::vector<int> threads = {0};
  std::vector<std::int32_t> prompts = {512};
  std::vector<std::int32_t> gens = {128};
  std::vector<std::int32_t> depths = {0};
  std::vector<std::int32_t> batch_tokens = {llminfer::EngineOptions{}.max_batch_tokens};
  std::vector<std::int32_t> parallel;
  std::int32_t prefix = 0;
  int repetitions = 5;
  std::string output = "md";
  std::string type_k = "f16", type_v = "f16", weight_cache, stream_folder;
  std::string cpu_level;
  std::string backend = "cpu", split;
  int resident = 100, resident_cache = 100;
  int device = 0;
  bool no_graphs = false;
  bool no_overlap = false;
  bool persistent = false;
  bool no_warpgroups = false;
  bool exact = false;
  int activation_bits = 0;
  int output_bits = 16;
  bool load_table = false;
  bool profile = false;
  bool no_warmup = false, no_lazy = false;
};

/// By name. llama-bench calls its 8-bit cache q8_0.
const std::map<std::string, llminfer::CacheType>& cache_types() {
  using llminfer::CacheType;
  static const std::map<std::string, CacheType> types = {
      {"f16", CacheType::f16},   {"f32", CacheType::f32},   {"bf16", CacheType::bf16}, {"int8", CacheType::int8},
      {"q8_0", CacheType::int8}, {"int4", CacheType::int4}, {"q4_0", CacheType::int4}, {"fp8", CacheType::fp8}};
  return types;
}

/// llama-bench has long names behind one dash, which CLI11 would read as a cluster of short flags.
std::vector<std::string> arguments(int argc, char** argv) {
  std::vector<std::string> args(argv + 1, argv + argc);
  for (std::string& arg : args) {
    if (arg == "-ctk") arg = "--cache-type-k";
    if (arg == "-ctv") arg = "--cache-type-v";
    if (arg == "-npl") arg = "--batch";
  }
  std::reverse(args.begin(), args.end());  // as CLI::App::parse wants them
  return args;
}

void declare(CLI::App& app, Options& o) {
  std::vector<std::string> names;
  for (const auto& [name, type] : cache_types()) names.push_back(name);
  const CLI::IsMember known_type(names);
  app.add_option("-m,--model", o.models, "GGUF file or Hugging Face directory (list)")->required()->delimiter(',');
  app.add_option("-t,--threads", o.threads, "threads (list); 0: as many as are useful")
      ->delimiter(',')
      ->check(CLI::Range(0, kMost));
  app.add_option("-p,--n-prompt", o.prompts, "prefill tests: tokens (list); 0: none")
      ->delimiter(',')
      ->check(CLI::Range(0, kMost))
      ->capture_default_str();
  app.add_option("-n,--n-gen", o.gens, "decode tests: tokens (list); 0: none")
      ->delimiter(',')
      ->check(CLI::Range(0, kMost))
      ->capture_default_str();
  app.add_option("-d,--n-depth", o.depths, "tokens in the KV cache before each test (list)")
      ->delimiter(',')
      ->check(CLI::Range(0, kMost))
      ->capture_default_str();
  app.add_option("-r,--repetitions", o.repetitions, "repetitions of each test")
      ->check(CLI::Range(1, kMost))
      ->capture_default_str();
  app.add_option("-o,--output", o.output, "format")
      ->check(CLI::IsMember({"md", "json", "jsonl", "csv"}))
      ->capture_default_str();
  app.add_option("-b,--batch-size", o.batch_tokens, "tokens of one forward pass at most (list)")
      ->delimiter(',')
      ->check(CLI::Range(1, kMost))
      ->capture_default_str();
  app.add_option("--cache-type-k", o.type_k, "type of cached keys; also -ctk; q8_0 is int8")
      ->check(known_type)
      ->capture_default_str();
  app.add_option("--cache-type-v", o.type_v, "type of cached values, the same as the keys'; also -ctv")
      ->check(known_type)
      ->capture_default_str();
  app.add_option("--batch", o.parallel,
                 "batched decode tests: sequences that decode together (list); the rate is their sum; also -npl")
      ->delimiter(',')
      ->check(CLI::Range(1, kMost));
  app.add_option("--prefix", o.prefix,
                 "prefill tests: first tokens that all prompts share; with EngineOptions::prefix_cache, else off")
      ->check(CLI::Range(0, kMost));
  app.add_option("--cpu-level", o.cpu_level, "instruction set level of the CPU backend; default: the best");
  app.add_option("--weight-cache", o.weight_cache, "folder for files of prepared weights");
  app.add_option("--backend", o.backend, "backend, of those that this build has")
      ->check(CLI::IsMember(backend_names()))
      ->capture_default_str();
  app.add_option("--device", o.device, "GPU by number")->check(CLI::Range(0, kMost))->capture_default_str();
  app.add_flag("--no-graphs", o.no_graphs, "launch each kernel by itself (GpuOptions::graphs)");
  app.add_flag("--no-overlap", o.no_overlap,
               "start each kernel when the one before it has ended (GpuOptions::dependent_launch)");
  app.add_flag("--persistent", o.persistent, "decode one sequence by one kernel per token (GpuOptions::persistent)");
  app.add_flag("--no-warpgroups", o.no_warpgroups, "multiply on Hopper as on other GPUs (GpuOptions::warpgroups)");
  app.add_option("--split", o.split, kSplitHelp);
  app.add_option("--stream-folder", o.stream_folder, kStreamFolderHelp);
  app.add_option("--resident", o.resident,
                 "percent of the weights that a GPU holds; the rest is streamed (LayerShare::stream)")
      ->check(CLI::Range(0, 100))
      ->excludes("--split")
      ->capture_default_str();
  app.add_option("--resident-cache", o.resident_cache,
                 "percent of the cache that a GPU holds; the rest lies in host memory (device_cache_tokens)")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_flag("--exact", o.exact, "float arithmetic throughout; slow");
  app.add_option("--activation-bits", o.activation_bits,
                 "bits of activations that meet quantized weights; 0: 16 for small models, 8 for others")
      ->check(CLI::IsMember({0, 8, 16}))
      ->capture_default_str();
  app.add_option("--output-bits", o.output_bits, "8: an output matrix in floats is rounded to Q8_0")
      ->check(CLI::IsMember({8, 16}))
      ->capture_default_str();
  app.add_flag(
      "--load", o.load_table,
      "add a table of load times and peak memory (the other formats always have them); with -p 0 -n 0 nothing else");
  app.add_flag("--no-lazy", o.no_lazy, "prepare all weights in the load");
  app.add_flag(
      "--profile", o.profile,
      "after each test a table of its steps: time, bytes, operations, and on the CPU their share of the machine's "
      "measured peaks; to standard error unless the format is md");
  app.add_flag("--no-warmup", o.no_warmup, "measure from the first run on");
}

std::vector<bench::Test> make_tests(const Options& o) {
  std::vector<bench::Test> tests;
  for (const std::int32_t depth : o.depths) {
    for (const std::int32_t n : o.prompts)
      if (n > 0) tests.push_back({n, 0, depth, 0, std::min(o.prefix, n)});
    for (const std::int32_t n : o.gens)
      if (n > 0) tests.push_back({0, n, depth, 0});
    for (const std::int32_t n : o.gens)
      for (const std::int32_t sequences : o.parallel)
        if (n > 0) tests.push_back({0, n, depth, sequences});
  }
  if (tests.empty() && o.load_table) tests.push_back({});
  return tests;
}

llminfer::EngineOptions engine_options(const Options& o, const std::vector<bench::Test>& tests, int threads,
                                       std::int32_t batch_tokens, const llminfer::ProfileCallback& on_profile) {
  llminfer::EngineOptions options;
  options.threads = threads;
  options.max_batch_tokens = batch_tokens;
  options.cpu_level = o.cpu_level;
  options.exact = o.exact;
  options.activation_bits = o.activation_bits;
  options.output_bits = o.output_bits;
  options.cache_type = cache_types().at(o.type_k);
  options.prefix_cache = o.prefix > 0;
  options.lazy_weights = !o.no_lazy;
  options.weight_cache = o.weight_cache;
  options.stream_folder = o.stream_folder;
  if (o.split.empty())
    options.custom_backend = backend_by_name(o.backend, {.device = o.device,
                                                         .graphs = !o.no_graphs,
                                                         .dependent_launch = !o.no_overlap,
                                                         .warpgroups = !o.no_warpgroups,
                                                         .persistent = o.persistent,
                                                         .on_profile = on_profile})
                                 .value();
  else
    options.split = parse_split(o.split).value();
  for (const bench::Test& test : tests) {
    const std::int32_t context = bench::context_tokens(test), sequences = std::max(test.n_parallel, 1);
    options.context_length = std::max(options.context_length, context);
    options.max_sequences = std::max(options.max_sequences, sequences);
    options.max_queue = std::max(options.max_queue, sequences);
    // 256: room for pages that are not full, and for a session beside the test.
    options.cache_tokens = std::max(options.cache_tokens, (context + std::int64_t{256}) * sequences);
  }
  if (o.resident_cache < 100) options.device_cache_tokens = options.cache_tokens * o.resident_cache / 100;
  return options;
}

/// A memory limit under which the backend holds so many percent of the weights.
void stream_rest(int percent, const std::string& model, llminfer::EngineOptions& options) {
  const llminfer::MemoryPlan plan = llminfer::Engine::plan(model, options).value();
  const std::int64_t limit = plan.total() - plan.weights / 100 * (100 - percent);
  options.split = {{std::exchange(options.custom_backend, nullptr), {}, limit, true}};
}

/// A CPU backend that reports every pass.
void profile_into(const llminfer::ProfileCallback& on_profile, const std::string& model,
                  llminfer::EngineOptions& options) {
  llminfer::BackendOptions backend;
  backend.threads = options.threads;
  backend.exact = options.exact;
  backend.activation_bits = options.activation_bits;
  if (backend.activation_bits == 0) {
    const llminfer::MemoryPlan plan = llminfer::Engine::plan(model, options).value();
    backend.activation_bits = llminfer::default_activation_bits(plan.parameters);
  }
  backend.cpu_level = options.cpu_level;
  backend.on_profile = on_profile;
  options.custom_backend = llminfer::make_cpu_backend(backend).value();
}

void bench_engine(const Options& o, const std::vector<bench::Test>& tests, const std::string& model, int threads,
                  std::int32_t batch_tokens, bench::Printer& printer) {
  bench::Profile profile;
  llminfer::ProfileCallback on_profile;
  if (o.profile) on_profile = [&profile](const llminfer::PassProfile& pass) { profile.add(pass); };
  const auto begin = std::chrono::steady_clock::now();
  llminfer::EngineOptions options = engine_options(o, tests, threads, batch_tokens, on_profile);
  if (o.profile && o.backend == "cpu") profile_into(on_profile, model, options);
  if (o.resident < 100) stream_rest(o.resident, model, options);
  const bench::Loaded loaded = bench::load(model, options, begin);
  // A process that loads and ends is timed as a whole by others: it does nothing else.
  const std::int64_t model_bytes = tests.front().empty() ? 0 : llminfer::Engine::plan(model, options).value().file;
  while (!tests.front().empty() && loaded.engine.stats().pending_weights > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::mt19937 random(1);
  bench::Filled filled;
  for (const bench::Test& test : tests) {
    bench::Record record;
    record.test_time = bench::utc_now();
    // A decode test's other passes are those that prefill its sequences.
    const std::int32_t rows = test.n_gen > 0 ? std::max(test.n_parallel, 1) : 0;
    if (!test.empty()) {
      record.samples =
          bench::run(loaded.engine, filled, test, o.repetitions, !o.no_warmup, random, [&] { profile.reset(rows); });
    }
    record.test = test;
    record.model_filename = model;
    record.info = loaded.engine.info();
    record.stats = loaded.engine.stats();
    record.model_bytes = model_bytes;
    record.threads = threads;
    record.batch_tokens = batch_tokens;
    record.cache_type = o.type_k;
    record.cpu_level = o.cpu_level;
    record.exact = o.exact;
    record.activation_bits =
        o.activation_bits ? o.activation_bits : llminfer::default_activation_bits(record.info.parameters);
    record.output_bits = o.output_bits;
    record.load_ms = loaded.load_ms;
    record.first_token_ms = loaded.first_token_ms;
    record.peak_rss_bytes = bench::peak_rss_bytes();
    printer.record(record);
    if (o.profile) profile.print(o.output == "md" ? std::cout : std::cerr, model + ", " + test.label());
  }
}

}  // namespace

int main(int argc, char** argv) try {
  Options options;
  CLI::App app("Measures llminfer on whole models, in the manner of llama-bench", "llminfer-bench");
  declare(app, options);
  try {
    app.parse(arguments(argc, argv));
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  if (options.type_k != options.type_v) {
    std::cerr << "llminfer-bench: keys and values are cached in one type: give -ctk and -ctv the same\n";
    return 1;
  }
  if (options.profile && !options.split.empty()) {
    std::cerr << "llminfer-bench: --profile measures one backend\n";
    return 1;
  }
  const auto tests = make_tests(options);
  if (tests.empty()) {
    std::cerr << "llminfer-bench: nothing to measure: -p and -n are both 0, without --load\n";
    return 1;
  }
  const auto printer = bench::make_printer(options.output, std::cout, options.load_table);
  printer->begin();
  for (const std::string& model : options.models)
    for (const int threads : options.threads)
      for (const std::int32_t batch_tokens : options.batch_tokens)
        bench_engine(options, tests, model, threads, batch_tokens, *printer);
  printer->end();
  return 0;
} catch (const std::exception& error) {
  std::cerr << "llminfer-bench: " << error.what() << '\n';
  return 1;
}
