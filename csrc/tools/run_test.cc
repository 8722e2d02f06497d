// The program sparseinfer-run as a user calls it.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

// After it: <signal.h> has a macro si_status.
#undef si_status

#include "testing/model_file.h"

using namespace si::testing;

namespace {

// A folder of its own, removed with what the test puts there.
std::string g_folder;

std::string in(const char* name) { return g_folder + "/" + name; }

void put(const std::string& path, const void* bytes, size_t size) {
  std::ofstream out(path, std::ios::binary);
  out.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(size));
  SI_CHECK(out.good());
}

struct Ended {
  int status;
  std::string text;  // of stdout and stderr

  bool says(const char* part) const { return text.find(part) != std::string::npos; }
};

Ended call(const std::string& arguments) {
  const std::string command = SI_RUN_PROGRAM " " + arguments + " 2>&1";
  FILE* const pipe = popen(command.c_str(), "r");
  Ended ended{-1, ""};
  if (!SI_CHECK(pipe != nullptr)) return ended;
  char part[512];
  for (size_t got = 0; (got = std::fread(part, 1, sizeof part, pipe)) != 0;) ended.text.append(part, got);
  const int status = pclose(pipe);
  ended.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ended;
}

void check(const std::string& arguments, int status, const std::vector<const char*>& parts) {
  const Ended ended = call(arguments);
  if (!SI_CHECK_EQ(ended.status, status))
    std::fprintf(stderr, "  of '%s': %s\n", arguments.c_str(), ended.text.c_str());
  for (const char* part : parts)
    if (!SI_CHECK(ended.says(part)))
      std::fprintf(stderr, "  of '%s': expected '%s' in '%s'\n", arguments.c_str(), part, ended.text.c_str());
}

std::vector<float> floats(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), {});
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

void test_outputs(const std::string& model) {
  const AlignedBytes bytes = small_network().bytes();
  const OpenModel opened = open(bytes);
  std::vector<float> x(324), y(12), second(12);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 19) / 4.0f - 2.0f;
  SI_CHECK_EQ(Runner(opened.get(), 1).run({x.data()}, {y.data(), second.data()}), SI_OK);
  put(in("x.raw"), x.data(), x.size() * sizeof(float));
  for (const char* more : {"", " --map", " --threads 3", " --bench 2"}) {
    check(model + " --input " + in("x.raw") + " --output " + in("y.raw") + " --output " + in("z.npy") + more, 0, {});
    SI_CHECK(floats(in("y.raw")) == y);
    const std::vector<float> npy = floats(in("z.npy"));
    SI_CHECK(std::vector<float>(npy.end() - 12, npy.end()) == second);
  }
  // What it writes it reads: the .npy has another shape than the input.
  check(model + " --input " + in("z.npy"), 1, {"[1, 4, 9, 9]", "got [1, 12]"});
  size_t best = 0;
  for (size_t i = 0; i < y.size(); ++i)
    if (y[i] > y[best]) best = i;
  char line[64];
  std::snprintf(line, sizeof line, "t17\n%8zu  %.6g\n", best, static_cast<double>(y[best]));
  check(model + " --input " + in("x.raw"), 0, {line, "t15\n"});
  check(model + " --input " + in("x.raw") + " --top 1", 0, {line});
  check(model + " --input " + in("x.raw") + " --top 99", 0, {"      11  "});
}

void test_what_it_tells(const std::string& model) {
  check(model + " --describe", 0, {"input  0  t0  float32 [1, 4, 9, 9]", "output 1  t15  float32 [1, 12]"});
  check(model + " --selftest", 1, {"without"});
  ModelFile golden = small_network();
  golden.add_golden(1e9f);
  const AlignedBytes bytes = golden.bytes();
  put(in("golden.sinf"), bytes.data(), bytes.size());
  check(in("golden.sinf") + " --selftest", 0, {"passed"});
  golden.add_golden(0.0f);
  const AlignedBytes strict = golden.bytes();
  put(in("strict.sinf"), strict.data(), strict.size());
  check(in("strict.sinf") + " --selftest", 1, {"differs"});

  const AlignedBytes plain = small_network().bytes();
  const OpenModel opened = open(plain);
  char context[64], file[64];
  std::snprintf(context, sizeof context, "%-36s %12llu\n", "context",
                static_cast<unsigned long long>(si_context_bytes(opened.get(), 1)));
  std::snprintf(file, sizeof file, "%-36s %12llu\n", "file, mapped", static_cast<unsigned long long>(plain.size()));
  check(model + " --memory --map", 0, {context, file, "packed weights", "scratch of kernels"});
  check(model + " --memory", 0, {"file, in memory"});
  check(model + " --bench 7", 0, {"runs 7", "p50", "p99", "mean"});
  check(model + " --profile --bench 2", 0, {"softmax", "panel", "n10"});
  check("--help", 0, {"usage:", "--selftest"});
  check("--version", 0, {si_version()});
}

void test_wrong(const std::string& model) {
  check("", 2, {"expected a model file"});
  check(model + " " + model, 2, {"expected one model"});
  check(model + " --what", 2, {"unknown option '--what'"});
  for (const char* option : {"--top", "--bench", "--threads"})
    for (const char* value : {"", "0", "-1", "1x", "99999999999999999999"})
      check(model + " " + option + " '" + value + "'", 2, {option, "expected a number"});
  for (const char* value : {"", "a", "1,2", "1,2,3,4", "1;2;3"})
    check(model + " --mean '" + value + "'", 2, {"--mean"});
  for (const char* value : {"0", "1,1,-1", "nan"}) check(model + " --std '" + value + "'", 2, {"above 0"});
  check(in("none.sinf"), 1, {"No such file"});
  check(g_folder, 1, {"regular file"});
  put(in("text.sinf"), "not a model", 11);
  check(in("text.sinf"), 1, {"corrupt"});
  put(in("short.raw"), "1234", 4);
  check(model + " --input " + in("short.raw"), 1, {"1296 bytes"});
  check(model + " --input " + in("none.raw"), 1, {"none.raw"});
  check(model + " --input " + in("short.raw") + " --input " + in("short.raw"), 1, {"--input 1 times"});
  check(model + " --output a --output b --output c", 1, {"--output at most 2 times"});
  check(model + " --output /none/at/all.npy", 1, {"can be written"});
  put(in("image.ppm"), "P6 1 1 255\n123", 14);
  check(model + " --input " + in("image.ppm"), 1, {"for an image"});
}

}  // namespace

int main() {
  char folder[] = "/tmp/sparseinfer-run-XXXXXX";
  SI_CHECK(mkdtemp(folder) != nullptr);
  g_folder = folder;
  const AlignedBytes bytes = small_network().bytes();
  const std::string model = in("model.sinf");
  put(model, bytes.data(), bytes.size());
  test_outputs(model);
  test_what_it_tells(model);
  test_wrong(model);
  SI_CHECK_EQ(std::system(("rm -r " + g_folder).c_str()), 0);
  return finish("run_test");
}
