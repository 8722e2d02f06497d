/* A C program that packs a weight and runs it. The ctest `c_caller` links it without a C++ runtime. */
#include <sparseinfer.h>
#include <stdio.h>

static int failed(const char* what) {
  fprintf(stderr, "c_caller: %s: %s\n", what, si_last_error());
  return 1;
}

int main(void) {
  /* The row m has the one value m + 1, in column 2 m. */
  float weight[4 * 8] = {0}, x[3 * 8], y[3 * 4];
  for (int m = 0; m < 4; ++m) weight[m * 8 + 2 * m] = (float)(m + 1);
  for (int i = 0; i < 3 * 8; ++i) x[i] = (float)i;

  si_target board = {.struct_size = sizeof board};
  if (si_target_named("aarch64-neon", &board) != SI_OK) return failed("si_target_named");
  const si_weight_desc desc = {2, {4, 8, 0, 0}, 1};
  const si_pack_options options = {
      .struct_size = sizeof options, .format = SI_FORMAT_PANEL, .kblock = SI_KBLOCK_AUTO, .target = &board};
  void* blob = NULL;
  size_t bytes = 0;
  if (si_pack(weight, &desc, &options, &blob, &bytes) != SI_OK) return failed("si_pack");
  si_weights* weights = NULL;
  if (si_weights_open(blob, bytes, &weights) != SI_OK) return failed("si_weights_open");

  si_linear_args args = {.struct_size = sizeof args, .x = x, .y = y, .n = 3, .ldx = 8, .ldy = 4, .row = SI_ROW_BEST};
  args.threads = 2;
  if (si_linear(weights, &args) != SI_OK) return failed("si_linear");
  for (int n = 0; n < 3; ++n)
    for (int m = 0; m < 4; ++m)
      if (y[n * 4 + m] != (float)((m + 1) * (8 * n + 2 * m))) return failed("a wrong result");

  args.n = -1;
  if (si_linear(weights, &args) != SI_ERR_ARGUMENT) return failed("n = -1 was accepted");
  si_weights_close(weights);
  si_free(blob);
  puts("c_caller: passed");
  return 0;
}
