/* sparseinfer-run: runs a model file from the command line. C99 and the library, nothing else. */
#include <sparseinfer.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "complain.h"
#include "image.h"
#include "npy.h"
#include "tell.h"

static const char kUsage[] =
    "usage: sparseinfer-run MODEL.sinf [options]\n"
    "\n"
    "  --input FILE      of each input of the model, in order: .npy, .ppm, .pgm, .bmp, or raw float32 under any other "
    "name;\n"
    "                    without one, inputs are zeros\n"
    "  --mean R,G,B      of images, whose bytes become (byte / 255 - mean) / deviation; default 0,0,0\n"
    "  --std R,G,B       the deviation; default 1,1,1\n"
    "  --output FILE     of each output in order: .npy, or raw float32 under any other name\n"
    "  --top K           the K largest elements of each output's rows (default 5 where nothing else is asked for)\n"
    "  --bench N         runs N times after one, and tells percentiles of the times\n"
    "  --profile         tells what each node takes, of --bench's runs (default 10) the least\n"
    "  --threads N       default 1\n"
    "  --map             maps the file instead of reading it\n"
    "  --selftest        runs the inputs that the file carries and compares with its outputs\n"
    "  --memory          tells the bytes that the model takes, by kind\n"
    "  --describe        tells its inputs and outputs\n"
    "  --version\n"
    "  --help\n"
    "\n"
    "The exit status is 0, 1 where something fails, and 2 for arguments that are no command.\n";

#define MOST_FILES 64

typedef struct Options {
  const char* model;
  const char* inputs[MOST_FILES];
  const char* outputs[MOST_FILES];
  size_t input_count, output_count;
  Normalisation rule;
  long top, bench, threads;
  int map, profile, selftest, memory, describe;
} Options;

/* What is released at the end, whatever has failed. */
typedef struct Run {
  si_model* model;
  si_model_info info;
  uint64_t context_bytes;
  void* memory; /* of the context, as malloc gave it */
  si_context* context;
  si_tensor_info *input_info, *output_info;
  float **inputs, **outputs;
} Run;

int complain(const char* format, ...) {
  va_list parts;
  va_start(parts, format);
  fputs("sparseinfer-run: ", stderr);
  vfprintf(stderr, format, parts);
  fputc('\n', stderr);
  va_end(parts);
  return 0;
}

static int number(const char* option, const char* text, long least, long most, long* out) {
  char* end = NULL;
  *out = strtol(text, &end, 10);
  if (end != text && *end == '\0' && *out >= least && *out <= most) return 1;
  return complain("expected a number from %ld to %ld after %s, got '%s'", least, most, option, text);
}

/* One number for all channels, or one of each. */
static int channels(const char* option, const char* text, double* out) {
  char* end = NULL;
  int count;
  const char* at = text;
  for (count = 0; count < 3; ++count) {
    out[count] = strtod(at, &end);
    if (end == at || (*end != ',' && *end != '\0')) break;
    if (*end == '\0') {
      if (count == 0) out[1] = out[2] = out[0];
      if (count != 1) return 1;
      break;
    }
    at = end + 1;
  }
  return complain("expected one number or three with commas between them after %s, got '%s'", option, text);
}

static int take_file(const char* option, const char* path, const char** files, size_t* count) {
  if (*count == MOST_FILES) return complain("expected at most %d times %s, got more", MOST_FILES, option);
  files[(*count)++] = path;
  return 1;
}

/* An option with a value after it; -1 where it is none. */
static int take_value(const char* option, const char* value, Options* out) {
  int i, done;
  if (strcmp(option, "--input") == 0) return take_file(option, value, out->inputs, &out->input_count);
  if (strcmp(option, "--output") == 0) return take_file(option, value, out->outputs, &out->output_count);
  if (strcmp(option, "--top") == 0) return number(option, value, 1, 1000000, &out->top);
  if (strcmp(option, "--bench") == 0) return number(option, value, 1, 10000000, &out->bench);
  if (strcmp(option, "--threads") == 0) return number(option, value, 1, 1024, &out->threads);
  if (strcmp(option, "--mean") == 0) return channels(option, value, out->rule.mean);
  if (strcmp(option, "--std") != 0) return -1;
  done = channels(option, value, out->rule.deviation);
  for (i = 0; done && i < 3; ++i)
    if (!(out->rule.deviation[i] > 0)) done = complain("expected deviations above 0 after --std, got '%s'", value);
  return done;
}

