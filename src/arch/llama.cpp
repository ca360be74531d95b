// Llama 1 to 3 (Touvron et al. 2023, arXiv:2302.13971), SmolLM2, Mistral (Jiang et al. 2023, arXiv:2310.06825) and
// Mixtral (Jiang et al. 2024, arXiv:2401.04088), whose feed-forward layers are mixtures of experts.
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
  return d.linear(d.attention(q, k, v), Part::attention_out, c.hidden_size, Bias::if_stored);      // [hidden]
}

ValueId feed_forward_block(Decoder& d, ValueId x) {
  return d.feed_forward(x, /*normalize_experts=*/true, Bias::if_stored);
}

}  // namespace

Result<Program> build_llama(const load::Checkpoint& checkpoint) {
  // Converters to GGUF permute the rows of Q and K so that the two halves of a rotary pair are neighbours.
  return Decoder("llama", checkpoint)
      .residual_layers(/*interleaved_rope=*/!checkpoint.config.hf_names, attention_block, feed_forward_block);
}

}  // namespace llminfer::arch
