/* What a board links beside its model: a file in flash is opened, and run with memory of the program's. `make sizes`
 * builds it, and does not run it. */
#include <sparseinfer.h>

static const unsigned char file[64] __attribute__((aligned(64))) = {1};
static unsigned char memory[1 << 16] __attribute__((aligned(64)));
static float x[1024], y[1024];

int main(void) {
  si_model* model = 0;
  si_context* context = 0;
  const void* inputs[] = {x};
  void* outputs[] = {y};
  if (si_model_open(file, sizeof file, &model) != SI_OK) return 1;
  if (si_context_create(model, memory, sizeof memory, 1, &context) != SI_OK) return 2;
  return si_context_run(context, inputs, outputs, 0) == SI_OK ? 0 : 3;
}
