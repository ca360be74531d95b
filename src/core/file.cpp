#include "core/file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

#include "core/error.hpp"

namespace llminfer::core {
namespace {

ErrorCode code_of_errno(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return ErrorCode::not_found;
    case EACCES:
    case EPERM:
      return ErrorCode::permission_denied;
    case ENOMEM:
      return ErrorCode::out_of_memory;
    default:
      return ErrorCode::io_error;
  }
}

Error errno_error(const std::string& path, const char* action, int error) {
  return fail(code_of_errno(error), path, ": ", action, ": ", std::generic_category().message(error));
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const noexcept { return fd_; }
  /// Whether it could be closed, and with that written.
  bool close() { return ::close(std::exchange(fd_, -1)) == 0; }

 private:
  int fd_;
};

struct OpenFile {
  FileDescriptor fd;
  std::uint64_t size, modified;
};

class MappedFile final : public ByteSource {
 public:
  MappedFile(std::string name, std::shared_ptr<const void> mapping, std::uint64_t size, std::uint64_t modified)
      : ByteSource(std::move(name), size, modified), mapping_(std::move(mapping)) {}

  Result<Bytes> read(std::uint64_t offset, std::uint64_t count) const override {
    LLMINFER_TRY(check_range(offset, count));
    return Bytes{{static_cast<const std::byte*>(mapping_.get()) + offset, count}, mapping_};
  }
  bool resident() const noexcept override { return true; }
  void release(std::uint64_t offset, std::uint64_t count) const noexcept override {
    // Whole pages only. They stay in the system's file cache; the mapping is read-only, so nothing is lost.
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    const std::uint64_t begin = (offset + page - 1) / page * page, end = (offset + count) / page * page;
    if (begin >= end) return;
    (void)::madvise(static_cast<char*>(const_cast<void*>(mapping_.get())) + begin, end - begin, MADV_DONTNEED);
  }

