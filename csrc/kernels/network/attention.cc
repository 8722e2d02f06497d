#include "kernels/network/attention.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/registry.h"
#include "kernels/scalar/scalar.h"
#include "kernels/source.h"

namespace si {

namespace {

int threads_for(const TileKernels* isa, int threads, int64_t work) {
  return !has_tiles(isa) ? threads : useful_threads(isa->tuning.threads, threads, work);
}

}  // namespace

si_status norm(const TileKernels* isa, const NormJob& job, int threads) {
  // Rows of a part: a page or so of elements.
  const int64_t rows = std::clamp<int64_t>(8192 / job.n, 1, job.rows), parts = (job.rows + rows - 1) / rows;
  return parallel_for(threads_for(isa, threads, 8 * job.rows * job.n), parts, [&](int64_t part) {
    NormJob own = job;
    const int64_t first = part * rows;
    own.rows = std::min(rows, job.rows - first);
    own.x = job.x + first * job.n;
    own.y = job.y + first * job.n;
    if (job.residual != nullptr) own.residual = job.residual + first * job.n;
    !has_tiles(isa) ? scalar_norm(own) : isa->norm(own);
  });
}

const TileKernels* attention_kernels(bool rounds) {
  const TileKernels* const pairs = rounds ? widest_pair_kernels() : nullptr;
  return pairs != nullptr && pairs->attend != nullptr ? pairs : widest_tile_kernels();
}

si_status attend(const TileKernels* isa, const Attention& call, int threads) {
  const AttentionJob& whole = call.job;
  const int64_t heads = call.batch * call.heads;
  const double products = 2.0 * static_cast<double>(heads * whole.queries) * static_cast<double>(whole.dim) *
                          static_cast<double>(whole.keys);
  const int used = threads_for(isa, threads, static_cast<int64_t>(std::min(products, 1e15)));
  // Fewer queries a part share what is read of their keys, and leave no thread without work.
  int64_t block = std::min(kQueryBlock, whole.queries);
  while (block > 4 * kQueryRows && heads * ((whole.queries + block - 1) / block) < 2 * used)
    block = (block / 2 + kQueryRows - 1) / kQueryRows * kQueryRows;
  const int64_t blocks = (whole.queries + block - 1) / block;
  const int64_t floats = !has_tiles(isa) ? whole.keys : attention_floats(block, whole.dim);
  return parallel_for(used, heads * blocks, [&](int64_t item) -> si_status {
    const int64_t first = item % blocks * block, head = item / blocks % call.heads, batch = item / blocks / call.heads;
    AttentionJob job = whole;
    job.first = first;
    job.queries = std::min(block, whole.queries - first);
    job.q = whole.q + batch * call.q_step + head * whole.dim + first * whole.ldq;
    job.k = whole.k + batch * call.k_step + head * whole.dim;
    job.v = whole.v + batch * call.v_step + head * whole.dim;
    job.y = whole.y + batch * call.y_step + head * whole.dim + first * whole.ldy;
    if (whole.mask != nullptr)
      job.mask = whole.mask + batch * call.mask_step + head * call.mask_head + first * whole.mask_ld;
    SI_TRY(thread_scratch(Scratch::kTile, floats, &job.scratch));
    if (measures_scratch()) return SI_OK;
    !has_tiles(isa) ? scalar_attend(job) : isa->attend(job);
    return SI_OK;
  });
}

}  // namespace si
