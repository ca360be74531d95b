// Ranks that share layers on GPUs which have too little memory for their part, and stream it.
#include <catch2/catch.hpp>

#include "tests/gpu/collectives.hpp"

using namespace llminfer;
using namespace llminfer::test;

TEST_CASE("Ranks that share layers and stream their weights give what they give without") {
  const FourHeadsModel model(8);
  EngineOptions options = summing_options(DeviceSums::never);
  options.split = {{summing_backends(1)[0]}};
  const auto communicators = make_thread_communicators(2).value();
  const auto planned = [&] { return Engine::plan(model.path(), of_rank(communicators[0], 2, options)).value(); };
  const auto run = [&](std::int64_t streamed) {
    Ranks ranks(model.path(), make_thread_communicators(2).value(), 2, options, summing_backends(2));
    if (!ranks.engine()) FAIL(ranks.engine().error().message);
    CHECK(gpu::emulated_pinned_memory_in_use() == streamed);
    auto found = few_logits(*ranks.engine());
    for (const auto& outcome : ranks.end()) CHECK(outcome);
    return found;
  };
  const MemoryPlan whole = planned();
  const std::vector<float> expected = run(0);
  // Rank 0 has the embedding, too, and is the first to stream.
  for (const auto& [sums, rank] : {std::pair(DeviceSums::never, 0), {DeviceSums::required, 1}}) {
    CAPTURE(rank, sums);
    options.device_sums = sums;
    options.split[0].memory = whole.shares[static_cast<std::size_t>(rank)].total() - 1;
    options.split[0].stream = true;
    const MemoryPlan plan = planned();
    CHECK(plan.weights + plan.streamed == whole.weights);
    CHECK(plan.shares[0].streamed > 0);
    CHECK((plan.shares[1].streamed > 0) == (rank == 1));
    for (const MemoryShare& share : plan.shares) CHECK(share.total() <= options.split[0].memory);
    CHECK(run(plan.streamed) == expected);
  }
  const MemoryPlan in_memory = planned();
  const TempDir folder;
  options.stream_folder = folder.path();
  const MemoryPlan in_files = planned();
  CHECK(in_files.disk_weights == in_memory.streamed);
  CHECK(run(in_files.streamed) == expected);
}
