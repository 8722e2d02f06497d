/* Images in PPM, PGM (binary) and BMP (24 or 32 bits, not compressed) files. */
#ifndef SPARSEINFER_TOOLS_IMAGE_H
#define SPARSEINFER_TOOLS_IMAGE_H

#include <sparseinfer.h>

/* What becomes of a byte of channel c (red, green, blue): (byte / 255 - mean[c]) / deviation[c]. */
typedef struct Normalisation {
  double mean[3], deviation[3];
} Normalisation;

/* Reads an image into a tensor [1][channels][height][width] of 1 or 3 channels, whose size it must have. 0, with a line
 * on stderr, where it is no such image. */
int image_read(const char* path, const Normalisation* rule, const si_tensor_info* tensor, float* out);

#endif
