// Qwen3 (Yang et al. 2025, arXiv:2505.09388): as Llama, with a norm on each head of Q and K. Qwen3-MoE: with mixtures
// of experts in the place of feed-forward layers.
#include "arch/arch.hpp"
#include "arch/decoder.hpp"

namespace llminfer::arch {
namespace {

ValueId attention_block(Decoder& d, ValueId x, std::int32_t rope) {
  const load::ModelConfig& c = d.config();
  const std::int64_t q_width = c.heads * c.head_dim;
  const std::int64_t kv_width = c.kv_heads * c.head_dim;
  const ValueId normed = d.norm(x, Part::attention_norm);                                                // [hidden]
  const ValueId q = d.linear(normed, Part::q, q_width, Bias::if_stored);                                 // [q_width]
  const ValueId k = d.linear(normed, Part::k, kv_width, Bias::if_stored);                                // [kv_width]
  const ValueId v = d.linear(normed, Part::v, kv_width, Bias::if_stored);                                // [kv_width]
  const ValueId q_rope = d.rope(d.norm(q, Part::q_norm, c.head_dim), rope, "q_rope");                    // [q_width]
  const ValueId k_rope = d.rope(d.norm(k, Part::k_norm, c.head_dim), rope, "k_rope");                    // [kv_width]
  return d.linear(d.attention(q_rope, k_rope, v), Part::attention_out, c.hidden_size, Bias::if_stored);  // [hidden]
}

ValueId feed_forward_block(Decoder& d, ValueId x) { return d.feed_forward(x, /*normalize_experts=*/true); }

Result<Program> build(const char* architecture, const load::Checkpoint& checkpoint) {
  // The halves of a rotary pair lie apart in both file formats.
  return Decoder(architecture, checkpoint)
      .residual_layers(/*interleaved_rope=*/false, attention_block, feed_forward_block);
}

}  // namespace

Result<Program> build_qwen3(const load::Checkpoint& checkpoint) { return build("qwen3", checkpoint); }
Result<Program> build_qwen3moe(const load::Checkpoint& checkpoint) { return build("qwen3moe", checkpoint); }

}  // namespace llminfer::arch
