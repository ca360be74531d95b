// Ranks whose GPUs sum by themselves give what ranks give that sum in host memory. On a machine with several GPUs this
// runs on two of them.
#include <catch2/catch.hpp>

#include "tests/gpu/collectives.hpp"

using namespace llminfer;
using namespace llminfer::test;

TEST_CASE("GPUs of ranks that share layers sum by themselves", "[collective]") {
  struct Case {
    std::string model;
    int ranks, shards;
  };
  const FourHeadsModel four;
  const UnevenModel mixture("mixtral");
#ifdef LLMINFER_TEST_GPU
  const std::vector<Case> cases = {{path_of("tiny-bf16"), 2, 2}, {mixture.path(), 2, 2}, {four.path(), 2, 2}};
#else
  const std::vector<Case> cases = {{mixture.path(), 2, 2}, {four.path(), 4, 4}, {four.path(), 4, 2}};
#endif
  if (summing_backends(2).empty()) {
    WARN("not run: sums on several devices need two GPUs");
    return;
  }
  for (const auto& [model, ranks, shards] : cases) {
    CAPTURE(model, ranks, shards);
    std::vector<std::vector<float>> found;
    for (const DeviceSums sums : {DeviceSums::never, DeviceSums::required}) {
      Ranks group(model, make_thread_communicators(ranks).value(), shards, summing_options(sums),
                  summing_backends(static_cast<std::size_t>(ranks)));
      if (!group.engine()) FAIL(group.engine().error().message);
      found.push_back(few_logits(*group.engine()));
      const std::string& backend = group.engine()->info().backend;
      std::size_t places = 0;
      for (std::size_t at = 0; (at = backend.find(", sums by ", at)) != std::string::npos; ++at) ++places;
      CHECK(places == (sums == DeviceSums::never ? 0 : static_cast<std::size_t>(ranks)));
      for (const auto& outcome : group.end()) CHECK(outcome);
    }
#ifdef LLMINFER_TEST_GPU
    CHECK(distance(found[1], found[0]) < 1e-3);
#else
    CHECK(found[1] == found[0]);  // the fake library sums in the host's order
#endif
  }
}
