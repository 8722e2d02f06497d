// The C API of models: files and where they come from, contexts and their threads, failures and what they tell. A page
// that nothing may touch lies after what is given.
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#include "testing/small_model.h"

using namespace si::testing;

namespace {

constexpr char kGolden[] = SI_SOURCE_DIR "/csrc/runtime/golden/small_network_v1.sinf";

// What a small network computes with its context before a page that nothing may touch, by threads of whatever kind.
std::vector<float> run_guarded(const si_context_options& options) {
  Small small;
  const auto bytes = static_cast<size_t>(si_context_bytes(small.model.get(), options.threads));
  const Guarded memory(bytes);
  si_context* context = nullptr;
  SI_CHECK_EQ(si_context_create_with(small.model.get(), memory.data(), bytes, &options, &context), SI_OK);
  for (int i = 0; i < 2; ++i) SI_CHECK_EQ(small.run(context), SI_OK);
  return small.y;
}

std::vector<float> run_guarded(int threads) {
  si_context_options options = sized<si_context_options>();
  options.threads = threads;
  return run_guarded(options);
}

void test_context_bytes() {
  Small small;
  si_model_info info = sized<si_model_info>();
  SI_CHECK_EQ(si_model_describe(small.model.get(), &info), SI_OK);
  const uint64_t whole = si_context_bytes(small.model.get(), 1);
  SI_CHECK(whole >= info.context_bytes);
  SI_CHECK(si_context_bytes(small.model.get(), 3) >= whole);
  for (const int32_t threads : {0, -1, INT32_MIN}) SI_CHECK_EQ(si_context_bytes(small.model.get(), threads), 0u);
  SI_CHECK_EQ(si_context_bytes(nullptr, 1), 0u);
  SI_CHECK(run_guarded(1) == run_guarded(3));
  // One byte less is refused, and the call says how many it takes.
  std::vector<uint8_t> zeros(whole);
  const AlignedBytes memory(zeros.data(), zeros.size());
  si_context* context = nullptr;
  for (size_t bytes : {size_t{0}, size_t{1}, zeros.size() - 1}) {
    SI_CHECK_EQ(si_context_create(small.model.get(), memory.data(), bytes, 1, &context), SI_ERR_ARGUMENT);
    SI_CHECK(says(std::to_string(whole).c_str()));
  }
  for (size_t off : {1, 8, 32})
    SI_CHECK_EQ(si_context_create(small.model.get(), memory.data() + off, zeros.size(), 1, &context), SI_ERR_ARGUMENT);
  SI_CHECK(context == nullptr);
}

// A file is used where it lies, at any multiple of 16 bytes, before a page that nothing may touch, and gives the same.
void test_file_in_place() {
  Small small;
  std::vector<uint8_t> zeros(si_context_bytes(small.model.get(), 2));
  const AlignedBytes memory(zeros.data(), zeros.size());
  si_context* context = nullptr;
  SI_CHECK_EQ(si_context_create(small.model.get(), memory.data(), zeros.size(), 1, &context), SI_OK);
  SI_CHECK_EQ(small.run(context), SI_OK);
  const std::vector<float> expected = small.y;
  const size_t bytes = small.bytes.size();
  for (size_t off = 0; off < 64; off += 8) {
    const Guarded file(bytes + off);
    std::memcpy(file.data(), small.bytes.data(), bytes);
    si_model* model = nullptr;
    const si_status status = si_model_open(file.data(), bytes, &model);
    if (off % 16 != 0) {
      SI_CHECK_EQ(status, SI_ERR_ARGUMENT);
      SI_CHECK(says("multiple of 16"));
      continue;
    }
    if (!SI_CHECK_EQ(status, SI_OK)) continue;
    si_model_info info = sized<si_model_info>();
    SI_CHECK_EQ(si_model_describe(model, &info), SI_OK);
    SI_CHECK(reinterpret_cast<const uint8_t*>(info.metadata) >= file.data());
    SI_CHECK(reinterpret_cast<const uint8_t*>(info.metadata) < file.data() + bytes);
    SI_CHECK_EQ(si_context_create(model, memory.data(), zeros.size(), 2, &context), SI_OK);
    SI_CHECK_EQ(small.run(context), SI_OK);
    SI_CHECK(small.y == expected);
    si_model_close(model);
  }
}

// By read and by map, and what is no file.
void test_load() {
#if !SI_FILES
  si_model* none = nullptr;
  SI_CHECK_EQ(si_model_load(kGolden, SI_LOAD_READ, &none), SI_ERR_UNSUPPORTED);
  SI_CHECK(says("built without files"));
  return;
#endif
  for (const si_load how : {SI_LOAD_READ, SI_LOAD_MAP}) {
    si_model* model = nullptr;
    if (!SI_CHECK_EQ(si_model_load(kGolden, how, &model), SI_OK)) continue;
    Small small;
    std::vector<uint8_t> zeros(si_context_bytes(model, 1));
    const AlignedBytes memory(zeros.data(), zeros.size());
    si_context* context = nullptr;
    SI_CHECK_EQ(si_context_create(model, memory.data(), zeros.size(), 1, &context), SI_OK);
    SI_CHECK_EQ(small.run(context), SI_OK);
    si_model_close(model);
    model = nullptr;
    const struct {
      std::string path;
      si_status status;
      const char* part;
    } wrong[] = {{std::string(kGolden) + ".none", SI_ERR_FILE, "No such file"},
                 {SI_SOURCE_DIR, SI_ERR_FILE, "regular file"},
                 {"", SI_ERR_FILE, "open"},
                 {"/dev/null", SI_ERR_FILE, "regular file"},
                 {SI_SOURCE_DIR "/CMakeLists.txt", SI_ERR_CORRUPT, "does not begin"}};
    for (const auto& each : wrong) {
      SI_CHECK_EQ(si_model_load(each.path.c_str(), how, &model), each.status);
      SI_CHECK(says(each.part));
      SI_CHECK(model == nullptr);
    }
    // Short of one byte, and empty.
    for (const bool empty : {false, true}) {
      char path[] = "/tmp/sparseinfer-XXXXXX";
      const int file = mkstemp(path);
      SI_CHECK(file >= 0);
      if (!empty) {
        std::ifstream in(kGolden, std::ios::binary);
        std::string whole((std::istreambuf_iterator<char>(in)), {});
        SI_CHECK_EQ(write(file, whole.data(), whole.size() - 1), static_cast<ssize_t>(whole.size() - 1));
      }
      close(file);
      SI_CHECK_EQ(si_model_load(path, how, &model), SI_ERR_CORRUPT);
      SI_CHECK(model == nullptr);
      unlink(path);
    }
  }
  // A pipe that nobody writes to.
  char folder[] = "/tmp/sparseinfer-XXXXXX";
  SI_CHECK(mkdtemp(folder) != nullptr);
  const std::string pipe = std::string(folder) + "/pipe";
  SI_CHECK_EQ(mkfifo(pipe.c_str(), 0600), 0);
  si_model* model = nullptr;
  SI_CHECK_EQ(si_model_load(pipe.c_str(), SI_LOAD_READ, &model), SI_ERR_FILE);
  SI_CHECK(says("regular file"));
  unlink(pipe.c_str());
  rmdir(folder);
  SI_CHECK_EQ(si_model_load(nullptr, SI_LOAD_READ, &model), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_model_load(kGolden, SI_LOAD_READ, nullptr), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_model_load(kGolden, static_cast<si_load>(2), &model), SI_ERR_ARGUMENT);
}

// How often a callback calls the work that it is given.
struct Calls {
  int calls;  // at each job; -1: on a thread for each that it may
  long jobs = 0;
};

void run_on_callers_threads(void* user, int32_t threads, void (*work)(void*), void* job) {
  auto* const calls = static_cast<Calls*>(user);
  ++calls->jobs;
  std::vector<std::thread> started;
  for (int i = 0; i < (calls->calls < 0 ? threads : calls->calls); ++i) started.emplace_back([=] { work(job); });
  for (std::thread& thread : started) thread.join();
}

// A convolution large enough to be shared out.
struct Large {
  Large() {
    ModelFile file;
    std::vector<float> weight(32 * 16 * 9);
    for (size_t i = 0; i < weight.size(); ++i)
      weight[i] = i % 3 == 0 ? 0.0f : static_cast<float>(i % 13) / 16.0f - 0.25f;
    const uint32_t x = file.input({1, 16, 48, 48});
    file.outputs = {file.node(2, {x, file.packed({32, 16, 3, 3}, weight)}, {1, 32, 48, 48}, {1, 1, 1, 1, 1, 1, 1, 1})};
    bytes = file.bytes();
    model = open(bytes);
    in.resize(16 * 48 * 48);
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 31) / 16.0f - 1.0f;
  }
  std::vector<float> run(const si_context_options& options) {
    const auto size = static_cast<size_t>(si_context_bytes(model.get(), options.threads));
    const Guarded memory(size);
    std::vector<float> out(32 * 48 * 48, -1.0f);
    si_context* context = nullptr;
    SI_CHECK_EQ(si_context_create_with(model.get(), memory.data(), size, &options, &context), SI_OK);
    const void* const inputs[] = {in.data()};
    void* const outputs[] = {out.data()};
    SI_CHECK_EQ(si_context_run(context, inputs, outputs, nullptr), SI_OK);
    return out;
  }
  AlignedBytes bytes;
  OpenModel model;
  std::vector<float> in;
};

