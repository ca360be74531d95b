// The other translation unit: it includes the same headers, and describes a program and reads a weight with them.
#include <llminfer/backend.hpp>
#include <llminfer/llminfer.hpp>
#include <llminfer/program.hpp>

using namespace llminfer;

bool second_translation_unit() {
  Builder builder("consumer");
  const ValueId embedded = builder.embed(builder.weight("table", 16, 8), "embedded");
  const ValueId normed = builder.rms_norm(embedded, builder.vector("norm", 8), 1e-5f, "normed");
  const ValueId logits = builder.linear(normed, builder.weight("table", 16, 8), "logits");
  const Result<Program> program = std::move(builder).finish(normed, logits);
  if (!program || program->parameter_count() != 16 * 8 + 8) return false;

  const float stored[] = {1.0f, -2.0f, 0.5f, 4.0f};
  WeightView view;
  view.name = "stored";
  view.rows = 2;
  view.cols = 2;
  view.data = std::as_bytes(std::span(stored));
  float row[2] = {};
  if (!unpack_rows(view, 1, 1, row) || row[0] != 0.5f || row[1] != 4.0f) return false;

  const Result<Engine> engine = Engine::load("no-such-model.gguf");
  return !engine && engine.error().code == ErrorCode::not_found &&
         engine.error().message.find("no-such-model.gguf") != std::string::npos;
}