 private:
  std::shared_ptr<const void> mapping_;
};

Result<void> read_all(const std::string& path, int fd, std::uint64_t offset, std::span<std::byte> out) {
  for (std::size_t done = 0; done < out.size();) {
    const ssize_t n = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(path, "read", errno);
    if (n == 0) return fail(ErrorCode::truncated, path, ": the file was shortened while it was read");
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<void> write_all(const std::string& path, int fd, std::uint64_t offset, std::span<const std::byte> data) {
  for (std::size_t done = 0; done < data.size();) {
    const ssize_t n = ::pwrite(fd, data.data() + done, data.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(path, "write", errno);
    done += static_cast<std::size_t>(n);
  }
  return {};
}

class UnmappedFile final : public ByteSource {
 public:
  UnmappedFile(std::string name, OpenFile file)
      : ByteSource(std::move(name), file.size, file.modified), fd_(std::move(file.fd)) {}

  Result<Bytes> read(std::uint64_t offset, std::uint64_t count) const override {
    LLMINFER_TRY(check_range(offset, count));
    const auto buffer = std::make_shared_for_overwrite<std::byte[]>(count);
    LLMINFER_TRY(read_all(name(), fd_.get(), offset, {buffer.get(), count}));
    return Bytes{{buffer.get(), count}, buffer};
  }
  bool resident() const noexcept override { return false; }

 private:
  FileDescriptor fd_;
};

class MemorySource final : public ByteSource {
 public:
  MemorySource(std::string name, std::span<const std::byte> data, std::shared_ptr<const void> keep)
      : ByteSource(std::move(name), data.size()), data_(data), keep_(std::move(keep)) {}
  Result<Bytes> read(std::uint64_t offset, std::uint64_t count) const override {
    LLMINFER_TRY(check_range(offset, count));
    return Bytes{data_.subspan(offset, count), keep_};
  }
  bool resident() const noexcept override { return true; }

 private:
  std::span<const std::byte> data_;
  std::shared_ptr<const void> keep_;
};

class ReaderSource final : public ByteSource {
 public:
  ReaderSource(std::string name, std::uint64_t size, std::function<bool(std::uint64_t, std::span<std::byte>)> read)
      : ByteSource(std::move(name), size), read_(std::move(read)) {}
  Result<Bytes> read(std::uint64_t offset, std::uint64_t count) const override {
    LLMINFER_TRY(check_range(offset, count));
    auto buffer = std::make_shared<std::vector<std::byte>>(count);
    const std::lock_guard lock(mutex_);
    bool done = false;
    try {
      done = read_(offset, *buffer);
    } catch (...) {
      return fail(ErrorCode::callback_failed, name(), ": the host's reader threw");
    }
    if (!done) return fail(ErrorCode::io_error, name(), ": the host's reader failed at offset ", offset);
    return Bytes{*buffer, buffer};
  }
  bool resident() const noexcept override { return false; }

 private:
  std::function<bool(std::uint64_t, std::span<std::byte>)> read_;
  mutable std::mutex mutex_;
};

Result<OpenFile> open_regular(const std::string& path) {
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a pipe waits for its writer else
  if (fd.get() < 0) return errno_error(path, "open", errno);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return errno_error(path, "stat", errno);
  if (!S_ISREG(info.st_mode)) return fail(ErrorCode::not_a_file, path, ": not a regular file");
  const std::int64_t modified = info.st_mtim.tv_sec * std::int64_t{1'000'000'000} + info.st_mtim.tv_nsec;
  return OpenFile{std::move(fd), static_cast<std::uint64_t>(info.st_size), static_cast<std::uint64_t>(modified)};
}

}  // namespace

Result<void> ByteSource::check_range(std::uint64_t offset, std::uint64_t count) const {
  if (offset > size_ || count > size_ - offset) {
    return fail(ErrorCode::truncated, name_, ": ", count, " bytes at offset ", offset, " pass the end, ", size_);
  }
  return {};
}

void ByteSource::release(std::uint64_t, std::uint64_t) const noexcept {}

Result<std::shared_ptr<const ByteSource>> open_file(const std::string& path, bool use_mmap) {
  OpenFile file = LLMINFER_TRY(open_regular(path));
  if (file.size == 0) return fail(ErrorCode::truncated, path, ": the file is empty");
  if (!use_mmap) {
    return std::shared_ptr<const ByteSource>(std::make_shared<UnmappedFile>(path, std::move(file)));
  }
  void* address = ::mmap(nullptr, file.size, PROT_READ, MAP_PRIVATE, file.fd.get(), 0);
  if (address == MAP_FAILED) return errno_error(path, "mmap", errno);
  std::shared_ptr<const void> mapping(address,
                                      [size = file.size](const void* p) { ::munmap(const_cast<void*>(p), size); });
  return std::shared_ptr<const ByteSource>(
      std::make_shared<MappedFile>(path, std::move(mapping), file.size, file.modified));
}

std::shared_ptr<const ByteSource> memory_source(std::string name, std::span<const std::byte> data,
                                                std::shared_ptr<const void> keep) {
  return std::make_shared<MemorySource>(std::move(name), data, std::move(keep));
}

std::shared_ptr<const ByteSource> reader_source(std::string name, std::uint64_t size,
                                                std::function<bool(std::uint64_t, std::span<std::byte>)> read) {
  return std::make_shared<ReaderSource>(std::move(name), size, std::move(read));
}

bool over_limit(std::uint64_t bytes) noexcept {
  struct rlimit limit {};
  return ::getrlimit(RLIMIT_FSIZE, &limit) == 0 && bytes > limit.rlim_cur;
}

namespace {

/// Gives the empty file so many bytes of the disk; errno's number, 0 for success. Checks come first: the call may fill
/// the disk before it fails.
int reserve(int fd, std::uint64_t bytes) {
  if (over_limit(bytes)) return EFBIG;
  struct statvfs disk {};
  const bool known = ::fstatvfs(fd, &disk) == 0 && disk.f_frsize > 0 && disk.f_blocks > 0;
  if (known && bytes / disk.f_frsize >= disk.f_bavail) return ENOSPC;
  int error = EINTR;
  while (error == EINTR) error = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  return error;
}

/// A file without a name that has so many bytes of the disk.
Result<FileDescriptor> make_nameless(const std::string& folder, std::uint64_t bytes) {
  std::string path = folder + "/llminfer-XXXXXX";
  FileDescriptor fd(::mkostemp(path.data(), O_CLOEXEC));
  if (fd.get() < 0) return errno_error(folder, "create a file", errno);
  if (::unlink(path.c_str()) != 0) return errno_error(path, "unlink", errno);
  if (const int error = reserve(fd.get(), bytes); error != 0) {
    return errno_error(folder, ("a file of " + std::to_string(bytes) + " bytes").c_str(), error);
  }
  return fd;
}

}  // namespace

Result<std::shared_ptr<std::byte>> file_memory(const std::string& folder, std::uint64_t bytes) {
  const FileDescriptor fd = LLMINFER_TRY(make_nameless(folder, bytes));
  void* const address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) return errno_error(folder, "mmap", errno);
  (void)::madvise(address, bytes, MADV_DONTFORK);  // else a child of the host's keeps the room on the disk
  (void)::madvise(address, bytes, MADV_DONTDUMP);
  return std::shared_ptr<std::byte>(static_cast<std::byte*>(address), [bytes](std::byte* p) { ::munmap(p, bytes); });
}

namespace {

class NamelessFile final : public StorageFile {
 public:
  NamelessFile(std::string folder, FileDescriptor fd) : folder_(std::move(folder)), fd_(std::move(fd)) {}

  Result<void> write(std::int64_t offset, std::span<const std::byte> bytes) override {
    LLMINFER_TRY(write_all(folder_, fd_.get(), static_cast<std::uint64_t>(offset), bytes));
    forget(offset, bytes.size());  // of what is not on the disk yet, the system begins to write it
    return {};
  }
  Result<void> read(std::int64_t offset, std::span<std::byte> bytes) override {
    LLMINFER_TRY(read_all(folder_, fd_.get(), static_cast<std::uint64_t>(offset), bytes));
    forget(offset, bytes.size());
    return {};
  }
  Result<void> flush() override {
    if (::fdatasync(fd_.get()) != 0) return errno_error(folder_, "write", errno);
    forget(0, 0);
    return {};
  }

 private:
  /// Drops so many bytes from the file cache; 0: all from there on.
  void forget(std::int64_t offset, std::size_t bytes) const noexcept {
    (void)::posix_fadvise(fd_.get(), offset, static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
  }

  const std::string folder_;  ///< for error messages
  const FileDescriptor fd_;
};

}  // namespace

Result<std::shared_ptr<StorageFile>> make_storage_file(const std::string& folder, std::uint64_t bytes) {
  FileDescriptor fd = LLMINFER_TRY(make_nameless(folder, bytes));
  return std::shared_ptr<StorageFile>(std::make_shared<NamelessFile>(folder, std::move(fd)));
}

Result<std::string> read_text_file(const std::string& path, std::uint64_t limit) {
  OpenFile file = LLMINFER_TRY(open_regular(path));
  if (file.size > limit) return fail(ErrorCode::limit_exceeded, path, ": ", file.size, " bytes, the limit is ", limit);
  const UnmappedFile source(path, std::move(file));
  const Bytes bytes = LLMINFER_TRY(source.read(0, source.size()));
  return std::string(reinterpret_cast<const char*>(bytes.data.data()), bytes.data.size());
}

namespace {

constexpr std::string_view kPartial = ".partial";

/// A new file beside `path`, whose name is put into `name`. Others may be writing the same, in this process or another.
/// It is locked as long as it is open.
Result<FileDescriptor> create_partial(const std::string& path, std::string& name) {
  for (int attempt = 0;; ++attempt) {
    name = path + "." + std::to_string(::getpid()) + "-" + std::to_string(attempt) + std::string(kPartial);
    FileDescriptor fd(::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (fd.get() >= 0) {
      (void)::flock(fd.get(), LOCK_EX | LOCK_NB);
      return fd;
    }
    if (errno != EEXIST || attempt == 1000) return errno_error(path, "create", errno);
  }
}

/// Removes what processes that were killed have left of create_partial(path): nobody has it locked, nor has made it
/// just now or is about to rename it.
void remove_stale(const std::string& path) {
  const std::filesystem::path whole(path);
  const std::string begin = whole.filename().string() + ".";
  std::error_code error;
  const auto folder = whole.has_parent_path() ? whole.parent_path() : std::filesystem::path(".");
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(begin) || !name.ends_with(kPartial) || name.size() <= begin.size() + kPartial.size())
      continue;
    const auto middle = std::string_view(name).substr(begin.size(), name.size() - begin.size() - kPartial.size());
    if (middle.find_first_not_of("0123456789-") != std::string_view::npos) continue;
    const FileDescriptor fd(::open(it->path().c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat info {};
    constexpr std::time_t kSeconds = 600;
    const bool old = fd.get() >= 0 && ::fstat(fd.get(), &info) == 0 && info.st_mtime < std::time(nullptr) - kSeconds;
    if (old && ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) (void)::unlink(it->path().c_str());
  }
}

Result<void> write_parts(const std::string& path, FileDescriptor fd, std::span<const FilePart> parts) {
  for (const FilePart& part : parts) {
    if (over_limit(part.offset + part.data.size())) return errno_error(path, "write", EFBIG);
    LLMINFER_TRY(write_all(path, fd.get(), part.offset, part.data));
  }
  if (::fdatasync(fd.get()) != 0) return errno_error(path, "write", errno);
  if (!fd.close()) return errno_error(path, "close", errno);
  return {};
}

}  // namespace

Result<void> write_file(const std::string& path, std::span<const FilePart> parts) {
  std::string partial;
  Result<void> written = write_parts(path, LLMINFER_TRY(create_partial(path, partial)), parts);
  if (written && ::rename(partial.c_str(), path.c_str()) != 0) written = errno_error(path, "rename", errno);
  if (!written) (void)::unlink(partial.c_str());
  remove_stale(path);
  return written;
}

}  // namespace llminfer::core