// The scalar kernels share nothing out.
bool has_tiles() {
  bool any = false;
  for (size_t i = 0; i < si_isa_count(); ++i) {
    si_isa_info info = sized<si_isa_info>();
    SI_CHECK_EQ(si_isa(i, &info), SI_OK);
    any |= info.supported != 0 && std::strcmp(info.name, "scalar") != 0;
  }
  return any;
}

void test_callers_threads() {
  Large large;
  si_context_options options = sized<si_context_options>();
  options.threads = 1;
  const std::vector<float> expected = large.run(options);
  options.threads = 4;
  SI_CHECK(large.run(options) == expected);
  options.parallel_for = run_on_callers_threads;
  for (const int calls : {-1, 0, 1, 2, 9}) {
    Calls counted{calls};
    options.user = &counted;
    SI_CHECK(large.run(options) == expected);
    SI_CHECK_EQ(counted.jobs > 0, has_tiles());
  }
  // One thread needs nobody.
  Calls none{-1};
  options.user = &none;
  options.threads = 1;
  SI_CHECK(large.run(options) == expected);
  SI_CHECK_EQ(none.jobs, 0);
}

void test_options() {
  Small small;
  std::vector<uint8_t> zeros(si_context_bytes(small.model.get(), 1));
  const AlignedBytes memory(zeros.data(), zeros.size());
  si_context* context = nullptr;
  const auto create = [&](const si_context_options* options) {
    return si_context_create_with(small.model.get(), memory.data(), memory.size(), options, &context);
  };
  si_context_options options = sized<si_context_options>();
  SI_CHECK_EQ(create(nullptr), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(create(&options), SI_ERR_ARGUMENT);
  SI_CHECK(says("threads >= 1"));
  options.threads = 1;
  options.struct_size = 0;
  SI_CHECK_EQ(create(&options), SI_ERR_ARGUMENT);
  SI_CHECK(says("struct_size"));
  options.struct_size = sizeof options;
  SI_CHECK_EQ(create(&options), SI_OK);
  for (const int32_t wrong : {-1, 2}) {
    options.shared_scratch = wrong;
    SI_CHECK_EQ(create(&options), SI_ERR_ARGUMENT);
    SI_CHECK(says("shared_scratch"));
  }
  options.shared_scratch = 0;
  SI_CHECK_EQ(si_context_create_with(nullptr, memory.data(), memory.size(), &options, &context), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_create_with(small.model.get(), nullptr, memory.size(), &options, &context), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_create_with(small.model.get(), memory.data(), memory.size(), &options, nullptr),
              SI_ERR_ARGUMENT);
}

// A call of a context within a call of it.
struct Again {
  si_context* context;
  const void* const* inputs;
  void* const* outputs;
  std::set<si_status> seen;
};

void test_one_call_at_a_time() {
  Small small;
  std::vector<uint8_t> zeros(si_context_bytes(small.model.get(), 1));
  const AlignedBytes memory(zeros.data(), zeros.size());
  Again again{};
  SI_CHECK_EQ(si_context_create(small.model.get(), memory.data(), memory.size(), 1, &again.context), SI_OK);
  SI_CHECK_EQ(small.run(again.context), SI_OK);
  const std::vector<float> expected = small.y;
  std::vector<float> other(24);
  const void* const inputs[] = {small.x.data()};
  void* const outputs[] = {small.y.data(), small.y.data() + 12};
  void* const others[] = {other.data(), other.data() + 12};
  again.inputs = inputs;
  again.outputs = others;
  const si_observer observer = [](void* user, size_t, const void*) {
    auto* const call = static_cast<Again*>(user);
    call->seen.insert(si_context_run(call->context, call->inputs, call->outputs, nullptr));
    call->seen.insert(si_context_selftest(call->context, nullptr));
  };
  small.y.assign(24, 0.0f);
  SI_CHECK_EQ(si_context_watch(again.context, inputs, outputs, observer, &again), SI_OK);
  SI_CHECK(again.seen == std::set<si_status>{SI_ERR_ARGUMENT});
  SI_CHECK(says("runs no other call"));
  SI_CHECK(small.y == expected);
  SI_CHECK_EQ(small.run(again.context), SI_OK);
}

// One model, and a context for each thread.
void test_contexts_beside_one_another() {
  Large large;
  si_context_options options = sized<si_context_options>();
  options.threads = 1;
  const std::vector<float> expected = large.run(options);
  std::vector<std::vector<float>> found(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < found.size(); ++i)
    threads.emplace_back([&, i] {
      si_context_options own = options;
      // Of those that want the library's threads at once, one gets them.
      own.threads = 1 + static_cast<int32_t>(i % 2);
      own.shared_scratch = static_cast<int32_t>(i / 2);
      for (int call = 0; call < 3; ++call) found[i] = large.run(own);
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& each : found) SI_CHECK(each == expected);
}

// Two threads with one context: each call is whole, or refused.
void test_two_threads_on_one_context() {
  Small small;
  const size_t bytes = si_context_bytes(small.model.get(), 1);
  const Guarded memory(bytes);
  si_context* context = nullptr;
  SI_CHECK_EQ(si_context_create(small.model.get(), memory.data(), bytes, 1, &context), SI_OK);
  SI_CHECK_EQ(small.run(context), SI_OK);
  const void* const inputs[] = {small.x.data()};
  std::vector<std::vector<float>> y(2, std::vector<float>(24));
  std::atomic<int> whole{0}, other{0};
  std::vector<std::thread> threads;
  for (std::vector<float>& own : y)
    threads.emplace_back([&] {
      void* const outputs[] = {own.data(), own.data() + 12};
      for (int call = 0; call < 100; ++call) {
        const si_status status = si_context_run(context, inputs, outputs, nullptr);
        if (status == SI_OK && own == small.y)
          ++whole;
        else if (status != SI_ERR_ARGUMENT)
          ++other;
      }
    });
  for (std::thread& thread : threads) thread.join();
  SI_CHECK(whole > 0);
  SI_CHECK_EQ(other.load(), 0);
}

// Of a name that is no file's.
constexpr si_status kUnopened = SI_FILES ? SI_ERR_FILE : SI_ERR_UNSUPPORTED;

void test_errors() {
  SI_CHECK_EQ(si_abi_version(), static_cast<uint32_t>(SI_ABI_VERSION));
  si_model* model = nullptr;
  SI_CHECK_EQ(si_model_load(kGolden, static_cast<si_load>(7), &model), SI_ERR_ARGUMENT);
  si_error error = sized<si_error>(), second = sized<si_error>();
  SI_CHECK_EQ(si_get_error(&error), SI_OK);
  SI_CHECK_EQ(error.status, SI_ERR_ARGUMENT);
  SI_CHECK_EQ(error.text, si_last_error());
  // A later failure leaves the copy alone, and so does another thread's.
  const std::string kept = error.text;
  std::thread([] { SI_CHECK_EQ(si_model_load("/", SI_LOAD_MAP, nullptr), SI_ERR_ARGUMENT); }).join();
  SI_CHECK_EQ(si_get_error(&second), SI_OK);
  SI_CHECK_EQ(second.text, kept);
  SI_CHECK_EQ(si_model_load("/", SI_LOAD_MAP, &model), kUnopened);
  SI_CHECK_EQ(error.text, kept);
  SI_CHECK_EQ(si_get_error(&second), SI_OK);
  SI_CHECK_EQ(second.status, kUnopened);
  // A long message is cut, and ended.
  SI_CHECK_EQ(si_target_named(std::string(5000, 'x').c_str(), nullptr), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_get_error(&second), SI_OK);
  SI_CHECK(std::memchr(second.text, 0, sizeof second.text) != nullptr);
  SI_CHECK_EQ(si_get_error(nullptr), SI_ERR_ARGUMENT);
  second.struct_size = 0;
  SI_CHECK_EQ(si_get_error(&second), SI_ERR_ARGUMENT);
}

}  // namespace

int main() {
  test_context_bytes();
  test_file_in_place();
  test_load();
  test_callers_threads();
  test_options();
  test_one_call_at_a_time();
  test_contexts_beside_one_another();
  test_two_threads_on_one_context();
  test_errors();
  return finish("model_api_test");
}
