#include "backends/gpu/step_list.hpp"

#include <algorithm>
#include <functional>

namespace llminfer::gpu {
namespace {

constexpr int kNoStep = 1;  ///< of a launcher, for what the kernel has no step for

using Span = StepList::Span;

StepList& list_of(void* stream) { return *static_cast<StepList*>(stream); }
Span floats(const float* data, std::int64_t count) { return {data, data ? count * std::int64_t{sizeof(float)} : 0}; }
Span row(const RowsArgs& rows, std::int64_t width) { return floats(rows.data, width); }
Span angles_of(const RopeArgs& rope) { return floats(rope.angles, 2 * std::int64_t{rope.pairs}); }
/// A layer of a cache by its first byte, whatever page is meant, also one that is open.
Span layer_of(const CacheArgs& cache) { return {cache.data, 1}; }

bool overlap(const std::vector<Span>& some, const std::vector<Span>& others) {
  return std::any_of(some.begin(), some.end(), [&](const Span& a) {
    return std::any_of(others.begin(), others.end(), [&](const Span& b) {
      const std::less<> less;
      return less(a.begin, static_cast<const std::byte*>(b.begin) + b.bytes) &&
             less(b.begin, static_cast<const std::byte*>(a.begin) + a.bytes);
    });
  });
}

template <class Args>
int none(void*, const Args&) {
  return kNoStep;
}

int embed(void* stream, const EmbedArgs& a) {
  if (a.rows != 1) return kNoStep;
  list_of(stream).append(StepKind::embed, {}, {row(a.out, a.width)}).embed = a;
  return 0;
}
int prepare(void* stream, const PrepareArgs& a) {
  if (a.rows != 1 || a.indices || a.expert_of || a.halves) return kNoStep;
  list_of(stream).append(StepKind::prepare, {row(a.in, a.width)}, {row(a.out, a.width), floats(a.scales, 1)}).prepare =
      a;
  return 0;
}
int linear_few(void* stream, const LayersArgs& a) {
  std::vector<Span> reads, writes;
  for (const LinearArgs* layer = a.layers; layer < a.layers + a.count; ++layer) {
    if (layer->rows != 1) return kNoStep;
    reads.push_back(floats(layer->row, layer->width));
    reads.push_back(floats(layer->in_scales, 1));
    reads.push_back(row(layer->residual, layer->weight.rows));
    writes.push_back(row(layer->out, layer->weight.rows));
  }
  list_of(stream).append(StepKind::linear_few, reads, writes).layers = a;
  return 0;
}
int angles(void* stream, const AnglesArgs& a) {
  if (a.rows != 1) return kNoStep;
  list_of(stream).append(StepKind::angles, {}, {floats(a.angles, 2 * std::int64_t{a.pairs})}).angles = a;
  return 0;
}
int rotate(void* stream, const RotateArgs& a) {
  if (a.rows != 1) return kNoStep;
  const std::int64_t width = std::int64_t{a.heads} * a.head_dim;
  list_of(stream).append(StepKind::rotate, {row(a.in, width), angles_of(a.rope)}, {row(a.out, width)}).rotate = a;
  return 0;
}
int store(void* stream, const StoreArgs& a) {
  if (a.rows != 1) return kNoStep;
  const std::int64_t dim = a.cache.head_dim, width = a.heads * dim, kv_width = a.cache.kv_heads * dim;
  list_of(stream)
      .append(StepKind::store,
              {row(a.q, width), row(a.k, kv_width), row(a.v, kv_width), angles_of(a.q_rope), angles_of(a.k_rope)},
              {row(a.q_out, width), layer_of(a.cache)})
      .store = a;
  return 0;
}
int seal(void* stream, const SealArgs& a) {
  list_of(stream).append(StepKind::seal, {layer_of(a.cache)}, {layer_of(a.cache)}).seal = a;
  return 0;
}
int attend(void* stream, const AttendArgs& a) {
  if (a.rows != 1) return kNoStep;
  const std::int64_t dim = a.cache.head_dim;
  const Span out = row(a.out, a.heads * dim), parts = floats(a.parts, std::int64_t{a.heads} * a.splits * (2 + dim));
  list_of(stream)
      .append(StepKind::attend, {row(a.q, a.heads * dim), layer_of(a.cache)}, {a.splits == 1 ? out : parts})
      .attend = a;
  if (a.splits > 1) list_of(stream).append(StepKind::combine_parts, {parts}, {out}).attend = a;
  return 0;
}
int glu(void* stream, const GluArgs& a) {
  if (a.rows != 1) return kNoStep;
  list_of(stream).append(StepKind::glu, {row(a.gate, a.width), row(a.up, a.width)}, {row(a.out, a.width)}).glu = a;
  return 0;
}
int add(void* stream, const AddArgs& a) {
  if (a.rows != 1) return kNoStep;
  list_of(stream).append(StepKind::add, {row(a.a, a.width), row(a.b, a.width)}, {row(a.out, a.width)}).add = a;
  return 0;
}
/// The only row that there is, by its index or without.
int gather(void* stream, const GatherArgs& a) {
  if (a.count != 1) return kNoStep;
  list_of(stream).append(StepKind::gather, {row(a.in, a.width)}, {row(a.out, a.width)}).gather = a;
  return 0;
}

}  // namespace

const KernelTable& StepList::table() {
  static constexpr KernelTable table = {.probe = none,
                                        .embed = embed,
                                        .prepare = prepare,
                                        .linear_few = linear_few,
                                        .linear_many = none,
                                        .linear_warpgroups = none,
                                        .linear_stages = none,
                                        .quantize = none,
                                        .linear_e4m3_warpgroups = none,
                                        .linear_e4m3_stages = none,
                                        .route = none,
                                        .sort_pairs = none,
                                        .experts_few = none,
                                        .experts_many = none,
                                        .angles = angles,
                                        .rotate = rotate,
                                        .store = store,
                                        .seal = seal,
                                        .attend = attend,
                                        .attend_tiles = none,
                                        .glu = glu,
                                        .add = add,
                                        .gather = gather,
                                        .combine = none,
                                        .candidates = none,
                                        .persistent = none};
  return table;
}

PersistentStep::Args& StepList::append(StepKind kind, const std::vector<Span>& reads, const std::vector<Span>& writes) {
  PersistentStep& step = steps_.emplace_back();
  step.kind = kind;
  if (overlap(reads, written_) || overlap(writes, written_) || overlap(writes, read_)) {
    step.waits = 1;
    read_.clear();
    written_.clear();
  }
  read_.insert(read_.end(), reads.begin(), reads.end());
  written_.insert(written_.end(), writes.begin(), writes.end());
  return step.args;
}

}  // namespace llminfer::gpu
