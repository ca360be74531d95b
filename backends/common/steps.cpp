#include "backends/common/steps.hpp"

#include <algorithm>
#include <utility>

#include "backends/common/check.hpp"
#include "core/error.hpp"

namespace llminfer::backend {
namespace {

template <class... F>
struct Overload : F... {
  using F::operator()...;
};
template <class... F>
Overload(F...) -> Overload<F...>;

std::size_t index(ValueId id) { return static_cast<std::size_t>(id); }

class Fuser {
 public:
  explicit Fuser(const Program& program)
      : program_(program),
        absorbed_(program.ops.size(), false),
        ready_(program.values.size(), false),
        readers_(program.values.size()),
        writer_(program.values.size(), -1) {
    for (std::size_t i = 0; i < program.ops.size(); ++i) {
      for_each_input(program.ops[i], [&](ValueId id) { readers_[index(id)].push_back(static_cast<int>(i)); });
      writer_[index(output_of(program.ops[i]))] = static_cast<int>(i);
    }
  }

  Steps run() {
    std::int32_t split = -1;  // the last step that needs every row
    for (std::size_t i = 0; i < program_.ops.size(); ++i) {
      if (absorbed_[i]) continue;
      const std::size_t before = steps_.steps.size();
      std::visit([&](const auto& op) { emit(op, static_cast<int>(i)); }, program_.ops[i]);
      if (steps_.steps.size() == before) continue;
      const Step& step = steps_.steps.back();
      const auto at = static_cast<std::int32_t>(before);
      if (std::holds_alternative<AttentionStep>(step)) steps_.last_attention = at;
      if (std::holds_alternative<AttentionStep>(step) || std::holds_alternative<EmbedStep>(step)) split = at;
    }
    insert_selection(split);
    place_buffers();
    return std::move(steps_);
  }

 private:
  /// The only op that reads `id`, if it is a T; a value that the batch gives out has another reader.
  template <class T>
  const T* only_reader(ValueId id) const {
    if (id == program_.hidden || id == program_.logits || readers_[index(id)].size() != 1) return nullptr;
    return std::get_if<T>(&program_.ops[static_cast<std::size_t>(readers_[index(id)][0])]);
  }
  void absorb(ValueId written) { absorbed_[static_cast<std::size_t>(writer_[index(written)])] = true; }
  template <class T>
  void push(T step, ValueId out) {
    ready_[index(out)] = true;
    steps_.steps.emplace_back(std::move(step));
  }

  void emit(const op::Embed& op, int) { push(EmbedStep{op.table, op.out}, op.out); }
  void emit(const op::Glu& op, int) { push(GluStep{op}, op.out); }
  void emit(const op::Add& op, int) { push(AddStep{op}, op.out); }
  void emit(const op::Reduce& op, int) { push(ReduceStep{op}, op.out); }
  void emit(const op::Moe& op, int) { push(MoeStep{op}, op.out); }

  void emit(const op::RmsNorm& op, int) {
    const auto& readers = readers_[index(op.out)];
    const bool whole =
        program_.weights[static_cast<std::size_t>(op.weight)].cols == program_.values[index(op.in)].width;
    const bool fuse = whole && op.out != program_.hidden && op.out != program_.logits && !readers.empty() &&
                      std::all_of(readers.begin(), readers.end(), [&](int reader) {
                        return std::holds_alternative<op::Linear>(program_.ops[static_cast<std::size_t>(reader)]);
                      });
    if (!fuse) return push(NormStep{op.in, op.weight, op.epsilon, op.out}, op.out);
    emit_linear(op.out, LinearStep{op.in, op.weight, op.epsilon, {}});
  }

  void emit(const op::Linear& op, int) { emit_linear(op.in, LinearStep{op.in, WeightId::none, 0.0f, {}}); }

