#include "npy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "complain.h"

/* numpy writes headers of 128 bytes. */
#define MOST_HEADER 4096

static const unsigned char kMagic[6] = {0x93, 'N', 'U', 'M', 'P', 'Y'};

typedef struct Header {
  char descr[8];
  int fortran_order;
  int ndim;
  uint64_t shape[8];
} Header;

/* What is left of the header's text, which a zero byte ends. */
typedef struct Text {
  const char* at;
} Text;

static void skip_spaces(Text* text) {
  while (*text->at == ' ' || *text->at == '\n' || *text->at == '\t') ++text->at;
}

static int take(Text* text, char wanted) {
  skip_spaces(text);
  if (*text->at != wanted) return 0;
  ++text->at;
  return 1;
}

/* 'text' or "text", of fewer than `most` characters. */
static int take_string(Text* text, char* out, size_t most) {
  char quote;
  size_t count = 0;
  skip_spaces(text);
  quote = *text->at;
  if (quote != '\'' && quote != '"') return 0;
  for (++text->at; *text->at != quote; ++text->at) {
    if (*text->at == '\0' || count + 1 >= most) return 0;
    out[count++] = *text->at;
  }
  out[count] = '\0';
  ++text->at;
  return 1;
}

static int take_flag(Text* text, int* out) {
  skip_spaces(text);
  *out = strncmp(text->at, "True", 4) == 0;
  if (!*out && strncmp(text->at, "False", 5) != 0) return 0;
  text->at += *out ? 4 : 5;
  return 1;
}

/* (), (3,), (3, 4) */
static int take_shape(Text* text, Header* out) {
  out->ndim = 0;
  if (!take(text, '(')) return 0;
  while (!take(text, ')')) {
    uint64_t size = 0;
    if (out->ndim == 8 || *text->at < '0' || *text->at > '9') return 0;
    for (; *text->at >= '0' && *text->at <= '9'; ++text->at) {
      if (size > UINT64_MAX / 16) return 0;
      size = 10 * size + (uint64_t)(*text->at - '0');
    }
    out->shape[out->ndim++] = size;
    if (!take(text, ',') && *text->at != ')') return 0;
  }
  return 1;
}

/* A dictionary of the three keys, in any order, each once. */
static int parse(const char* header, Header* out) {
  Text text = {header};
  int seen = 0;
  if (!take(&text, '{')) return 0;
  while (!take(&text, '}')) {
    char key[16];
    int which;
    if (!take_string(&text, key, sizeof key) || !take(&text, ':')) return 0;
    if (strcmp(key, "descr") == 0 && take_string(&text, out->descr, sizeof out->descr))
      which = 1;
    else if (strcmp(key, "fortran_order") == 0 && take_flag(&text, &out->fortran_order))
      which = 2;
    else if (strcmp(key, "shape") == 0 && take_shape(&text, out))
      which = 4;
    else
      return 0;
    if (seen & which) return 0;
    seen |= which;
    skip_spaces(&text);
    if (!take(&text, ',') && *text.at != '}') return 0;
  }
  skip_spaces(&text);
  return seen == 7 && *text.at == '\0';
}

static int read_header(FILE* file, Header* out) {
  unsigned char begin[12];
  char text[MOST_HEADER + 1];
  size_t length, wide;
  if (fread(begin, 1, 8, file) != 8 || memcmp(begin, kMagic, sizeof kMagic) != 0) return 0;
  if (begin[6] < 1 || begin[6] > 3 || begin[7] != 0) return 0;
  wide = begin[6] == 1 ? 2 : 4;
  if (fread(begin + 8, 1, wide, file) != wide) return 0;
  length = begin[8] | (size_t)begin[9] << 8;
  if (wide == 4) {
    if (begin[10] != 0 || begin[11] != 0) return 0;
  }
  if (length > MOST_HEADER || fread(text, 1, length, file) != length) return 0;
  text[length] = '\0';
  /* A zero byte within would end the text early. */
  return strlen(text) == length && parse(text, out);
}

