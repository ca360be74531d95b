// Files of prepared weights: EngineOptions::weight_cache.
#include <llminfer/llminfer.hpp>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

using namespace llminfer;
namespace fs = std::filesystem;

namespace {

const std::string kTiny = std::string(LLMINFER_TEST_DATA) + "/models/tiny-bf16";

/// An empty folder that goes with it.
class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "llminfer-weights-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()));
    path_ = name;
  }
  ~Folder() { fs::remove_all(path_); }
  std::string path() const { return path_.string(); }
  std::vector<fs::path> files() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(path_)) found.push_back(entry.path());
    return found;
  }

 private:
  fs::path path_;
};

struct Loaded {
  std::vector<float> logits;
  std::vector<std::string> warnings;
};

Loaded load(const std::string& model, const std::string& folder, const std::string& level = {}) {
  Loaded loaded;
  EngineOptions options{.threads = 2, .cpu_level = level};
  options.weight_cache = folder;
  options.on_log = [&](LogLevel at, std::string_view message) {
    if (at == LogLevel::warning) loaded.warnings.emplace_back(message);
  };
  const Engine engine = Engine::load(model, options).value();
  Session session = engine.new_session().value();
  session.prefill(std::vector<Token>{1, 2, 3, 4, 5}).value();
  loaded.logits.assign(session.logits().begin(), session.logits().end());
  return loaded;
}

void overwrite(const fs::path& file, std::uint64_t offset, const std::string& bytes) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(static_cast<std::streamoff>(offset));
  stream << bytes;
  REQUIRE(stream.flush());
}

}  // namespace

TEST_CASE("prepared weights are mapped by the second load") {
  const Folder folder;
  const std::vector<float> expected = load(kTiny, "").logits;
  CHECK(load(kTiny, folder.path()).logits == expected);
  const auto files = folder.files();
  REQUIRE(files.size() == 1);
  for (const std::string& level : cpu_levels()) {
    CAPTURE(level);
    CHECK(load(kTiny, folder.path(), level).logits == expected);
  }
  CHECK(folder.files() == files);

  // That it was the file which was read shows when its last weights are others.
  const std::uint64_t size = fs::file_size(files[0]);
  overwrite(files[0], size - 65536, std::string(65536, '\0'));
  CHECK_FALSE(load(kTiny, folder.path()).logits == expected);
}

TEST_CASE("a checkpoint with other weights has a file of its own") {
  const Folder folder, changed;
  fs::copy(kTiny, changed.path());
  const fs::path weights = fs::path(changed.path()) / "model.safetensors";
  overwrite(weights, fs::file_size(weights) - 65536, std::string(65536, '\0'));
  CHECK(load(kTiny, folder.path()).logits == load(kTiny, "").logits);
  CHECK(load(changed.path(), folder.path()).logits == load(changed.path(), "").logits);
  CHECK(folder.files().size() == 2);
}

TEST_CASE("weights that change anywhere are prepared anew") {
  const Folder folder, checkpoint;
  fs::copy(kTiny, checkpoint.path());
  const fs::path weights = fs::path(checkpoint.path()) / "model.safetensors";
  const std::uint64_t size = fs::file_size(weights);
  for (int i = 1; i < 8; ++i) {
    CAPTURE(i);
    overwrite(weights, size * static_cast<std::uint64_t>(i) / 8, std::string(2000, '\0'));
    // A file system may tell times in ticks longer than this takes.
    fs::last_write_time(weights, fs::file_time_type::clock::now() + std::chrono::seconds(i));
    CHECK(load(checkpoint.path(), folder.path()).logits == load(checkpoint.path(), "").logits);
  }
  CHECK(folder.files().size() == 7);
}

TEST_CASE("of weights in memory every byte tells whether they are the same") {
  const Folder folder, made;
  const std::string model = made.path() + "/model.gguf";
  QuantizeOptions to_gguf;
  to_gguf.type = "Q8_0";
  quantize_model(kTiny, model, to_gguf).value();
  std::ifstream file(model, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const auto logits = [&](const std::string& cache) {
    EngineOptions options{.threads = 2};
    options.weight_cache = cache;
    const Engine engine = Engine::load_memory(std::as_bytes(std::span(bytes)), nullptr, options).value();
    Session session = engine.new_session().value();
    session.prefill(std::vector<Token>{1, 2, 3, 4, 5}).value();
    return std::vector<float>(session.logits().begin(), session.logits().end());
  };
  CHECK(logits(folder.path()) == logits(""));
  for (const std::size_t before_end : {9000, 5000, 3001}) {
    CAPTURE(before_end);
    bytes[bytes.size() - before_end] ^= 0x55;
    CHECK(logits(folder.path()) == logits(""));
  }
  CHECK(folder.files().size() == 4);
}

TEST_CASE("files of prepared weights that are damaged") {
  const Folder folder;
  const Loaded first = load(kTiny, folder.path());
  REQUIRE(first.warnings.empty());
  const fs::path file = folder.files().at(0);
  const std::uint64_t size = fs::file_size(file);

  SECTION("too short, or no such file at all: written anew") {
    for (const std::uint64_t left : {size - 1, std::uint64_t{100}, std::uint64_t{10}, std::uint64_t{0}}) {
      CAPTURE(left);
      fs::resize_file(file, left);
      const Loaded again = load(kTiny, folder.path());
      CHECK(again.logits == first.logits);
      CHECK(again.warnings.empty());
      CHECK(fs::file_size(file) == size);
    }
  }
  SECTION("a wrong header: written anew") {
    overwrite(file, 0, "GGUF");
    CHECK(load(kTiny, folder.path()).logits == first.logits);
    CHECK(load(kTiny, folder.path()).warnings.empty());
  }
  SECTION("a wrong table of contents, in one place or many: written anew") {
    for (const std::string& wrong : {std::string(256, '\x7f'), std::string("\0\x20", 2)}) {
      overwrite(file, 40, wrong);
      const Loaded again = load(kTiny, folder.path());
      CHECK(again.logits == first.logits);
      CHECK(again.warnings.empty());
    }
  }
}

TEST_CASE("a folder that is not there is a warning") {
  const Folder folder;
  const Loaded loaded = load(kTiny, folder.path() + "/none");
  CHECK(loaded.logits == load(kTiny, "").logits);
  REQUIRE(loaded.warnings.size() == 1);
  CHECK_THAT(loaded.warnings[0], Catch::Contains(folder.path() + "/none") && Catch::Contains("No such file"));
}