  /// One step of all linear layers that read `in`.
  void emit_linear(ValueId in, LinearStep step) {
    std::vector<const op::Linear*> linears;
    for (const int reader : readers_[index(in)]) {
      const auto* linear = std::get_if<op::Linear>(&program_.ops[static_cast<std::size_t>(reader)]);
      if (linear && !absorbed_[static_cast<std::size_t>(reader)]) linears.push_back(linear);
    }
    const auto find = [&](ValueId out) {
      const auto it = std::find_if(linears.begin(), linears.end(), [&](const auto* l) { return l && l->out == out; });
      return it;
    };
    for (auto& linear : linears) {
      if (!linear) continue;
      const op::Linear now = *linear;
      LinearPart part{now.weight, now.bias, now.out};
      absorb(now.out);
      if (const auto* glu = only_reader<op::Glu>(now.out); glu && glu->gate == now.out && glu->up != now.out) {
        const auto up = find(glu->up);
        if (up != linears.end() && only_reader<op::Glu>(glu->up)) {
          part.tail = LinearPart::Tail::glu;
          part.activation = glu->activation;
          part.up_weight = (*up)->weight;
          part.up_bias = (*up)->bias;
          part.up = glu->up;
          part.out = glu->out;
          absorb(glu->up);
          absorb(glu->out);
          *up = nullptr;
        }
      } else if (const auto* glu = only_reader<op::Glu>(now.out); glu && glu->up == now.out && glu->gate != now.out) {
        // The gate comes later in the list: it takes this one along when its turn comes.
        const auto gate = find(glu->gate);
        if (gate != linears.end() && only_reader<op::Glu>(glu->gate) && &*gate > &linear) continue;
      } else if (const auto* add = only_reader<op::Add>(now.out)) {
        const ValueId other = add->a == now.out ? add->b : add->a;
        if (other != now.out && ready_[index(other)]) {
          part.tail = LinearPart::Tail::add;
          part.residual = other;
          part.out = add->out;
          absorb(add->out);
        }
      }
      step.parts.push_back(part);
    }
    if (step.parts.empty()) return;
    for (const LinearPart& part : step.parts) ready_[index(part.out)] = true;
    steps_.steps.emplace_back(std::move(step));
  }

  void emit(const op::Rope& op, int) {
    const auto* attention = only_reader<op::Attention>(op.out);
    const auto head_dim = [&] { return program_.cache_groups[static_cast<std::size_t>(attention->group)].head_dim; };
    if (attention && attention->v != op.out && op.head_dim == head_dim()) return;  // the attention step does it
    push(RopeStep{op.in, op.head_dim, op.table, op.out}, op.out);
  }

  void emit(const op::Attention& op, int) {
    AttentionStep step{op, -1, -1};
    const auto unrotated = [&](ValueId& id, std::int32_t& table) {
      if (ready_[index(id)]) return;
      const auto& rope = std::get<op::Rope>(program_.ops[static_cast<std::size_t>(writer_[index(id)])]);
      id = rope.in;
      table = rope.table;
    };
    unrotated(step.op.q, step.q_rope);
    unrotated(step.op.k, step.k_rope);
    push(step, op.out);
  }

  template <class Read, class Write>
  static void visit_values(const Step& step, Read read, Write write) {
    std::visit(Overload{
                   [&](const EmbedStep& s) { write(s.out); },
                   [&](const NormStep& s) { read(s.in), write(s.out); },
                   [&](const LinearStep& s) {
                     read(s.in);
                     for (const LinearPart& part : s.parts) {
                       if (part.tail == LinearPart::Tail::add) read(part.residual);
                       if (part.tail == LinearPart::Tail::glu) write(part.up);
                       write(part.out);
                     }
                   },
                   [&](const RopeStep& s) { read(s.in), write(s.out); },
                   [&](const AttentionStep& s) { read(s.op.q), read(s.op.k), read(s.op.v), write(s.op.out); },
                   [&](const GluStep& s) { read(s.op.gate), read(s.op.up), write(s.op.out); },
                   [&](const AddStep& s) { read(s.op.a), read(s.op.b), write(s.op.out); },
                   [&](const ReduceStep& s) { read(s.op.in), write(s.op.out); },
                   [&](const MoeStep& s) {
                     read(s.op.in), read(s.op.router);
                     if (s.op.shared != ValueId::none) read(s.op.shared), read(s.op.shared_gate);
                     write(s.op.out);
                   },
                   [&](const SelectStep& s) {
                     for (const ValueId id : s.values) read(id);
                   },
               },
               step);
  }

  /// First write and last read of each value, in steps.
  struct Life {
    std::int32_t born = -1, dies = -1;
  };
  std::vector<Life> lives() const {
    std::vector<Life> lives(program_.values.size());
    const auto count = static_cast<std::int32_t>(steps_.steps.size());
    for (std::int32_t i = 0; i < count; ++i) {
      visit_values(
          steps_.steps[static_cast<std::size_t>(i)], [&](ValueId id) { lives[index(id)].dies = i; },
          [&](ValueId id) {
            lives[index(id)] = {i, i};
          });
    }
    if (program_.hidden != ValueId::none) lives[index(program_.hidden)].dies = count;
    if (program_.logits != ValueId::none) lives[index(program_.logits)].dies = count;
    return lives;
  }

