// Which AMD GPUs an old HIP runtime would see, by folders as the kernel's driver has them.
#include <catch2/catch.hpp>

#include <filesystem>
#include <string>
#include <vector>

#include "backends/gpu/amd_gpus.hpp"
#include "tests/load/temp_dir.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// The driver's list of a CPU, an MI250's half, a Radeon 680M and an RX 7900: nodes 0, 1, 2 and 10.
struct Nodes {
  Nodes() {
    add("0", 0);
    add("10", 110000);
    add("1", 90010);
    add("2", 100305);
    folder.write("generation_id", "7");
  }
  void add(const std::string& node, int version) const {
    std::filesystem::create_directories(folder / node);
    folder.write(node + "/properties", "cpu_cores_count 0\nsimd_count 416\ngfx_target_version " +
                                           std::to_string(version) + "\nunique_id 17804729830404853517\nlocal 1\n");
  }
  /// The error's message, "" if all is well.
  std::string refused(const std::vector<std::string>& architectures, gpu::AmdGpus gpus = {}) const {
    gpus.nodes = folder.path();
    const auto checked = gpu::check_amd_gpus(gpus, architectures);
    if (!checked) CHECK(checked.error().code == ErrorCode::unsupported);
    return checked ? "" : checked.error().message;
  }

  TempDir folder;
};

}  // namespace

TEST_CASE("AMD GPUs for which there is no code are found before HIP is called") {
  const Nodes nodes;
  CHECK(nodes.refused({"gfx90a", "gfx1035", "gfx1100"}).empty());
  CHECK(nodes.refused({"gfx1100:xnack-", "gfx90a:sramecc+:xnack-", "gfx1035"}).empty());
  CHECK_THAT(nodes.refused({"gfx90a", "gfx1030", "gfx1100"}), Catch::StartsWith("AMD GPU 1 is a gfx1035,"));
  CHECK_THAT(nodes.refused({"gfx1035", "gfx90a"}), Catch::StartsWith("AMD GPU 2 is a gfx1100,"));
  CHECK_THAT(nodes.refused({}), Catch::StartsWith("AMD GPU 0 is a gfx90a,"));

  // What the environment leaves out, HIP does not see; its own list counts what the other one has left.
  const std::vector<std::string> some = {"gfx90a", "gfx1100"};
  CHECK(nodes.refused(some, {.hip_visible = "0"}).empty());
  CHECK(nodes.refused(some, {.hip_visible = "2,0"}).empty());
  CHECK(nodes.refused(some, {.rocr_visible = "0,2", .hip_visible = "1,0"}).empty());
  CHECK_FALSE(nodes.refused(some, {.hip_visible = "0,1"}).empty());
  CHECK_FALSE(nodes.refused(some, {.hip_visible = ""}).empty());
  CHECK_FALSE(nodes.refused(some, {.rocr_visible = "1,2", .hip_visible = "0"}).empty());
  CHECK_FALSE(nodes.refused(some, {.rocr_visible = "GPU-6a3f,0"}).empty());  // any of them
  CHECK(nodes.refused({}, {.hip_visible = "-1"}).empty());
  CHECK(nodes.refused({}, {.hip_visible = "3,1"}).empty());  // a list ends where there is no such GPU

  CHECK(nodes.refused({"gfx1030"}, {.gfx_version = "10.3.0"}).empty());
  CHECK_FALSE(nodes.refused(some, {.gfx_version = "10.3.0"}).empty());
  CHECK_FALSE(nodes.refused(some, {.gfx_version = "old"}).empty());

  CHECK(gpu::check_amd_gpus({.nodes = nodes.folder / "none"}, {}));
}
