// gpt-oss (OpenAI 2025, arXiv:2508.10925): biases on all linear layers of attention, sinks in its softmax, every other
// layer with a sliding window, and mixtures of experts with biases and a clamped gated unit.
#include "arch/arch.hpp"
#include "arch/decoder.hpp"

namespace llminfer::arch {
namespace {

ValueId attention_block(Decoder& d, ValueId x, std::int32_t rope) {
  const load::ModelConfig& c = d.config();
  const std::int64_t q_width = c.heads * c.head_dim;
  const std::int64_t kv_width = c.kv_heads * c.head_dim;
  const ValueId normed = d.norm(x, Part::attention_norm);                                          // [hidden]
  const ValueId q = d.rope(d.linear(normed, Part::q, q_width, Bias::if_stored), rope, "q_rope");   // [q_width]
  const ValueId k = d.rope(d.linear(normed, Part::k, kv_width, Bias::if_stored), rope, "k_rope");  // [kv_width]
  const ValueId v = d.linear(normed, Part::v, kv_width, Bias::if_stored);                          // [kv_width]
  const ValueId mixed = d.attention(q, k, v, d.sinks());                                           // [q_width]
  return d.linear(mixed, Part::attention_out, c.hidden_size, Bias::if_stored);                     // [hidden]
}

/// Only the scores of the chosen experts make up the softmax.
ValueId feed_forward_block(Decoder& d, ValueId x) {
  return d.experts(d.norm(x, Part::post_attention_norm),
                   {.normalize = true,
                    .router = d.config().hf_names ? Part::gpt_oss_router : Part::router,
                    .biases = true,
                    .activation = Activation::clamped_swiglu});
}

}  // namespace

Result<Program> build_gpt_oss(const load::Checkpoint& checkpoint) {
  // The halves of a rotary pair lie apart in both file formats.
  return Decoder("gpt-oss", checkpoint)
      .residual_layers(/*interleaved_rope=*/false, attention_block, feed_forward_block);
}

}  // namespace llminfer::arch
