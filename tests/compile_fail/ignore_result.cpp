// A Result that nobody looks at.
#include <llminfer/engine.hpp>

void load() {
#if defined(LLMINFER_MUST_FAIL)
  llminfer::Engine::load("model.gguf");
#else
  if (!llminfer::Engine::load("model.gguf")) return;
#endif
}
