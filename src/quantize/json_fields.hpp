// A JSON object made member by member. (Not of nested initializer lists: see HACKING.md on gcc 12.)
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "core/json.hpp"

namespace llminfer::quantize {

class Fields {
 public:
  Fields& add(std::string key, core::Json value) {
    object_.emplace_back(std::move(key), std::move(value));
    return *this;
  }
  Fields& add(std::string key, const char* value) { return add(std::move(key), core::Json(value)); }
  Fields& add(std::string key, std::int64_t value) { return add(std::move(key), core::Json(value)); }
  Fields& add(std::string key, int value) { return add(std::move(key), core::Json(std::int64_t{value})); }
  Fields& add(std::string key, bool value) { return add(std::move(key), core::Json(value)); }
  Fields& add(std::string key, double value) { return add(std::move(key), core::Json(value)); }
  Fields& add_null(std::string key) { return add(std::move(key), core::Json()); }
  core::Json json() { return core::Json(std::move(object_)); }

 private:
  core::Json::Object object_;
};

inline core::Json list_of(core::Json item) {
  core::Json::Array list;
  list.push_back(std::move(item));
  return list;
}

}  // namespace llminfer::quantize
