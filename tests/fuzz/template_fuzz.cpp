// libFuzzer: a chat template of any bytes parses and renders, or fails with an error, within its limits.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "chat/template.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace llminfer;
  static const chat::Value context = core::parse_json(R"({"messages": [{"role": "user", "content": "Hé"},
    {"role": "assistant", "content": [{"type": "text", "text": "x"}]}], "tools": [{"name": "f", "n": [1, -2.5, null, true]}],
    "add_generation_prompt": true, "bos_token": "<s>", "__now": 1700000000})",
                                                      "context")
                                         .value();
  chat::TemplateLimits limits;
  limits.steps = 100'000;
  limits.output_bytes = 1 << 16;
  const auto parsed = chat::Template::parse({reinterpret_cast<const char*>(data), size}, limits);
  if (parsed) (void)parsed->render(context);
  return 0;
}
