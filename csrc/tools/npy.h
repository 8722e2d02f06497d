/* Arrays in .npy files, as numpy writes them (format versions 1 to 3). */
#ifndef SPARSEINFER_TOOLS_NPY_H
#define SPARSEINFER_TOOLS_NPY_H

#include <sparseinfer.h>

/* Reads an array of the tensor's shape, of little-endian float32 or of uint8, into `out`, a float an element. 0, with a
 * line on stderr, where the file is anything else, longer or shorter. */
int npy_read(const char* path, const si_tensor_info* tensor, float* out);
/* Writes float32 elements. */
int npy_write(const char* path, const si_tensor_info* tensor, const float* elements);

#endif
