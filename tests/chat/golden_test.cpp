// Every template of the golden file gives what Python's jinja2 gave, byte for byte, and fails where that failed.
#include <fstream>

#include <catch2/catch.hpp>

#include "chat/template.hpp"
#include "tests/chat/value_of.hpp"

using namespace llminfer;

TEST_CASE("templates render as jinja2 renders them", "[chat]") {
  std::ifstream file(LLMINFER_TEST_DATA "/chat/goldens.json");
  REQUIRE(file);
  const auto goldens = test::Context::parse(file);
  REQUIRE(goldens["cases"].size() > 900);
  for (const auto& golden : goldens["cases"]) {
    test::Context context = golden["context"].is_string() ? goldens["shared"] : golden["context"];
    context["__now"] = goldens["now"];
    const auto source = golden["template"].get<std::string>();
    INFO(golden.value("name", ""));
    INFO(source);
    const auto parsed = chat::Template::parse(source);
    const auto rendered = parsed ? parsed->render(test::value_of(context)) : Result<std::string>(parsed.error());
    if (golden.contains("expected")) {
      if (!rendered) {
        FAIL_CHECK(rendered.error().message);
        continue;
      }
      CHECK(*rendered == golden["expected"].get<std::string>());
    } else if (rendered) {
      FAIL_CHECK("jinja2 raises " << golden["kind"] << ", but this rendered " << *rendered);
    } else {
      const bool endless = golden["kind"] == "RecursionError";
      CHECK(rendered.error().code == (endless ? ErrorCode::limit_exceeded : ErrorCode::template_error));
      const auto message = golden["error"].get<std::string>();
      if (!message.empty()) CHECK(rendered.error().message == message);
    }
  }
}
