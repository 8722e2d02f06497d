/* sparseinfer: sparse inference kernels for pruned neural networks.
 *
 * The one public header: a C API with opaque handles and status codes. No function throws, aborts or prints;
 * a function that fails returns a status other than SI_OK and leaves a message for si_last_error().
 *
 * A struct that begins with `struct_size` may grow at its end in later versions. The caller sets struct_size to the
 * sizeof that it was compiled with. Of an argument struct, fields past that size are taken as zero; where the library
 * is the older one, fields that it does not know must be zero. Of a result, the fields that both know are filled in.
 *
 * Letters: M output rows, K input columns (of one group), N tokens or pixels, nnz non-zero elements.
 */
#ifndef SPARSEINFER_H
#define SPARSEINFER_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define SI_API
#else
#define SI_API __attribute__((visibility("default")))
#endif

/* In C++ every int is a value of an enum with a fixed type, so that a bad one can be checked instead of being
 * undefined. */
#ifdef __cplusplus
#define SI_ENUM(name) enum name : int
extern "C" {
#else
#define SI_ENUM(name) enum name
#endif

typedef SI_ENUM(si_status){SI_OK = 0,
                           SI_ERR_ARGUMENT = 1,    /* a size, pointer or option that no call accepts */
                           SI_ERR_CORRUPT = 2,     /* a packed buffer that fails validation */
                           SI_ERR_UNSUPPORTED = 3, /* well formed, but no kernel here can run it */
                           SI_ERR_MEMORY = 4,
                           SI_ERR_INTERNAL = 5,
                           SI_ERR_FILE = 6 /* a file that cannot be opened or read */} si_status;

/* The message of the last failure on the calling thread; "" if none. Valid until the next failure on it. */
SI_API const char* si_last_error(void);

/* The last failure in memory of the caller's, which later failures leave alone. */
typedef struct si_error {
  size_t struct_size;
  si_status status; /* SI_OK where nothing has failed on this thread */
  char text[1012];  /* of si_last_error, cut where it is longer, with a zero byte at its end */
} si_error;

/* Copies the last failure of the calling thread. SI_ERR_ARGUMENT, which replaces that failure: `out` is NULL or its
 * struct_size is not set. */
SI_API si_status si_get_error(si_error* out);

SI_API const char* si_version(void);

/* The interface that a program is compiled against. It changes where a function or a struct of an earlier header stops
 * working, and only there; structs that grow at their ends and new functions leave it. */
#define SI_ABI_VERSION 1
/* That of the library, which must be SI_ABI_VERSION: a program that may meet another shared library asks at its start.
 */
SI_API uint32_t si_abi_version(void);

typedef SI_ENUM(si_op){SI_OP_LINEAR = 0, SI_OP_CONV = 1} si_op;
typedef SI_ENUM(si_format){SI_FORMAT_CSR = 1, SI_FORMAT_PANEL = 2, SI_FORMAT_NM = 3, SI_FORMAT_BSR = 4} si_format;
typedef SI_ENUM(si_value_type){
    SI_F32 = 0, SI_F16 = 1, SI_BF16 = 2, SI_I8 = 3, /* of weights: a scale a row */
    SI_U8 = 4,                                      /* of x and y: si_quantization */
    SI_I64 = 5, SI_BOOL = 6} si_value_type;         /* of a model's inputs: ids, and masks of bytes */

/* ---- Targets: the machines that weights are packed for ----------------------------------------------- */

/* Bits of si_target.features. */
#define SI_CPU_AVX2 (UINT64_C(1) << 0)
#define SI_CPU_FMA (UINT64_C(1) << 1)
#define SI_CPU_F16C (UINT64_C(1) << 2)
#define SI_CPU_BMI2 (UINT64_C(1) << 3)
#define SI_CPU_AVX512F (UINT64_C(1) << 4)
#define SI_CPU_AVX512BW (UINT64_C(1) << 5)
#define SI_CPU_AVX512DQ (UINT64_C(1) << 6)
#define SI_CPU_AVX512VL (UINT64_C(1) << 7)
#define SI_CPU_AVX512_VNNI (UINT64_C(1) << 8)
#define SI_CPU_AVX512_BF16 (UINT64_C(1) << 9)
#define SI_CPU_NEON (UINT64_C(1) << 10)
#define SI_CPU_FP16 (UINT64_C(1) << 11) /* arithmetic on float16 vectors */
#define SI_CPU_DOTPROD (UINT64_C(1) << 12)
#define SI_CPU_AVX_VNNI (UINT64_C(1) << 13) /* of 256 bits, without AVX-512 */

/* "avx512f" for bit 4 of the features, and so on; NULL past the last. */
SI_API const char* si_feature_name(size_t bit);

typedef struct si_target {
  size_t struct_size;
  const char* name;  /* "aarch64-neon"; NULL for one that the caller describes */
  uint64_t features; /* SI_CPU_... */
  int64_t l1, l2;    /* bytes of the data caches that a core has to itself; 0: not known */
  int32_t threads;   /* 0: not known */
} si_target;

/* The named targets, the first of which is "host": the machine that runs this. The others are the same everywhere. */
SI_API size_t si_target_count(void);
SI_API si_status si_target_at(size_t index, si_target* out);
/* SI_ERR_ARGUMENT for an unknown name lists the known ones. */
SI_API si_status si_target_named(const char* name, si_target* out);

/* ---- What this machine offers ---------------------------------------------------------------------- */

typedef struct si_isa_info {
  size_t struct_size;
  const char* name;   /* "scalar", "avx2", "avx512", "neon" */
  int compiled;       /* built into this library */
  int supported;      /* and this CPU runs it, and SPARSEINFER_ISA does not forbid it */
  const char* reason; /* why not supported; "" if it is */
  uint64_t features;  /* what it needs, SI_CPU_... */
} si_isa_info;

SI_API size_t si_isa_count(void);
SI_API si_status si_isa(size_t index, si_isa_info* out);

/* "gomp (...)": the OpenMP runtime already loaded in the process; "pool": the library's own threads; "none": it was
 * built without threads. */
SI_API const char* si_threads_backend(void);

/* Kernels copy and pack into scratch that each thread keeps for its next call: at most 20 MB a thread, however large an
 * image, a signal or a batch is (more only where 16 columns of x take more than 16 MB, or a weight has more than a
 * million rows). si_release_scratch gives the scratch of every thread back to the system, of those at work when their
 * call ends; any thread may call it at any time. si_scratch_bytes: what all threads hold now. */
SI_API void si_release_scratch(void);
SI_API size_t si_scratch_bytes(void);

/* One line of the kernel registry, best first. */
typedef struct si_row_info {
  size_t struct_size;
  const char* name; /* "panel.linear.avx512" */
  si_format format;
  si_op op;
  const char* dtype;     /* "float32", "int8" or "bfloat16" (pairs of weights): what it multiplies */
  const char* isa;       /* "avx512" */
  const char* reason;    /* why it cannot run on this machine; "" if it can */
  uint32_t x_types;      /* of each si_value_type that it takes, the bit 1 << type */
  uint32_t weight_types; /* likewise */
  uint32_t y_types;      /* likewise */
} si_row_info;

SI_API size_t si_row_count(void);
SI_API si_status si_row(size_t index, si_row_info* out);
/* The first row that computes this format and operation in float32 here; SI_ERR_UNSUPPORTED lists every row with its
 * reason. */
SI_API si_status si_select(si_format format, si_op op, size_t* row);

/* One packed format. */
typedef struct si_format_info {
  size_t struct_size;
  si_format format;
  const char* name;        /* "panel" */
  uint32_t value_types;    /* that it stores: of each, the bit 1 << type */
  const char* params[4];   /* names of si_weight_info.params; NULL past the last */
  const char* sections[4]; /* and of si_weight_info.sections */
} si_format_info;

SI_API size_t si_format_count(void);
SI_API si_status si_format_at(size_t index, si_format_info* out);

/* ---- Packed weights -------------------------------------------------------------------------------- */

/* Part of other structs, so that it never grows. */
typedef struct si_weight_desc {
  int32_t ndim;     /* 2 [M, K], 3 [M, C/groups, kw], 4 [M, C/groups, kh, kw] */
  int64_t shape[4]; /* K = product of shape[1..ndim) */
  int64_t groups;   /* divides M; 1 for linear */
} si_weight_desc;

/* Blocks where they pay: convolutions of many channels. MANY_TOKENS: and linear layers of many columns, which calls of
   more than 32 tokens make faster, and calls of fewer slower. */
#define SI_KBLOCK_AUTO (-1)
#define SI_KBLOCK_MANY_TOKENS (-2)

typedef struct si_pack_options {
  size_t struct_size;
  si_format format;
  si_value_type value_type; /* csr: F32; panel: F32, BF16 (rounded; computed with in F32) or I8; nm and bsr: F32, F16
                               or BF16 */
  int32_t kblock;           /* panel: columns of a K block (a multiple of 16), 0 for one block, or as above */
  int32_t nm_n, nm_m;       /* nm: at most n non-zeros in every m consecutive input channels */
  int32_t block;            /* bsr: edge of the blocks, 16, 32, 64 or 128 */
  const si_target* target;  /* what choices are made for (panel: kblock < 0); NULL: the host */
  const float* scales;      /* I8: M floats, by output row, from 2^-60 to 2^48; NULL: max|w| / 127 of each row */
  int32_t g;                /* I8: 1 for quads of any columns, 4 of consecutive ones (blocks of 1x4), 0 for a choice;
                               BF16 in panel: 2 for pairs, whose products are of bfloat16 */
} si_pack_options;

typedef struct si_weight_info {
  size_t struct_size;
  si_format format;
  si_value_type value_type;
  si_weight_desc desc;
  int64_t nnz;
  uint64_t bytes;
  int32_t params[4];    /* by the names of si_format_info; nm: after them the order of the columns
                           (csrc/formats/nm/LAYOUT.md) */
  uint64_t sections[4]; /* byte offsets, likewise */
} si_weight_info;

/* Packs a dense row-major weight. *blob is released by si_free. A weight is zero when it compares equal to 0.0 (so is
 * -0.0); NaN and Inf are kept. As I8 a weight is clamp(rint(w / scale), -128, 127), ties to even, NaN and Inf are
 * refused, and what becomes 0 is dropped; si_unpack gives the product with the scale. In pairs of BF16 what is below
 * 2^-126 is 0 and is dropped. */
SI_API si_status si_pack(const float* weight, const si_weight_desc* desc, const si_pack_options* options, void** blob,
                         size_t* bytes);
SI_API void si_free(void* blob);
/* Writes the checksum into the header of a buffer that was laid out elsewhere (on a GPU); nothing else of it is
 * checked: si_inspect does that. */
SI_API si_status si_seal(void* blob, size_t bytes);

/* Validates the whole buffer; only then fills *out. The buffer must be 8-byte aligned. */
SI_API si_status si_inspect(const void* blob, size_t bytes, si_weight_info* out);
/* Validates, then writes the dense weight, product(shape) floats. */
SI_API si_status si_unpack(const void* blob, size_t bytes, float* weight);

/* A validated view of a packed buffer, which must stay alive and unchanged as long as the handle. Handles are
 * immutable: any number of threads may use one at once. */
typedef struct si_weights si_weights;
SI_API si_status si_weights_open(const void* blob, size_t bytes, si_weights** out);
SI_API void si_weights_close(si_weights* weights);
SI_API si_status si_weights_info(const si_weights* weights, si_weight_info* out);
/* Writes the dense weight, product(shape) floats, as si_unpack does, and validates nothing again. */
SI_API si_status si_weights_unpack(const si_weights* weights, float* weight);

/* ---- Operations ------------------------------------------------------------------------------------ */

typedef SI_ENUM(si_activation){SI_ACT_NONE = 0,      SI_ACT_RELU = 1,      SI_ACT_RELU6 = 2,
                               SI_ACT_GELU = 3, /* erf */
                               SI_ACT_GELU_TANH = 4, SI_ACT_SILU = 5,      SI_ACT_SIGMOID = 6,
                               SI_ACT_TANH = 7,      SI_ACT_HARDSWISH = 8, SI_ACT_HARDSIGMOID = 9} si_activation;

typedef SI_ENUM(si_layout){
    SI_TOKEN_MAJOR = 0,  /* x [N][K], y [N][M]: torch.nn.Linear */
    SI_CHANNEL_MAJOR = 1 /* x [K][N], y [M][N] */
} si_layout;

#define SI_ROW_BEST (-1)

/* What bytes stand for, in calls of I8 weights: real = scale * (byte - zero point). Scales are from 2^-60 to 2^48, zero
 * points from 0 to 255. The residual of a call has its own.
 *
 * x in F32 is quantised first: byte = clamp(rint(x * (1 / scale)) + zero point, 0, 255). Then with exact int32 sums
 *
 *   v = fma(sum_k w[m, k] * x[k, n] - zero point * sum_k w[m, k], scale of row m * scale of x, bias[m])
 *   y = act(v), or act(v + residual), or of a residual in U8 act(fma(byte - zero point, scale, v))
 *
 * all in float32, and y in U8 is quantised likewise, by y_scale. Rounding is to the nearest, ties to even; NaN becomes
 * the least value that an activation leaves. Outside a convolution's image stands the zero point. */
typedef struct si_quantization {
  size_t struct_size;
  float x_scale; /* of the tensor, where x_scales is NULL */
  int32_t x_zero_point;
  const float* x_scales;        /* of each token, n of them; linear layers only */
  const int32_t* x_zero_points; /* likewise; with x_scales, NULL means x_zero_point for each */
  float y_scale;                /* y in U8 */
  int32_t y_zero_point;
  float residual_scale; /* a residual in U8 */
  int32_t residual_zero_point;
} si_quantization;

/* y = act(W x + bias). x and y must not overlap.
 *
 * Of pairs of BF16 weights x is in F32, and then rounded to BF16, or in BF16, where values below 2^-126 count as 0.
 * Sums are in F32, each within (K + 2) 2^-23 (|W| |x| + |bias|) + K 2^-126 of the exact one; y is in F32, or rounded to
 * BF16. */
typedef struct si_linear_args {
  size_t struct_size;
  const void* x;     /* of x_type */
  void* y;           /* of y_type */
  const float* bias; /* M floats, or NULL */
  int64_t n;         /* >= 0 */
  int64_t ldx, ldy;  /* elements from one token (or channel) to the next */
  si_layout layout;
  si_activation activation;
  int32_t row;                         /* a registry row, or SI_ROW_BEST */
  int32_t threads;                     /* >= 1; at most so many, fewer where more would not help */
  si_value_type x_type, y_type;        /* SI_ERR_UNSUPPORTED where no row takes them */
  const si_quantization* quantization; /* of I8 weights, and of no others */
  const void* residual;                /* added before the activation: laid out as y, not overlapping it; or NULL */
  si_value_type residual_type;         /* F32 or U8; a residual is of I8 weights alone */
} si_linear_args;

SI_API si_status si_linear(const si_weights* weights, const si_linear_args* args);

typedef SI_ENUM(si_padding){SI_PAD_ZEROS = 0, SI_PAD_REFLECT = 1, SI_PAD_REPLICATE = 2, SI_PAD_CIRCULAR = 3} si_padding;

/* Cross-correlation of torch.nn.Conv2d; a 3-dimensional weight is Conv1d, with h = 1 and the vertical entries of
 * stride, dilation and padding 1, 1, 0, 0. x [batch][C][h][w] and y [batch][M][oh][ow] contiguous, not overlapping. */
typedef struct si_conv_args {
  size_t struct_size;
  const void* x; /* of x_type */
  void* y;       /* of y_type */
  const float* bias;
  int64_t batch, h, w;
  int64_t stride[2];   /* vertical, horizontal */
  int64_t padding[4];  /* top, bottom, left, right */
  int64_t dilation[2]; /* vertical, horizontal */
  si_padding padding_mode;
  si_activation activation;
  int32_t row;
  int32_t threads;
  si_value_type x_type, y_type;
  const si_quantization* quantization;
  const void* residual;        /* added before the activation: laid out as y, not overlapping it; or NULL */
  si_value_type residual_type; /* F32, or of I8 weights U8; pairs of BF16 weights take no residual */
} si_conv_args;

SI_API si_status si_conv_output_size(const si_weights* weights, const si_conv_args* args, int64_t* oh, int64_t* ow);
SI_API si_status si_conv(const si_weights* weights, const si_conv_args* args);

typedef SI_ENUM(si_cell){SI_CELL_LSTM = 0, SI_CELL_GRU = 1, SI_CELL_RNN_TANH = 2, SI_CELL_RNN_RELU = 3} si_cell;

/* The steps of one layer and direction of torch.nn.LSTM, GRU or RNN with H hidden units. The weight is W_hh
 * [gates * H, H], gates 4 (i, f, g, o), 3 (r, z, n) or 1. A sequence's row of step t is t * step_rows + b * batch_rows;
 * where batch_sizes is given, sequences are packed: step t has the first batch_sizes[t] sequences (1 to batch, never
 * more than the step before), and rows follow one another. y must not overlap the other arrays. */
typedef struct si_recurrent_args {
  size_t struct_size;
  const float* gates;   /* rows of gates * H: W_ih x + b_ih */
  const float* bias;    /* b_hh, gates * H floats, or NULL */
  float* h;             /* [batch][H]: the initial state, and then the final one */
  float* c;             /* likewise for an LSTM, else NULL */
  float* y;             /* rows of H: the state after each step */
  int64_t steps, batch; /* >= 0 */
  int64_t ldg, ldy;     /* elements from row to row of gates and y */
  int64_t step_rows, batch_rows;
  const int64_t* batch_sizes; /* steps of them, or NULL */
  si_cell cell;
  int32_t reverse; /* 1: from the last step to the first */
  int32_t row;     /* a registry row of the linear operation, or SI_ROW_BEST */
  int32_t threads;
} si_recurrent_args;

SI_API si_status si_recurrent(const si_weights* weights, const si_recurrent_args* args);

/* ---- Models: whole networks (csrc/runtime/FORMAT.md) ------------------------------------------------- */

/* A model file, validated, and planned for the machine that opens it. Handles are immutable: any number of contexts may
 * use one at once. */
typedef struct si_model si_model;

typedef struct si_model_info {
  size_t struct_size;
  uint64_t bytes; /* of the file */
  size_t inputs, outputs, nodes;
  uint64_t arena_bytes;   /* of intermediate results */
  uint64_t context_bytes; /* of a context with shared_scratch, the arena among them; whatever the kernels */
  const char* metadata;   /* of the writer, not ended by a zero byte; the library does not read it */
  uint64_t metadata_bytes;
  size_t tensors;
  uint64_t golden_bytes; /* of the inputs that it carries, with the outputs that they give; 0: it has none */
  uint32_t version;      /* of the file's format */
  int64_t batch;         /* that this handle is planned for; 0: the model has a fixed one */
  int64_t most_batch;    /* and the largest that it may have */
} si_model_info;

/* What gives a tensor its elements. */
typedef SI_ENUM(si_tensor_kind){SI_TENSOR_INPUT = 0, SI_TENSOR_CONSTANT = 1, SI_TENSOR_COMPUTED = 2} si_tensor_kind;

typedef struct si_tensor_info {
  size_t struct_size;
  const char* name;
  si_value_type type;
  int32_t ndim;
  int64_t shape[8];
  uint64_t bytes; /* dense and contiguous; images are [batch][channels][height][width] */
  si_tensor_kind kind;
  const char* format; /* of a packed weight, whose bytes are its buffer's and its type that of its values; else "" */
  int64_t nnz;        /* of a packed weight */
  int64_t per_batch;  /* shape[0] is so many times the batch; 0: it does not vary with it */
} si_tensor_info;

typedef struct si_node_info {
  size_t struct_size;
  const char* name;      /* the module that it comes from */
  const char* op;        /* "conv" */
  const char* format;    /* of its packed weight; "" without */
  int64_t nnz;           /* of the packed weight */
  int64_t weights;       /* elements of the dense weight */
  int64_t multiply_adds; /* of kept weights; of a pooling, its additions or comparisons; of attention, its products */
  int32_t runs;          /* 0: its output is its operand as it stands */
  si_value_type type;    /* U8 where it takes bytes, or gives them; BF16 where it multiplies pairs; F32 elsewhere */
  si_activation activation;
  size_t operands;
  const uint32_t* operand; /* tensors; UINT32_MAX for one that it does without */
  uint32_t output;         /* a tensor */
} si_node_info;

/* Writes into a file that was laid out by another program what this library computes: the bytes of its arena and the
 * checksum. The file is validated. */
SI_API si_status si_model_seal(void* file, size_t bytes);
/* Opens a file that is in memory, in flash say: it is used in place, and never copied or written. It begins at a
 * multiple of 16 bytes, and stays there unchanged as long as the handle. A handle takes memory of malloc's in
 * proportion to the file's tensors and nodes (a few hundred bytes each), and none of the size of a weight or a tensor.
 * SI_ERR_CORRUPT: the file fails validation; SI_ERR_UNSUPPORTED: it has a version or an operator of a newer library.
 * *out is set where this gives SI_OK and left alone elsewhere. */
SI_API si_status si_model_open(const void* file, size_t bytes, si_model** out);
typedef struct si_open_options {
  size_t struct_size;
  int32_t threads; /* >= 1: that the file is checked on, at most */
} si_open_options;
/* As si_model_open, which takes one thread; options may be NULL. */
SI_API si_status si_model_open_with(const void* file, size_t bytes, const si_open_options* options, si_model** out);
/* The same model planned for another batch, 1 to most_batch: the file is not read again, each node is checked anew, and
 * a context of it needs bytes of its own. The first handle must stay open as long as this one, which uses its weights.
 * SI_ERR_ARGUMENT: the model has a fixed batch, or this one is larger than it may be. */
SI_API si_status si_model_at_batch(const si_model* model, int64_t batch, si_model** out);

typedef SI_ENUM(si_load){
    SI_LOAD_READ = 0, /* into memory of malloc's: the file may change afterwards */
    SI_LOAD_MAP = 1   /* mapped: pages are read when they are used and shared with other processes. The file must not
                         change or be cut short as long as the handle; programs replace it by renaming another. */
} si_load;
/* Opens a file by its name, which the handle then holds: si_model_close releases it. SI_ERR_FILE: the system does not
 * open or read it, or it is no regular file; SI_ERR_UNSUPPORTED: the library was built without files
 * (SPARSEINFER_FILES=OFF); the rest as si_model_open. */
SI_API si_status si_model_load(const char* path, si_load how, si_model** out);
/* Releases a handle; NULL is none. No context of it may run, now or later: a handle that was closed, and a context of
 * one, give SI_ERR_ARGUMENT where their memory still shows it. */
SI_API void si_model_close(si_model* model);
SI_API si_status si_model_describe(const si_model* model, si_model_info* out);
SI_API si_status si_model_input(const si_model* model, size_t index, si_tensor_info* out);
SI_API si_status si_model_output(const si_model* model, size_t index, si_tensor_info* out);
SI_API si_status si_model_node(const si_model* model, size_t index, si_node_info* out);
/* Of all tensors, in the order of the file. */
SI_API si_status si_model_tensor(const si_model* model, size_t index, si_tensor_info* out);

/* The bytes that a context of this model takes for runs on so many threads, exactly: those of si_model_info, and what
 * the kernels of this machine copy and pack into. 0 where si_context_create would refuse the model or the threads. */
SI_API uint64_t si_context_bytes(const si_model* model, int32_t threads);

/* What one caller runs a model with. It lives in `memory`, si_context_bytes at a multiple of 64 bytes, which is the
 * caller's to release when no call is under way; there is nothing else to close. Nothing is written past those bytes,
 * before or while it runs. The library's threads are started here. */
typedef struct si_context si_context;
SI_API si_status si_context_create(const si_model* model, void* memory, size_t bytes, int32_t threads,
                                   si_context** out);

/* Threads of the caller's: calls work(job) on up to `threads` threads at once, the calling one among them if it likes,
 * and returns when all those calls have returned. Fewer calls do the same work, one alone or none as well; more than
 * `threads` do no harm. Results are the same bit for bit. */
typedef void (*si_parallel_for)(void* user, int32_t threads, void (*work)(void* job), void* job);

typedef struct si_context_options {
  size_t struct_size;
  int32_t threads;              /* >= 1; at most so many, fewer where more would not help */
  si_parallel_for parallel_for; /* NULL: the library's own (si_threads_backend), and one where it was built without */
  void* user;                   /* handed to parallel_for */
  int32_t shared_scratch; /* 1: what kernels copy and pack into is allocated at a first call, kept by each thread for
                             all of its calls (si_scratch_bytes), and none of the context, which takes the context_bytes
                             of si_model_info. 0: it is in the context, and a run allocates nothing */
} si_context_options;
/* As si_context_create, with options. */
SI_API si_status si_context_create_with(const si_model* model, void* memory, size_t bytes,
                                        const si_context_options* options, si_context** out);

/* Runs the model once: `inputs` and `outputs` are arrays of as many pointers as it has, to contiguous tensors that do
 * not overlap. A context runs one call at a time: a second one, from another thread or from a callback, gives
 * SI_ERR_ARGUMENT and leaves the first alone. Nothing is allocated (but see shared_scratch), and nothing is read from
 * files. `seconds`, unless NULL, gets the time that each node took (si_model_info.nodes of them): a
 * profile.
 */
SI_API si_status si_context_run(si_context* context, const void* const* inputs, void* const* outputs, double* seconds);
/* Is called after each node with the elements of its output, which later nodes may write over. */
typedef void (*si_observer)(void* user, size_t node, const void* output);
/* As si_context_run, and `observer` sees what every node computes. */
SI_API si_status si_context_watch(si_context* context, const void* const* inputs, void* const* outputs,
                                  si_observer observer, void* user);
/* Runs the inputs that the file carries and compares with its outputs. `worst`, unless NULL, gets the largest
 * difference over the bound that the file gives for it. SI_ERR_UNSUPPORTED: the file carries none; SI_ERR_INTERNAL: an
 * output differs by more than its bound, so that this machine, or this library, does not compute the model. */
SI_API si_status si_context_selftest(si_context* context, double* worst);

#ifdef __cplusplus
}
#endif

#endif /* SPARSEINFER_H */
