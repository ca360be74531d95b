// OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): as Llama, with norms on the whole of Q and K and a mixture of
// experts in every layer.
#include "arch/arch.hpp"
#include "arch/decoder.hpp"

namespace llminfer::arch {
namespace {

ValueId attention_block(Decoder& d, ValueId x, std::int32_t rope) {
  const load::ModelConfig& c = d.config();
  const std::int64_t q_width = c.heads * c.head_dim;
  const std::int64_t kv_width = c.kv_heads * c.head_dim;
  const ValueId normed = d.norm(x, Part::attention_norm);                                        // [hidden]
  const ValueId q = d.norm(d.linear(normed, Part::q, q_width, Bias::if_stored), Part::q_norm);   // [q_width]
  const ValueId k = d.norm(d.linear(normed, Part::k, kv_width, Bias::if_stored), Part::k_norm);  // [kv_width]
  const ValueId v = d.linear(normed, Part::v, kv_width, Bias::if_stored);                        // [kv_width]
  const ValueId mixed = d.attention(d.rope(q, rope, "q_rope"), d.rope(k, rope, "k_rope"), v);    // [q_width]
  return d.linear(mixed, Part::attention_out, c.hidden_size, Bias::if_stored);                   // [hidden]
}

ValueId feed_forward_block(Decoder& d, ValueId x) { return d.experts(d.norm(x, Part::ffn_norm), {.normalize = false}); }

}  // namespace

Result<Program> build_olmoe(const load::Checkpoint& checkpoint) {
  // The halves of a rotary pair lie apart in both file formats.
  return Decoder("olmoe", checkpoint).residual_layers(/*interleaved_rope=*/false, attention_block, feed_forward_block);
}

}  // namespace llminfer::arch
