// Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671): as Llama, with biases on Q, K and V and a sliding window that
// only some layers may have. Qwen1.5-MoE and Qwen2-MoE: with mixtures of experts and one expert that all tokens have.
#include "arch/arch.hpp"
#include "arch/decoder.hpp"

namespace llminfer::arch {
namespace {

ValueId attention_block(Decoder& d, ValueId x, std::int32_t rope) {
  const load::ModelConfig& c = d.config();
  const Bias bias = c.experts > 0 ? Bias::if_stored : Bias::required;
  const std::int64_t q_width = c.heads * c.head_dim;
  const std::int64_t kv_width = c.kv_heads * c.head_dim;
  const ValueId normed = d.norm(x, Part::attention_norm);                               // [hidden]
  const ValueId q = d.rope(d.linear(normed, Part::q, q_width, bias), rope, "q_rope");   // [q_width]
  const ValueId k = d.rope(d.linear(normed, Part::k, kv_width, bias), rope, "k_rope");  // [kv_width]
  const ValueId v = d.linear(normed, Part::v, kv_width, bias);                          // [kv_width]
  return d.linear(d.attention(q, k, v), Part::attention_out, c.hidden_size);            // [hidden]
}

ValueId feed_forward_block(Decoder& d, ValueId x) { return d.feed_forward(x, /*normalize_experts=*/false); }

Result<Program> build(const char* architecture, const load::Checkpoint& checkpoint) {
  // The halves of a rotary pair lie apart in both file formats.
  return Decoder(architecture, checkpoint)
      .residual_layers(/*interleaved_rope=*/false, attention_block, feed_forward_block);
}

}  // namespace

Result<Program> build_qwen2(const load::Checkpoint& checkpoint) { return build("qwen2", checkpoint); }
Result<Program> build_qwen2moe(const load::Checkpoint& checkpoint) { return build("qwen2moe", checkpoint); }

}  // namespace llminfer::arch
