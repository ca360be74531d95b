// Options whose values have names.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>

/// For transform(): a name becomes its value. CLI11's own transformers show the values too, as characters.
template <class Enum>
CLI::Validator by_name(const std::map<std::string, Enum>& values) {
  std::string names;
  for (const auto& [name, value] : values) names += (names.empty() ? "" : ", ") + name;
  const auto transform = [values, names](std::string& input) {
    const auto found = values.find(input);
    if (found == values.end()) return "\"" + input + "\" is none of: " + names;
    input = std::to_string(static_cast<int>(found->second));
    return std::string();
  };
  return CLI::Validator(transform, names, "by_name");
}
