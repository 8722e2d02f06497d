#include "tell.h"

#include <stdio.h>
#include <stdlib.h>

#include "complain.h"

static void tell_tensor(const char* role, size_t index, const si_tensor_info* info) {
  int i;
  printf("%s %zu  %s  float32 [", role, index, info->name);
  for (i = 0; i < info->ndim; ++i) printf("%s%lld", i == 0 ? "" : ", ", (long long)info->shape[i]);
  printf("]\n");
}

void tell_tensors(const si_model_info* model, const si_tensor_info* inputs, const si_tensor_info* outputs) {
  size_t i;
  for (i = 0; i < model->inputs; ++i) tell_tensor("input ", i, &inputs[i]);
  for (i = 0; i < model->outputs; ++i) tell_tensor("output", i, &outputs[i]);
}

static void tell_bytes(const char* what, uint64_t bytes) { printf("%-36s %12llu\n", what, (unsigned long long)bytes); }

int tell_memory(const si_model* model, const si_model_info* info, uint64_t context_bytes, int mapped) {
  uint64_t packed = 0, plain = 0, inputs = 0, outputs = 0;
  size_t i;
  for (i = 0; i < info->tensors; ++i) {
    si_tensor_info tensor;
    tensor.struct_size = sizeof tensor;
    if (si_model_tensor(model, i, &tensor) != SI_OK) return complain("%s", si_last_error());
    if (tensor.kind == SI_TENSOR_INPUT) inputs += tensor.bytes;
    if (tensor.kind == SI_TENSOR_CONSTANT) *(tensor.format[0] != '\0' ? &packed : &plain) += tensor.bytes;
  }
  for (i = 0; i < info->outputs; ++i) {
    si_tensor_info tensor;
    tensor.struct_size = sizeof tensor;
    if (si_model_output(model, i, &tensor) != SI_OK) return complain("%s", si_last_error());
    outputs += tensor.bytes;
  }
  tell_bytes(mapped ? "file, mapped" : "file, in memory", info->bytes);
  tell_bytes("  packed weights", packed);
  tell_bytes("  other constants", plain);
  tell_bytes("  golden inputs and outputs", info->golden_bytes);
  tell_bytes("  records, names, padding", info->bytes - packed - plain - info->golden_bytes);
  tell_bytes("context", context_bytes);
  tell_bytes("  intermediate results", info->arena_bytes);
  tell_bytes("  tables", info->context_bytes - info->arena_bytes);
  tell_bytes("  scratch of kernels", context_bytes - info->context_bytes);
  tell_bytes("inputs", inputs);
  tell_bytes("outputs", outputs);
  return 1;
}

int tell_top(const si_tensor_info* output, const float* elements, size_t most) {
  const size_t count = (size_t)(output->bytes / sizeof *elements);
  const size_t width = output->ndim == 0 ? 1 : (size_t)output->shape[output->ndim - 1];
  size_t row, place, k;
  unsigned char* const told = malloc(width);
  if (told == NULL) return complain("out of memory: %zu bytes", width);
  if (most > width) most = width;
  for (row = 0; row < count / width; ++row) {
    const float* const x = elements + row * width;
    printf("%s", output->name);
    if (count > width) printf(" row %zu", row);
    printf("\n");
    for (place = 0; place < width; ++place) told[place] = 0;
    for (k = 0; k < most; ++k) {
      size_t best = width;
      /* A NaN is larger than nothing, so it comes last. */
      for (place = 0; place < width; ++place)
        if (!told[place] && (best == width || x[place] > x[best] || (x[best] != x[best] && x[place] == x[place])))
          best = place;
      told[best] = 1;
      printf("%8zu  %.6g\n", best, (double)x[best]);
    }
  }
  free(told);
  return 1;
}
