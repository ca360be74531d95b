#include "core/error.hpp"
#include "tok/pipeline_tokenizer.hpp"
namespace llminfer::inline v0 {
namespace tok {
Result<std::shared_ptr<const TokenizerModel>> read_tokenizer_json(const load::VocabularyData&, std::int64_t,
                                                                  const load::GenerationDefaults&) {
  return core::fail(ErrorCode::unsupported, "tokenizer.json");
}
}  // namespace tok
}  // namespace llminfer::inline v0
