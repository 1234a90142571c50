// llama.cpp's logits of one sequence, for benchmarks/against_llama_cpp.py, which compiles this against llama.cpp's own
// headers: llama_cpp_logits MODEL TOKENS LOGITS THREADS. Tokens are int32; every position's logits are written as float32.
// llama_cpp_logits MODEL TEXT TOKENS writes the tokens of a text instead, with nothing put in front.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

static void fail(const char* what) {
  std::fprintf(stderr, "llama_cpp_logits: %s\n", what);
  std::exit(1);
}

static std::vector<int32_t> read_tokens(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (!file) fail("the tokens cannot be opened");
  std::vector<int32_t> tokens(4096);
  tokens.resize(std::fread(tokens.data(), sizeof(int32_t), tokens.size(), file));
  std::fclose(file);
  return tokens;
}

static int write_tokens(const llama_model* model, const char* text_path, const char* out_path) {
  std::FILE* file = std::fopen(text_path, "rb");
  if (!file) fail("the text cannot be opened");
  std::vector<char> text(1 << 20);
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  std::vector<int32_t> tokens(text.size() + 8);
  const int n = llama_tokenize(llama_model_get_vocab(model), text.data(), static_cast<int32_t>(text.size()),
                               tokens.data(), static_cast<int32_t>(tokens.size()), false, false);
  if (n < 0) fail("the text makes too many tokens");
  std::FILE* out = std::fopen(out_path, "wb");
  if (!out || std::fwrite(tokens.data(), sizeof(int32_t), n, out) != static_cast<size_t>(n)) fail("the disk is full");
  return std::fclose(out);
}

int main(int argc, char** argv) {
  if (argc != 5 && argc != 4) fail("wanted are MODEL TOKENS LOGITS THREADS, or MODEL TEXT TOKENS");
  llama_log_set([](ggml_log_level level, const char* text, void*) {
    if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
  }, nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (!model) fail("the model cannot be loaded");
  if (argc == 4) return write_tokens(model, argv[2], argv[3]);
  std::vector<int32_t> tokens = read_tokens(argv[2]);
  const int n = static_cast<int>(tokens.size());

  llama_context_params params = llama_context_default_params();
  params.n_ctx = params.n_batch = params.n_ubatch = n;
  params.n_threads = params.n_threads_batch = std::atoi(argv[4]);
  llama_context* context = llama_init_from_model(model, params);
  if (!context) fail("no context could be made");
  llama_batch batch = llama_batch_init(n, 0, 1);
  batch.n_tokens = n;
  for (int i = 0; i < n; ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  if (llama_decode(context, batch) != 0) fail("the tokens could not be decoded");

  const size_t vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  std::FILE* out = std::fopen(argv[3], "wb");
  if (!out) fail("the logits cannot be written");
  for (int i = 0; i < n; ++i)
    if (std::fwrite(llama_get_logits_ith(context, i), sizeof(float), vocab, out) != vocab) fail("the disk is full");
  return std::fclose(out);
}
