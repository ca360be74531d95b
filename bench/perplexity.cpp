// llminfer-perplexity: how well a checkpoint predicts a text, and how far its predictions are from those of another
// run, which is saved to a file first. Public API only.
//
// The text is cut into chunks of --ctx tokens, each computed by itself from an empty cache, the first token replaced by
// BOS where the model's tokenizer adds one. The second half of each chunk is scored, where every token has at least
// half a chunk before it. This is what llama.cpp's llama-perplexity does, so the figures can be put side by side.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <llminfer/llminfer.hpp>
#include <nlohmann/json.hpp>

#include "divergence.hpp"
#include "reference_file.hpp"

namespace {

struct Options {
  std::string model, text, save, reference;
  std::int32_t ctx = 512;
  std::int32_t chunks = 0;
  llminfer::EngineOptions engine;
  bool json = false;
};

void declare(CLI::App& app, Options& o) {
  app.add_option("-m,--model", o.model, "GGUF file or Hugging Face directory")->required();
  app.add_option("-f,--file", o.text, "the text, UTF-8")->required();
  app.add_option("-c,--ctx", o.ctx, "tokens of a chunk")->check(CLI::Range(4, 1 << 24))->capture_default_str();
  app.add_option("--chunks", o.chunks, "chunks at most; 0: all")->check(CLI::Range(0, 1 << 24));
  app.add_option("-t,--threads", o.engine.threads, "threads; 0: as many as are useful")->check(CLI::Range(0, 4096));
  app.add_option("--cpu-level", o.engine.cpu_level, "instruction set level of the CPU backend; default: the best");
  app.add_flag("--exact", o.engine.exact, "float arithmetic and an f32 cache; slow");
  app.add_option("--output-bits", o.engine.output_bits, "8: an output matrix in floats is rounded to Q8_0")
      ->check(CLI::IsMember({8, 16}))
      ->capture_default_str();
  app.add_option("--activation-bits", o.engine.activation_bits,
                 "bits of activations that meet quantized weights; 0: 16 for small models, 8 for others")
      ->check(CLI::IsMember({0, 8, 16}))
      ->capture_default_str();
  using llminfer::CacheType;
  static const std::map<std::string, CacheType> kCacheTypes = {{"f16", CacheType::f16},
                                                               {"bf16", CacheType::bf16},
                                                               {"f32", CacheType::f32},
                                                               {"int8", CacheType::int8},
                                                               {"int4", CacheType::int4}};
  app.add_option("-k,--cache-type", o.engine.cache_type, "how keys and values are cached: f16, bf16, f32, int8 or int4")
      ->transform(CLI::CheckedTransformer(kCacheTypes).description(""))
      ->default_str("f16");
  app.add_option("--save", o.save, "file for this run's predictions, to compare others with");
  app.add_option("--reference", o.reference, "file of an earlier --save: also print how far this run is from it");
  app.add_flag("--json", o.json, "print JSON");
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.good() && !file.eof()) throw std::runtime_error(path + ": cannot be read");
  return text;
}

/// The chunks' tokens one after the other.
std::vector<llminfer::Token> cut(const llminfer::Engine& engine, const Options& o) {
  auto tokens = engine.tokenizer().encode(read_text(o.text), {.add_special = true}).value();
  const auto ctx = static_cast<std::size_t>(o.ctx);
  std::size_t chunks = tokens.size() / ctx;
  if (o.chunks > 0) chunks = std::min(chunks, static_cast<std::size_t>(o.chunks));
  if (chunks == 0) {
    throw std::runtime_error(o.text + ": " + std::to_string(tokens.size()) + " tokens do not fill a chunk of " +
                             std::to_string(o.ctx) + " (--ctx)");
  }
  tokens.resize(chunks * ctx);
  const auto bos = engine.tokenizer().bos();
  if (bos && tokens[0] == *bos) {
    for (std::size_t i = 0; i < tokens.size(); i += ctx) tokens[i] = *bos;
  }
  return tokens;
}

