#define _POSIX_C_SOURCE 200809L /* clock_gettime */

#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "complain.h"

static double seconds_now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

/* The least time that `percent` of the sorted ones do not exceed. */
static double percentile(const double* sorted, size_t count, unsigned percent) {
  const size_t rank = (count * percent + 99) / 100;
  return sorted[rank == 0 ? 0 : rank - 1];
}

int bench(si_context* context, const void* const* inputs, void* const* outputs, size_t runs) {
  static const unsigned kPercents[] = {50, 90, 95, 99};
  double* const times = malloc(runs * sizeof *times);
  double sum = 0.0;
  size_t i;
  if (times == NULL) return complain("out of memory: %zu times", runs);
  for (i = 0; i < runs; ++i) {
    const double begin = seconds_now();
    if (si_context_run(context, inputs, outputs, NULL) != SI_OK) {
      free(times);
      return complain("%s", si_last_error());
    }
    times[i] = seconds_now() - begin;
    sum += times[i];
  }
  qsort(times, runs, sizeof *times, compare);
  printf("runs %zu  milliseconds: least %.4f", runs, 1e3 * times[0]);
  for (i = 0; i < sizeof kPercents / sizeof *kPercents; ++i)
    printf("  p%u %.4f", kPercents[i], 1e3 * percentile(times, runs, kPercents[i]));
  printf("  most %.4f  mean %.4f\n", 1e3 * times[runs - 1], 1e3 * sum / (double)runs);
  free(times);
  return 1;
}

static int tell_node(const si_model* model, size_t index, double seconds, double all) {
  si_node_info node;
  node.struct_size = sizeof node;
  if (si_model_node(model, index, &node) != SI_OK) return complain("%s", si_last_error());
  printf("%10.4f  %5.1f%%  %-20s %-6s %s\n", 1e3 * seconds, all > 0 ? 100.0 * seconds / all : 0.0, node.op, node.format,
         node.name);
  return 1;
}

int profile(const si_model* model, si_context* context, const void* const* inputs, void* const* outputs, size_t runs) {
  si_model_info info;
  double *least, *now, all = 0.0;
  size_t i, run;
  int done = 1;
  info.struct_size = sizeof info;
  if (si_model_describe(model, &info) != SI_OK) return complain("%s", si_last_error());
  least = malloc(2 * info.nodes * sizeof *least);
  if (least == NULL) return complain("out of memory: %zu nodes", info.nodes);
  now = least + info.nodes;
  for (run = 0; done && run < runs; ++run) {
    done = si_context_run(context, inputs, outputs, now) == SI_OK || complain("%s", si_last_error());
    for (i = 0; done && i < info.nodes; ++i)
      if (run == 0 || now[i] < least[i]) least[i] = now[i];
  }
  for (i = 0; done && i < info.nodes; ++i) all += least[i];
  if (done) printf("%10s  %6s  %-20s %-6s %s\n", "ms", "", "operator", "format", "node");
  for (i = 0; done && i < info.nodes; ++i) done = tell_node(model, i, least[i], all);
  free(least);
  return done;
}
