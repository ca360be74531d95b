// Programs with mixtures of experts, for tests of backends.
#pragma once

#include <string>
#include <utility>

#include "tests/cpu/model.hpp"

namespace llminfer::test {

struct Mixture {
  int experts = 5, used = 2, ffn = 64, hidden = 64, layers = 2;
  Scoring scoring = Scoring::softmax;
  bool normalize = false, shared = false, biases = false;
  float scale = 1.0f;
  Activation activation = Activation::silu;
};

/// Attention with norms on the heads of q and k, then a mixture; in each layer.
inline Program make_mixture(const Mixture& m) {
  constexpr int kHeads = 2, kHeadDim = 32, kVocab = 71;
  Builder b("mixture");
  const std::int32_t group = b.cache_group({m.layers, 1, kHeadDim, 0});
  const WeightId table = b.weight("embed", kVocab, m.hidden);
  ValueId x = b.embed(table, "x");
  for (int l = 0; l < m.layers; ++l) {
    const std::string p = "blk." + std::to_string(l) + ".";
    const auto linear = [&](ValueId in, const std::string& name, int rows) {
      return b.linear(in, b.weight(p + "w" + name, rows, b.width(in)), p + name);
    };
    const ValueId n = b.rms_norm(x, b.vector(p + "norm", m.hidden), 1e-5f, p + "n");
    const ValueId q = b.rms_norm(linear(n, "q", kHeads * kHeadDim), b.vector(p + "q_norm", kHeadDim), 1e-5f, p + "qn");
    const ValueId k = b.rms_norm(linear(n, "k", kHeadDim), b.vector(p + "k_norm", kHeadDim), 1e-5f, p + "kn");
    const ValueId a = b.attention(q, k, linear(n, "v", kHeadDim), group, l, kHeads, 0.2f, p + "a");
    x = b.add(x, linear(a, "o", m.hidden), p + "x1");
    op::Moe moe;
    moe.in = b.rms_norm(x, b.vector(p + "norm2", m.hidden), 1e-5f, p + "m");
    moe.router = linear(moe.in, "router", m.experts);
    for (int e = 0; e < m.experts; ++e) {
      const std::string name = p + std::to_string(e) + ".";
      moe.gate.push_back(b.weight(name + "gate", m.ffn, m.hidden));
      moe.up.push_back(b.weight(name + "up", m.ffn, m.hidden));
      moe.down.push_back(b.weight(name + "down", m.hidden, m.ffn));
      if (!m.biases) continue;
      moe.gate_bias.push_back(b.vector(name + "gate_bias", m.ffn));
      moe.up_bias.push_back(b.vector(name + "up_bias", m.ffn));
      moe.down_bias.push_back(b.vector(name + "down_bias", m.hidden));
    }
    moe.used = m.used;
    moe.scoring = m.scoring;
    moe.normalize = m.normalize;
    moe.scale = m.scale;
    moe.activation = m.activation;
    if (m.shared) {
      moe.shared_gate = linear(moe.in, "shared_gate", 1);
      moe.shared =
          linear(b.glu(linear(moe.in, "sg", 32), linear(moe.in, "su", 32), m.activation, p + "sh"), "sd", m.hidden);
    }
    x = b.add(b.moe(std::move(moe), p + "moe"), x, p + "x2");
  }
  const ValueId hidden = b.rms_norm(x, b.vector("norm", m.hidden), 1e-5f, "hidden");
  return std::move(b).finish(hidden, b.linear(hidden, table, "logits")).value();
}

/// Gives layers that read one input different roundings: those of make_program, or the experts of make_mixture and the
/// layers beside them. (With fixed scales: of a dynamic one, the largest value is half-way between two integers.)
inline void round_inputs_unlike(Model& model, bool dense) {
  const auto round = [&](std::initializer_list<const char*> names, float scale, std::int32_t zero) {
    for (const char* name : names) model.round_inputs(name, {InputQuantization::Kind::int8, false, 0, scale, zero});
  };
  if (dense) {
    round({"wk", "wg"}, 0.8f, -5);
    round({"wv", "wd"}, 0.5f, 3);
  } else {
    round({"wsg", "0.gate", "1.up", "down"}, 0.8f, -5);
    round({"wsu", "2.gate", "2.up", "3.up"}, 0.5f, 3);
  }
}

}  // namespace llminfer::test