nlohmann::json measure(const Options& o) {
  llminfer::EngineOptions options = o.engine;
  options.context_length = o.ctx;
  options.cache_tokens = o.ctx;
  options.max_sequences = 1;
  if (options.exact) options.cache_type = llminfer::CacheType::f32;
  const auto engine = llminfer::Engine::load(o.model, options).value();
  const auto vocab = static_cast<std::size_t>(engine.info().vocab_size);
  const auto tokens = cut(engine, o);
  const auto ctx = static_cast<std::size_t>(o.ctx);

  std::optional<bench::ReferenceReader> reference;
  std::optional<bench::ReferenceWriter> save;
  std::error_code ignored;
  if (std::filesystem::equivalent(o.reference, o.save, ignored)) {
    throw std::runtime_error(o.save + ": --save would replace the --reference");
  }
  if (!o.reference.empty()) reference.emplace(o.reference, vocab, o.ctx, tokens);
  if (!o.save.empty()) save.emplace(o.save, vocab, o.ctx, tokens);

  bench::Mean surprise;
  bench::Divergence divergence;
  std::vector<double> logprobs(vocab), wanted(vocab);
  std::exception_ptr failure;
  for (std::size_t begin = 0; begin < tokens.size(); begin += ctx) {
    llminfer::PrefillOptions prefill;
    prefill.on_logits = [&](std::int32_t position, std::span<const float> logits) {
      const auto at = static_cast<std::size_t>(position);
      if (at < ctx / 2 || at + 1 == ctx) return true;
      try {
        bench::log_softmax(logits, logprobs);
        const auto next = static_cast<std::size_t>(tokens[begin + at + 1]);
        surprise.add(-logprobs[next]);
        if (save) save->write(logprobs);
        if (reference) {
          reference->read(wanted);
          divergence.add(wanted, logprobs, next);
        }
      } catch (...) {
        failure = std::current_exception();
        return false;
      }
      return true;
    };
    auto session = engine.new_session().value();
    const auto done = session.prefill(std::span(tokens).subspan(begin, ctx), prefill);
    if (failure) std::rethrow_exception(failure);
    if (!done) throw llminfer::Exception(done.error());
    if (!o.json) {
      std::fprintf(stderr, "\rchunk %zu of %zu, perplexity %.4f ", begin / ctx + 1, tokens.size() / ctx,
                   std::exp(surprise.mean()));
    }
  }
  if (!o.json) std::fputc('\n', stderr);
  if (save) save->finish();

  nlohmann::json result;
  result["model"] = o.model;
  result["chunks"] = tokens.size() / ctx;
  result["scored_tokens"] = surprise.count();
  result["perplexity"] = std::exp(surprise.mean());
  // of exp(mean), to first order
  result["perplexity_error"] = std::exp(surprise.mean()) * surprise.standard_error();
  if (reference) {
    result["reference_perplexity"] = divergence.reference_perplexity();
    result["kl_mean"] = divergence.mean();
    result["kl_error"] = divergence.standard_error();
    result["kl_median"] = divergence.quantile(0.5);
    result["kl_99"] = divergence.quantile(0.99);
    result["kl_max"] = divergence.quantile(1);
    result["same_top"] = divergence.same_top();
  }
  return result;
}

void print(const nlohmann::json& r) {
  const auto number = [&](const char* name) { return r.at(name).get<double>(); };
  std::printf("perplexity        %.4f +- %.4f (%d tokens of %d chunks)\n", number("perplexity"),
              number("perplexity_error"), r.at("scored_tokens").get<int>(), r.at("chunks").get<int>());
  if (!r.contains("kl_mean")) return;
  std::printf("of the reference  %.4f\n", number("reference_perplexity"));
  std::printf("KL divergence     mean %.3g +- %.1g, median %.3g, 99%% %.3g, greatest %.3g\n", number("kl_mean"),
              number("kl_error"), number("kl_median"), number("kl_99"), number("kl_max"));
  std::printf("same top token    %.3f%%\n", 100 * number("same_top"));
}

}  // namespace

int main(int argc, char** argv) try {
  Options options;
  CLI::App app("Perplexity of a text, and the divergence from another run", "llminfer-perplexity");
  declare(app, options);
  CLI11_PARSE(app, argc, argv);
  const nlohmann::json result = measure(options);
  if (options.json) {
    std::cout << result.dump(2) << '\n';
  } else {
    print(result);
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "llminfer-perplexity: " << error.what() << '\n';
  return 1;
}