static int* flag(const char* option, Options* out) {
  if (strcmp(option, "--map") == 0) return &out->map;
  if (strcmp(option, "--profile") == 0) return &out->profile;
  if (strcmp(option, "--selftest") == 0) return &out->selftest;
  if (strcmp(option, "--memory") == 0) return &out->memory;
  if (strcmp(option, "--describe") == 0) return &out->describe;
  return NULL;
}

static int read_options(int argc, char** argv, Options* out) {
  int i;
  memset(out, 0, sizeof *out);
  out->threads = 1;
  for (i = 0; i < 3; ++i) out->rule.deviation[i] = 1.0;
  for (i = 1; i < argc; ++i) {
    int* const on = flag(argv[i], out);
    if (on != NULL) {
      *on = 1;
    } else if (strncmp(argv[i], "--", 2) != 0) {
      if (out->model != NULL) return complain("expected one model, got '%s' and '%s'", out->model, argv[i]);
      out->model = argv[i];
    } else {
      const int done = take_value(argv[i], i + 1 < argc ? argv[i + 1] : "", out);
      if (done < 0) return complain("unknown option '%s'; try --help", argv[i]);
      if (done == 0) return 0;
      ++i;
    }
  }
  return out->model != NULL ? 1 : complain("expected a model file, got none; try --help");
}

/* The failure of a function of the library. */
static int failed(const char* path) { return complain("%s: %s", path, si_last_error()); }

/* Memory of at least one element; the program has nothing else to do without it. */
static void* take_memory(size_t count, size_t bytes) {
  void* const memory = count <= SIZE_MAX / 2 / bytes ? calloc(count == 0 ? 1 : count, bytes) : NULL;
  if (memory == NULL) complain("out of memory: %zu elements of %zu bytes", count, bytes);
  return memory;
}

static int take_tensors(Run* run, int output, si_tensor_info** infos, float*** elements) {
  const size_t count = output ? run->info.outputs : run->info.inputs;
  size_t i;
  *infos = take_memory(count, sizeof **infos);
  *elements = take_memory(count, sizeof **elements);
  if (*infos == NULL || *elements == NULL) return 0;
  for (i = 0; i < count; ++i) {
    si_tensor_info* const info = *infos + i;
    info->struct_size = sizeof *info;
    if ((output ? si_model_output : si_model_input)(run->model, i, info) != SI_OK) return failed("model");
    if (info->bytes > SIZE_MAX / 2) return complain("'%s' does not fit into this machine's memory", info->name);
    (*elements)[i] = take_memory((size_t)(info->bytes / sizeof(float)), sizeof(float));
    if ((*elements)[i] == NULL) return 0;
  }
  return 1;
}

static int open_model(const Options* options, Run* run) {
  uintptr_t at;
  if (si_abi_version() != SI_ABI_VERSION)
    return complain("expected a library of ABI version %d, got %lu", SI_ABI_VERSION, (unsigned long)si_abi_version());
  if (si_model_load(options->model, options->map ? SI_LOAD_MAP : SI_LOAD_READ, &run->model) != SI_OK)
    return failed(options->model);
  run->info.struct_size = sizeof run->info;
  if (si_model_describe(run->model, &run->info) != SI_OK) return failed(options->model);
  if (options->input_count != 0 && options->input_count != run->info.inputs)
    return complain("expected --input %zu times or never, got it %zu times", run->info.inputs, options->input_count);
  if (options->output_count > run->info.outputs)
    return complain("expected --output at most %zu times, got it %zu times", run->info.outputs, options->output_count);
  run->context_bytes = si_context_bytes(run->model, (int32_t)options->threads);
  if (run->context_bytes > SIZE_MAX / 2)
    return complain("expected a context that fits this machine, got %llu bytes",
                    (unsigned long long)run->context_bytes);
  run->memory = take_memory((size_t)run->context_bytes + 63, 1);
  if (run->memory == NULL) return 0;
  at = ((uintptr_t)run->memory + 63) / 64 * 64;
  if (si_context_create(run->model, (void*)at, (size_t)run->context_bytes, (int32_t)options->threads, &run->context) !=
      SI_OK)
    return failed(options->model);
  return take_tensors(run, 0, &run->input_info, &run->inputs) && take_tensors(run, 1, &run->output_info, &run->outputs);
}

static int ends_with(const char* path, const char* end) {
  const size_t length = strlen(path), tail = strlen(end);
  return length >= tail && strcmp(path + length - tail, end) == 0;
}