/* "[1, 3, 224, 224]" */
static const char* show(const int64_t* shape, int ndim, char* out, size_t bytes) {
  size_t used = 0;
  int i;
  out[used++] = '[';
  for (i = 0; i < ndim; ++i)
    used += (size_t)snprintf(out + used, bytes - used, "%s%lld", i == 0 ? "" : ", ", (long long)shape[i]);
  snprintf(out + used, bytes - used, "]");
  return out;
}

static int same_shape(const Header* header, const si_tensor_info* tensor) {
  int i;
  if (header->ndim != tensor->ndim) return 0;
  for (i = 0; i < header->ndim; ++i)
    if (header->shape[i] != (uint64_t)tensor->shape[i]) return 0;
  return 1;
}

static int read_elements(FILE* file, int bytes, size_t count, float* out) {
  /* Bytes go to the end of the array first, and are widened from its beginning: none is overwritten before it is read.
   */
  unsigned char* const narrow = (unsigned char*)out + 3 * count;
  size_t i;
  if (!bytes) return fread(out, sizeof *out, count, file) == count;
  if (fread(narrow, 1, count, file) != count) return 0;
  for (i = 0; i < count; ++i) out[i] = narrow[i];
  return 1;
}

static int read_array(FILE* file, const char* path, const si_tensor_info* tensor, float* out) {
  Header header;
  char wanted[256], got[256];
  const size_t count = (size_t)(tensor->bytes / sizeof *out);
  int bytes;
  memset(&header, 0, sizeof header);
  if (!read_header(file, &header)) return complain("%s: expected a .npy file, got another or a damaged header", path);
  bytes = strcmp(header.descr, "|u1") == 0;
  if (!bytes && strcmp(header.descr, "<f4") != 0)
    return complain("%s: expected float32 ('<f4') or uint8 ('|u1'), got '%s'; try array.astype('float32')", path,
                    header.descr);
  if (header.fortran_order)
    return complain("%s: expected C order, got Fortran order; try numpy.ascontiguousarray", path);
  if (!same_shape(&header, tensor))
    return complain("%s: expected an array of shape %s for input '%s', got %s", path,
                    show(tensor->shape, tensor->ndim, wanted, sizeof wanted), tensor->name,
                    show((const int64_t*)header.shape, header.ndim, got, sizeof got));
  if (!read_elements(file, bytes, count, out) || fgetc(file) != EOF)
    return complain("%s: expected %zu elements, got a file that is shorter or longer", path, count);
  return 1;
}

int npy_read(const char* path, const si_tensor_info* tensor, float* out) {
  FILE* const file = fopen(path, "rb");
  int done;
  if (file == NULL) return complain("%s: expected a file that can be read, got none", path);
  done = read_array(file, path, tensor, out);
  fclose(file);
  return done;
}

int npy_write(const char* path, const si_tensor_info* tensor, const float* elements) {
  char dictionary[320], shape[256];
  FILE* const file = fopen(path, "wb");
  const size_t count = (size_t)(tensor->bytes / sizeof *elements);
  unsigned char begin[10];
  size_t length, padded;
  int i, done;
  size_t used = 0;
  if (file == NULL) return complain("%s: expected a file that can be written, got none", path);
  shape[0] = '\0';
  for (i = 0; i < tensor->ndim; ++i)
    used += (size_t)snprintf(shape + used, sizeof shape - used, "%lld, ", (long long)tensor->shape[i]);
  length = (size_t)snprintf(dictionary, sizeof dictionary, "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }",
                            shape);
  /* The elements begin at a multiple of 64 bytes, after a line end. */
  padded = (sizeof begin + length + 1 + 63) / 64 * 64 - sizeof begin;
  memcpy(begin, kMagic, sizeof kMagic);
  begin[6] = 1;
  begin[7] = 0;
  begin[8] = (unsigned char)(padded & 255);
  begin[9] = (unsigned char)(padded >> 8);
  done = fwrite(begin, 1, sizeof begin, file) == sizeof begin && fwrite(dictionary, 1, length, file) == length;
  for (; done && length + 1 < padded; ++length) done = fputc(' ', file) != EOF;
  done = done && fputc('\n', file) != EOF && fwrite(elements, sizeof *elements, count, file) == count;
  done = fclose(file) == 0 && done;
  return done ? 1 : complain("%s: expected to write %zu elements, got an error", path, count);
}
