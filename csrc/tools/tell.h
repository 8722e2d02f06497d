/* What the program prints of a model. */
#ifndef SPARSEINFER_TOOLS_TELL_H
#define SPARSEINFER_TOOLS_TELL_H

#include <sparseinfer.h>

void tell_tensors(const si_model_info* model, const si_tensor_info* inputs, const si_tensor_info* outputs);
/* The bytes that a model takes, by kind, after a run; 0, with a line on stderr, where the library fails. */
int tell_memory(const si_model* model, const si_model_info* info, uint64_t context_bytes, int mapped);
/* The `most` largest elements of each row of the last dimension, with their places; 0 where memory ends. */
int tell_top(const si_tensor_info* output, const float* elements, size_t most);

#endif