  void insert_selection(std::int32_t split) {
    SelectStep select;
    const std::vector<Life> lifetimes = lives();
    for (std::size_t v = 0; v < lifetimes.size(); ++v) {
      if (lifetimes[v].born >= 0 && lifetimes[v].born <= split && lifetimes[v].dies > split) {
        select.values.push_back(static_cast<ValueId>(v));
      }
    }
    steps_.steps.emplace_back(std::move(select));
    std::rotate(steps_.steps.begin() + (split + 1), steps_.steps.end() - 1, steps_.steps.end());
  }

  /// Values whose lives do not meet share a buffer.
  void place_buffers() {
    const std::vector<Life> lifetimes = lives();
    steps_.buffer_of.assign(program_.values.size(), -1);
    const ValueId logits = program_.logits;
    if (!steps_.steps.empty()) {
      const auto* last = std::get_if<LinearStep>(&steps_.steps.back());
      steps_.logits_direct = last && logits != ValueId::none && logits != program_.hidden && last->parts.size() == 1 &&
                             last->parts[0].out == logits && last->parts[0].tail == LinearPart::Tail::none &&
                             readers_[index(logits)].empty();
    }
    std::vector<std::size_t> by_birth;
    for (std::size_t v = 0; v < lifetimes.size(); ++v) {
      if (lifetimes[v].born >= 0 && !(steps_.logits_direct && v == index(logits))) by_birth.push_back(v);
    }
    std::stable_sort(by_birth.begin(), by_birth.end(),
                     [&](std::size_t a, std::size_t b) { return lifetimes[a].born < lifetimes[b].born; });
    std::vector<std::int32_t> free_after;  // per buffer: the step in which its value is read last
    for (const std::size_t v : by_birth) {
      const std::int64_t stride = row_stride(program_.values[v].width);
      std::size_t best = free_after.size();
      for (std::size_t b = 0; b < free_after.size(); ++b) {
        if (free_after[b] >= lifetimes[v].born || steps_.buffer_strides[b] != stride) continue;
        best = b;
        break;
      }
      if (best == free_after.size()) {
        free_after.push_back(0);
        steps_.buffer_strides.push_back(stride);
      }
      free_after[best] = lifetimes[v].dies;
      steps_.buffer_of[v] = static_cast<std::int32_t>(best);
    }
  }

  /// Rows start on cache lines, but not all at the same place of a page: they would fight for the same cache sets.
  static std::int64_t row_stride(std::int64_t width) {
    const std::int64_t stride = (width + 15) / 16 * 16;
    return stride % 1024 == 0 ? stride + 16 : stride;
  }

  const Program& program_;
  std::vector<bool> absorbed_;             // per op: part of a step already
  std::vector<bool> ready_;                // per value: written by a step already
  std::vector<std::vector<int>> readers_;  // per value: the ops that read it
  std::vector<int> writer_;                // per value: the op that writes it
  Steps steps_;
};

}  // namespace

Result<Steps> make_steps(const Program& program) {
  LLMINFER_TRY(check_program(program));
  return Fuser(program).run();
}

void separate_inputs(Steps& steps, const std::function<bool(WeightId, WeightId)>& alike) {
  std::vector<Step> all;
  std::int32_t last_attention = -1;
  for (Step& step : steps.steps) {
    if (std::holds_alternative<AttentionStep>(step)) last_attention = static_cast<std::int32_t>(all.size());
    const auto* linear = std::get_if<LinearStep>(&step);
    if (!linear) {
      all.push_back(std::move(step));
      continue;
    }
    std::vector<LinearStep> layers;
    std::vector<GluStep> units;
    const auto add = [&](const LinearPart& part) {
      auto same = std::find_if(layers.begin(), layers.end(),
                               [&](const LinearStep& s) { return alike(s.parts.front().weight, part.weight); });
      if (same == layers.end()) same = layers.insert(same, {linear->in, linear->norm, linear->epsilon, {}});
      same->parts.push_back(part);
    };
    for (const LinearPart& part : linear->parts) {
      if (part.tail != LinearPart::Tail::glu || alike(part.weight, part.up_weight)) {
        add(part);
        continue;
      }
      add({part.weight, part.bias, part.out});
      add({part.up_weight, part.up_bias, part.up});
      units.push_back({{part.out, part.up, part.activation, part.out}});
    }
    all.insert(all.end(), layers.begin(), layers.end());
    all.insert(all.end(), units.begin(), units.end());
  }
  steps.steps = std::move(all);
  steps.last_attention = last_attention;
}

}  // namespace llminfer::backend
