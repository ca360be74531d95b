#include "backends/gpu/nccl.hpp"

#include <dlfcn.h>

#include "core/error.hpp"

namespace llminfer::gpu {

using core::fail;

Result<std::shared_ptr<const Nccl>> Nccl::load(const std::string& file) {
  // It stays in the process, as do the threads that it starts; loading it again finds the same.
  void* const library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) {
    const char* const why = ::dlerror();
    return fail(ErrorCode::not_found, why ? why : file);
  }
  auto made = std::make_shared<Nccl>();
  const auto find = [&](const char* symbol, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, symbol));
    return function != nullptr;
  };
  const bool whole = find("ncclGetVersion", made->get_version) && find("ncclGetUniqueId", made->get_unique_id) &&
                     find("ncclCommInitRankConfig", made->init_rank) && find("ncclCommAbort", made->abort) &&
                     find("ncclCommGetAsyncError", made->async_error) && find("ncclAllReduce", made->all_reduce) &&
                     find("ncclGetErrorString", made->error_string);
  int version = 0;
  const bool known = whole && made->get_version(&version) == success;
  ::dlclose(library);
  if (!known || version < kVersion) {
    return fail(ErrorCode::unsupported, file, " is not NCCL 2.14 or later, or RCCL of that interface");
  }
  std::ostringstream name;
  name << (file.find("rccl") == std::string::npos ? "NCCL " : "RCCL ") << version / 10000 << '.' << version / 100 % 100
       << '.' << version % 100;
  made->name = name.str();
  return std::shared_ptr<const Nccl>(std::move(made));
}

}  // namespace llminfer::gpu
