// Version, export macro and namespace of the public API. Standard library only.
#pragma once

#define LLMINFER_VERSION_MAJOR 0
#define LLMINFER_VERSION_MINOR 1
#define LLMINFER_VERSION_PATCH 0

#if defined(LLMINFER_SHARED) && (defined(__GNUC__) || defined(__clang__))
#define LLMINFER_API __attribute__((visibility("default")))
#else
#define LLMINFER_API
#endif

namespace llminfer::inline v0 {

/// The version of the library that was linked, e.g. "0.1.0" (the macros give that of the headers).
LLMINFER_API const char* version() noexcept;

}  // namespace llminfer::inline v0