static int raw_read(const char* path, const si_tensor_info* tensor, float* out) {
  const size_t count = (size_t)(tensor->bytes / sizeof *out);
  FILE* const file = fopen(path, "rb");
  int done;
  if (file == NULL) return complain("%s: expected a file that can be read, got none", path);
  done = fread(out, sizeof *out, count, file) == count && fgetc(file) == EOF;
  fclose(file);
  return done ? 1
              : complain("%s: expected %llu bytes of float32 for input '%s', got a file that is shorter or longer",
                         path, (unsigned long long)tensor->bytes, tensor->name);
}

static int raw_write(const char* path, const si_tensor_info* tensor, const float* elements) {
  FILE* const file = fopen(path, "wb");
  int done;
  if (file == NULL) return complain("%s: expected a file that can be written, got none", path);
  done = fwrite(elements, 1, (size_t)tensor->bytes, file) == tensor->bytes;
  done = fclose(file) == 0 && done;
  return done ? 1 : complain("%s: expected to write %llu bytes, got an error", path, (unsigned long long)tensor->bytes);
}

static int read_inputs(const Options* options, Run* run) {
  size_t i;
  for (i = 0; i < options->input_count; ++i) {
    const char* const path = options->inputs[i];
    const si_tensor_info* const info = &run->input_info[i];
    int done;
    if (ends_with(path, ".npy"))
      done = npy_read(path, info, run->inputs[i]);
    else if (ends_with(path, ".ppm") || ends_with(path, ".pgm") || ends_with(path, ".bmp"))
      done = image_read(path, &options->rule, info, run->inputs[i]);
    else
      done = raw_read(path, info, run->inputs[i]);
    if (!done) return 0;
  }
  return 1;
}

static int give_outputs(const Options* options, const Run* run) {
  size_t i;
  const int plain = options->output_count == 0 && options->bench == 0 && !options->profile && !options->memory &&
                    !options->describe && !options->selftest;
  for (i = 0; i < options->output_count; ++i) {
    const char* const path = options->outputs[i];
    const si_tensor_info* const info = &run->output_info[i];
    if (!(ends_with(path, ".npy") ? npy_write : raw_write)(path, info, run->outputs[i])) return 0;
  }
  for (i = 0; (plain || options->top != 0) && i < run->info.outputs; ++i)
    if (!tell_top(&run->output_info[i], run->outputs[i], options->top != 0 ? (size_t)options->top : 5)) return 0;
  return 1;
}

static int work(const Options* options, Run* run) {
  const void* const* inputs;
  void* const* outputs;
  double worst = 0.0;
  if (!open_model(options, run)) return 0;
  inputs = (const void* const*)run->inputs;
  outputs = (void* const*)run->outputs;
  if (options->describe) tell_tensors(&run->info, run->input_info, run->output_info);
  if (options->selftest) {
    if (si_context_selftest(run->context, &worst) != SI_OK) return failed(options->model);
    printf("selftest  passed, largest difference %.3g of its bound\n", worst);
  }
  if (!read_inputs(options, run)) return 0;
  if (si_context_run(run->context, inputs, outputs, NULL) != SI_OK) return failed(options->model);
  if (options->memory && !tell_memory(run->model, &run->info, run->context_bytes, options->map)) return 0;
  if (options->bench != 0 && !bench(run->context, inputs, outputs, (size_t)options->bench)) return 0;
  if (options->profile &&
      !profile(run->model, run->context, inputs, outputs, options->bench != 0 ? (size_t)options->bench : 10))
    return 0;
  return give_outputs(options, run);
}

static void release(Run* run) {
  size_t i;
  for (i = 0; run->inputs != NULL && i < run->info.inputs; ++i) free(run->inputs[i]);
  for (i = 0; run->outputs != NULL && i < run->info.outputs; ++i) free(run->outputs[i]);
  free(run->inputs);
  free(run->outputs);
  free(run->input_info);
  free(run->output_info);
  free(run->memory);
  si_model_close(run->model);
  si_release_scratch();
}

int main(int argc, char** argv) {
  Options options;
  Run run;
  int i, done;
  for (i = 1; i < argc; ++i) {
    if (strcmp(argv[i], "--help") == 0) return fputs(kUsage, stdout) == EOF;
    if (strcmp(argv[i], "--version") == 0) return printf("sparseinfer-run %s\n", si_version()) < 0;
  }
  if (!read_options(argc, argv, &options)) return 2;
  memset(&run, 0, sizeof run);
  done = work(&options, &run);
  release(&run);
  if (fflush(stdout) != 0) done = complain("expected to write to stdout, got an error");
  return done ? 0 : 1;
}
