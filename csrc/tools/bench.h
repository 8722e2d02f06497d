/* How long a model takes. */
#ifndef SPARSEINFER_TOOLS_BENCH_H
#define SPARSEINFER_TOOLS_BENCH_H

#include <sparseinfer.h>

/* Runs it `runs` times and prints percentiles of the times; 0, with a line on stderr, where a run fails. */
int bench(si_context* context, const void* const* inputs, void* const* outputs, size_t runs);
/* The same for each node: the least of its times. */
int profile(const si_model* model, si_context* context, const void* const* inputs, void* const* outputs, size_t runs);

#endif
