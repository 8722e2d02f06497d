#include "image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "complain.h"

/* What a reader fills in: the image is the tensor's size, or it is refused before a pixel is read. */
typedef struct Target {
  const char* path;
  const Normalisation* rule;
  int64_t channels, height, width;
  float* out;
} Target;

static void put(const Target* target, int64_t row, int64_t column, int channel, double level) {
  const double mean = target->rule->mean[channel], deviation = target->rule->deviation[channel];
  target->out[(channel * target->height + row) * target->width + column] = (float)((level - mean) / deviation);
}

static int check_size(const Target* target, int64_t channels, int64_t height, int64_t width) {
  if (channels == target->channels && height == target->height && width == target->width) return 1;
  return complain(
      "%s: expected an image of %lld x %lld pixels and %lld channels, got %lld x %lld and %lld; try resizing it",
      target->path, (long long)target->width, (long long)target->height, (long long)target->channels, (long long)width,
      (long long)height, (long long)channels);
}

/* A number of a PPM header: spaces and comments before it, one space after it. -1 where there is none. */
static int64_t header_number(FILE* file) {
  int64_t number = 0;
  int digits = 0, c = fgetc(file);
  while (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '#') {
    if (c == '#')
      while (c != '\n' && c != EOF) c = fgetc(file);
    c = fgetc(file);
  }
  for (; c >= '0' && c <= '9' && digits < 9; ++digits, c = fgetc(file)) number = 10 * number + (c - '0');
  return digits > 0 && (c == ' ' || c == '\t' || c == '\n' || c == '\r') ? number : -1;
}

static int read_pnm(FILE* file, int channels, const Target* target) {
  const int64_t width = header_number(file), height = header_number(file), most = header_number(file);
  int64_t row, column;
  int channel;
  if (width < 1 || height < 1 || most < 1 || most > 255)
    return complain("%s: expected a size and a largest value up to 255, got a header without", target->path);
  if (!check_size(target, channels, height, width)) return 0;
  for (row = 0; row < height; ++row)
    for (column = 0; column < width; ++column)
      for (channel = 0; channel < channels; ++channel) {
        const int byte = fgetc(file);
        if (byte == EOF)
          return complain("%s: expected %lld rows, it ends in row %lld", target->path, (long long)height,
                          (long long)row);
        put(target, row, column, channel, (double)byte / (double)most);
      }
  return 1;
}

static uint32_t word(const unsigned char* at) {
  return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Rows of blue, green and red bytes, from the bottom unless the height is negative, each filled up to four bytes. */
static int read_bmp(FILE* file, const Target* target) {
  unsigned char header[54];
  unsigned char pixel[4];
  int64_t width, height, row, column, rest;
  uint32_t begin, bits, bytes;
  int upwards;
  memcpy(header, "BM", 2);
  if (fread(header + 2, 1, sizeof header - 2, file) != sizeof header - 2)
    return complain("%s: expected a BMP header, the file ends in it", target->path);
  begin = word(header + 10);
  width = (int32_t)word(header + 18);
  height = (int32_t)word(header + 22);
  bits = header[28] | (uint32_t)header[29] << 8;
  if (word(header + 14) < 40 || (bits != 24 && bits != 32) || word(header + 30) != 0)
    return complain("%s: expected a BMP of 24 or 32 bits a pixel, not compressed, got another kind", target->path);
  upwards = height > 0;
  if (height < 0) height = -height;
  if (!check_size(target, 3, height, width)) return 0;
  if (begin < sizeof header || begin > 1 << 20 || fseek(file, (long)begin, SEEK_SET) != 0)
    return complain("%s: expected pixels within the file, got them at byte %lu", target->path, (unsigned long)begin);
  bytes = bits / 8;
  for (row = 0; row < height; ++row) {
    for (column = 0; column < width; ++column) {
      int channel;
      if (fread(pixel, 1, bytes, file) != bytes)
        return complain("%s: expected %lld rows, it ends in row %lld", target->path, (long long)height, (long long)row);
      for (channel = 0; channel < 3; ++channel)
        put(target, upwards ? height - 1 - row : row, column, channel, pixel[2 - channel] / 255.0);
    }
    for (rest = width * bytes; rest % 4 != 0; ++rest)
      if (fgetc(file) == EOF && row + 1 < height)
        return complain("%s: expected %lld rows, it ends in row %lld", target->path, (long long)height, (long long)row);
  }
  return 1;
}

static int read_image(FILE* file, const Target* target) {
  const int first = fgetc(file), second = fgetc(file);
  if (first == 'P' && (second == '6' || second == '5')) return read_pnm(file, second == '6' ? 3 : 1, target);
  if (first == 'B' && second == 'M') return read_bmp(file, target);
  return complain("%s: expected a binary PPM or PGM, or a BMP, got another kind of file", target->path);
}

int image_read(const char* path, const Normalisation* rule, const si_tensor_info* tensor, float* out) {
  Target target;
  FILE* file;
  int done;
  if (tensor->ndim != 4 || tensor->shape[0] != 1 || (tensor->shape[1] != 1 && tensor->shape[1] != 3))
    return complain(
        "%s: expected an input of 1 x 1 or 3 channels x height x width for an image, '%s' is none; try a .npy", path,
        tensor->name);
  target.path = path;
  target.rule = rule;
  target.channels = tensor->shape[1];
  target.height = tensor->shape[2];
  target.width = tensor->shape[3];
  target.out = out;
  file = fopen(path, "rb");
  if (file == NULL) return complain("%s: expected a file that can be read, got none", path);
  done = read_image(file, &target);
  fclose(file);
  return done;
}
