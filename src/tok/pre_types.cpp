#include "tok/pre_types.hpp"

namespace llminfer::inline v0 {
namespace tok {
namespace {

// GPT-2's split, the base of most others.
constexpr std::string_view kGpt2[] = {
    R"re('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)re"};
// Every digit alone, then GPT-2.
constexpr std::string_view kDigitsGpt2[] = {
    R"re(\p{N})re", R"re('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)re"};
// The cl100k split: digits in threes.
constexpr std::string_view kLlama3[] = {
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"};
// As cl100k, every digit alone.
constexpr std::string_view kQwen2[] = {
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"};
// As kQwen2 with marks in words.
constexpr std::string_view kQwen35[] = {
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"};
// Case-aware words, every digit alone.
constexpr std::string_view kTekken[] = {
    R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"};
// The o200k split: case-aware words with their contractions.
constexpr std::string_view kGpt4o[] = {
    R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"};
constexpr std::string_view kDeepseekCoder[] = {R"re([\r\n])re", R"re(\s?\p{L}+)re", R"re(\s?\p{P}+)re",
                                               R"re([一-龥ࠀ-一가-퟿]+)re", R"re(\p{N})re"};
constexpr std::string_view kDeepseek3[] = {
    R"re(\p{N}{1,3})re", R"re([一-龥぀-ゟ゠-ヿ]+)re",
    R"re([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"};
constexpr std::string_view kBloom[] = {R"re( ?[^(\s|.,!?…。，、।۔،)]+)re"};
constexpr std::string_view kViking[] = {R"re( ?[^(\s|.,!?…。，、।۔،)]+)re", R"re(\p{N})re"};
constexpr std::string_view kFalcon[] = {
    R"re([\p{P}\$\+<=>\^~\|`]+)re", R"re('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)re",
    R"re([0-9][0-9][0-9])re"};
// What llama.cpp does with files that name no pre-tokenizer.
constexpr std::string_view kDefault[] = {
    R"re([\p{P}\$\+<=>\^~\|]+)re", R"re('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))re",
    R"re(\p{N}+)re", R"re([0-9][0-9][0-9])re"};
constexpr std::string_view kSeedCoder[] = {
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)re"};

constexpr PreType kPreTypes[] = {
    {"", kDefault, false, false, false},
    {"default", kDefault, false, false, false},
    {"gpt-2", kGpt2, false, false, false},
    {"phi-2", kGpt2, false, false, false},
    {"mpt", kGpt2, false, false, false},
    {"olmo", kGpt2, false, false, false},
    {"jais", kGpt2, false, false, false},
    {"trillion", kGpt2, false, false, false},
    {"granite-docling", kGpt2, false, false, false},
    {"smollm", kDigitsGpt2, false, false, false},
    {"starcoder", kDigitsGpt2, false, false, false},
    {"refact", kDigitsGpt2, false, false, false},
    {"command-r", kDigitsGpt2, false, false, false},
    {"codeshell", kDigitsGpt2, false, false, false},
    {"exaone", kDigitsGpt2, false, false, false},
    {"minerva-7b", kDigitsGpt2, false, false, false},
    {"llama3", kLlama3, true, true, false},
    {"llama-v3", kLlama3, true, true, false},
    {"llama-bpe", kLlama3, true, true, false},
    {"falcon3", kLlama3, true, true, false},
    {"dbrx", kLlama3, false, false, false},
    {"smaug-bpe", kLlama3, false, false, false},
    {"chatglm-bpe", kLlama3, false, false, false},
    {"glm4", kLlama3, false, false, false},
    {"qwen2", kQwen2, false, false, true},
    {"deepseek-r1-qwen", kQwen2, false, false, true},
    {"qwen35", kQwen35, false, false, true},
    {"stablelm2", kQwen2, false, false, false},
    {"megrez", kQwen2, false, false, false},
    {"hunyuan", kQwen2, false, false, false},
    {"tekken", kTekken, true, true, false},
    {"gpt-4o", kGpt4o, false, false, false},
    {"deepseek-coder", kDeepseekCoder, false, false, false},
    {"deepseek-v3", kDeepseek3, false, false, false},
    {"bloom", kBloom, false, false, false},
    {"gpt3-finnish", kBloom, false, false, false},
    {"poro-chat", kBloom, false, false, false},
    {"viking", kViking, false, false, false},
    {"falcon", kFalcon, false, false, false},
    {"seed-coder", kSeedCoder, false, false, false},
};

}  // namespace

const PreType* find_pre_type(std::string_view name) noexcept {
  for (const PreType& type : kPreTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

}  // namespace tok
}  // namespace llminfer::inline v0
