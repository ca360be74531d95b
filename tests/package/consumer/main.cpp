// A host program of two translation units that both include the whole public API. Built with and without exceptions and
// RTTI. Exit status 0: all went well.
#include <cstdio>
#include <cstring>

#include <llminfer/backend.hpp>
#include <llminfer/llminfer.hpp>
#include <llminfer/program.hpp>

bool second_translation_unit();

namespace {

bool fail(const char* what, const llminfer::Error& error) {
  std::fprintf(stderr, "%s: %s\n", what, error.message.c_str());
  return false;
}

/// The headers are those of the library that was linked.
bool same_version() {
  char headers[32];
  std::snprintf(headers, sizeof headers, "%d.%d.%d", LLMINFER_VERSION_MAJOR, LLMINFER_VERSION_MINOR, LLMINFER_VERSION_PATCH);
  std::printf("llminfer %s\n", llminfer::version());
  return std::strcmp(headers, llminfer::version()) == 0;
}

/// Errors come as values, with their message, in every kind of host.
bool errors_are_values() {
  llminfer::BackendOptions options;
  options.cpu_level = "abacus";
  const auto backend = llminfer::make_cpu_backend(options);
  return !backend && backend.error().code == llminfer::ErrorCode::invalid_argument &&
         backend.error().message.find("abacus") != std::string::npos;
}

#if defined(__cpp_exceptions)
/// value() throws in the host, and the host catches it by its type.
bool value_throws() {
  llminfer::BackendOptions options;
  options.cpu_level = "abacus";
  try {
    (void)llminfer::make_cpu_backend(options).value();
  } catch (const llminfer::Exception& exception) {
    return exception.code() == llminfer::ErrorCode::invalid_argument;
  }
  return false;
}
#else
bool value_throws() { return true; }
#endif

bool backend_works() {
  llminfer::BackendOptions options;
  options.threads = 1;
  const auto backend = llminfer::make_cpu_backend(options);
  if (!backend) return fail("make_cpu_backend", backend.error());
  return (*backend)->name() == "cpu" && !llminfer::cpu_levels().empty();
}

}  // namespace

int main() {
  if (!same_version()) return 1;
  if (!errors_are_values()) return 2;
  if (!value_throws()) return 3;
  if (!backend_works()) return 4;
  if (!second_translation_unit()) return 5;
  return 0;
}
