/* Opens a model file and runs it once; what the projects beside it build. */
#include <sparseinfer.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char** argv) {
  static float x[324], y[2][12];
  const void* inputs[] = {x};
  void* outputs[] = {y[0], y[1]};
  si_model* model = NULL;
  si_context* context = NULL;
  char* memory;
  size_t bytes, skip;
  if (argc != 2 || si_abi_version() != SI_ABI_VERSION) return 2;
  if (si_model_load(argv[1], SI_LOAD_MAP, &model) != SI_OK) return fprintf(stderr, "%s\n", si_last_error());
  bytes = (size_t)si_context_bytes(model, 2);
  memory = malloc(bytes + 63);
  skip = (64 - (size_t)memory % 64) % 64;
  if (memory == NULL || si_context_create(model, memory + skip, bytes, 2, &context) != SI_OK ||
      si_context_run(context, inputs, outputs, NULL) != SI_OK)
    return fprintf(stderr, "%s\n", si_last_error());
  printf("%s %.4f\n", si_version(), y[0][0]);
  si_model_close(model);
  free(memory);
  return 0;
}
