// Models of which two of four weights are zero, in 8 bits: smaller in memory, with the bits of dense weights.
#include <catch2/catch.hpp>
#include <string>

#include <llminfer/quantize.hpp>

#include "backends/cpu/linear.hpp"
#include "tests/engine/divergence.hpp"
#include "tests/engine/program_runner.hpp"
#include "tests/forwarding.hpp"
#include "tests/load/temp_dir.hpp"

namespace {

using namespace llminfer;

std::shared_ptr<Backend> cpu_backend() {
  BackendOptions options;
  options.threads = 2;
  return make_cpu_backend(options).value();
}

/// Packs all weights as dense ones, and counts the others.
class DenseBackend final : public test::ForwardingBackend {
 public:
  DenseBackend() : ForwardingBackend(cpu_backend()) {}
  Result<std::unique_ptr<PreparedWeight>> prepare(const WeightView& weight) override {
    auto prepared = ForwardingBackend::prepare(weight).value();
    const auto* const packed = dynamic_cast<const cpu::PackedWeight*>(prepared.get());
    if (!packed) return prepared;
    auto dense = cpu::PackedWeight::allocate(weight.type, weight.rows, weight.cols, weight.details).value();
    if (packed->bytes() == dense->bytes()) return prepared;
    sparse += 1;
    CHECK(packed->bytes() * 100 < dense->bytes() * 65);
    dense->pack_panels(weight, 0, dense->panels());
    return std::unique_ptr<PreparedWeight>(std::move(dense));
  }
  int sparse = 0;
};

}  // namespace

TEST_CASE("Pruned models in 8 bits: sparse weights, logits of dense ones") {
  const test::TempDir temp;
  QuantizeOptions options;
  options.prune = PruneMethod::magnitude;
  options.prune_n = 2;
  options.prune_m = 4;
  options.threads = 2;
  const bool gguf = GENERATE(true, false);
  if (gguf) {
    options.type = "Q8_0";
  } else {
    options.format = QuantizeFormat::compressed_tensors;
    options.bits = 8;
  }
  const std::string path = temp / (gguf ? "pruned.gguf" : "w8a16");
  quantize_model(LLMINFER_TEST_DATA "/models/tiny-bf16", path, options).value();

  const auto dense_backend = std::make_shared<DenseBackend>();
  test::ProgramRunner sparse(path, cpu_backend()), dense(path, dense_backend), exact(path);
  CHECK(dense_backend->sparse == 21);  // of three layers
  const std::vector<std::int32_t> prompt{1, 5, 9, 2, 6, 3, 8, 4, 7, 11, 13, 12, 10, 20, 18, 16, 14, 30, 40, 50};
  for (const auto& tokens : std::vector<std::vector<std::int32_t>>{prompt, {21}, {22, 23, 24}}) {
    const std::vector<float> logits = sparse.forward(tokens);
    CHECK(logits == dense.forward(tokens));
    CHECK(test::divergence(exact.forward(tokens), logits) < 3e-3);
  }
}
