/* Classifies a PPM image: classify MODEL.sinf IMAGE.ppm. The model takes one image [1][3][height][width] of values from
 * 0 to 1 and gives a score a class; the image has its size.
 *
 *   cc classify.c $(pkg-config --cflags --libs sparseinfer) -o classify
 */
#include <sparseinfer.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const char* what) {
  fprintf(stderr, "classify: %s\n", what);
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 3) return failed("expected a model and an image");
  si_model* model = NULL;
  if (si_model_load(argv[1], SI_LOAD_MAP, &model) != SI_OK) return failed(si_last_error());
  si_tensor_info in = {.struct_size = sizeof in}, out = {.struct_size = sizeof out};
  if (si_model_input(model, 0, &in) != SI_OK || si_model_output(model, 0, &out) != SI_OK)
    return failed(si_last_error());
  if (in.ndim != 4 || in.shape[0] != 1 || in.shape[1] != 3) return failed("expected a model of one image");

  long width = 0, height = 0;
  const size_t pixels = (size_t)(in.shape[2] * in.shape[3]);
  FILE* image = fopen(argv[2], "rb");
  if (image == NULL || fscanf(image, "P6 %ld %ld 255", &width, &height) != 2 || fgetc(image) == EOF)
    return failed("expected a binary PPM of bytes");
  if (height != in.shape[2] || width != in.shape[3]) return failed("expected an image of the model's size");

  /* Everything that a run writes: the context, and the tensors. */
  const size_t bytes = (size_t)si_context_bytes(model, 1);
  void* memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
  float *x = malloc((size_t)in.bytes), *y = malloc((size_t)out.bytes);
  if (memory == NULL || x == NULL || y == NULL) return failed("out of memory");
  for (size_t i = 0; i < 3 * pixels; ++i) {
    const int byte = fgetc(image);
    if (byte == EOF) return failed("expected more pixels");
    x[i % 3 * pixels + i / 3] = (float)byte / 255.0f;
  }
  fclose(image);

  si_context* context = NULL;
  const void* inputs[] = {x};
  void* outputs[] = {y};
  if (si_context_create(model, memory, bytes, 1, &context) != SI_OK) return failed(si_last_error());
  if (si_context_run(context, inputs, outputs, NULL) != SI_OK) return failed(si_last_error());
  size_t best = 0;
  for (size_t i = 1; i < out.bytes / sizeof(float); ++i)
    if (y[i] > y[best]) best = i;
  printf("class %zu, score %g\n", best, (double)y[best]);
  si_model_close(model);
  return 0;
}
