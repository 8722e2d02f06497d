// The plan of a model's memory: which tensors share their bytes, and where in the arena each of the others lies.
//
// A tensor lives from the node that computes it to the last that reads it. The largest are placed first, each at the
// lowest offset that no other one takes while it lives (greedy by size; Pisarchyk and Lee, "Efficient memory management
// for deep neural net inference", 2020).
#include <algorithm>
#include <cstdlib>

#include "runtime/operators.h"

namespace si {

namespace {

struct Life {
  uint32_t root;
  int32_t first, last;  // nodes
  uint64_t bytes, offset;
};

class Plan {
 public:
  explicit Plan(si_model* model) : model_(model) {}

  si_status run() {
    SI_TRY(last_.allocate(model_->values.size()));
    SI_TRY(first_.allocate(model_->values.size()));
    for (int64_t i = 0; i < model_->values.size(); ++i) model_->values[i].root = static_cast<uint32_t>(i);
    const auto nodes = static_cast<int32_t>(model_->nodes.size());
    for (int32_t i = 0; i < nodes; ++i) {
      const Node& node = model_->nodes[i];
      first_[node.output] = last_[node.output] = i;
      for (uint32_t k = 0; k < node.operands; ++k)
        if (node.operand[k] != kNoTensor) last_[node.operand[k]] = i;
    }
    for (int32_t i = 0; i < nodes; ++i) share(i, &model_->nodes[i]);
    SI_TRY(place());
    for (Value& value : model_->values) {
      value.place = root_of(value).place;
      value.offset = root_of(value).offset;
    }
    return SI_OK;
  }

 private:
  Value& root_of(const Value& value) { return model_->values[value.root]; }

  // Gives the output of a node the bytes of an operand where nothing is lost by that.
  void share(int32_t index, Node* node) {
    Value& y = model_->values[node->output];
    const bool is_view = node->op == operator_of(kReshape);
    if (!is_view && !node->op->in_place) return;
    for (uint32_t k = 0; k < node->operands; ++k) {
      if (node->operand[k] == kNoTensor) continue;
      const uint32_t root = model_->values[node->operand[k]].root;
      Value& x = model_->values[root];
      if (x.bytes != y.bytes) continue;
      // Another output's bytes, or bytes of the caller's or the file's, cannot become this output.
      if (y.place == Place::kOutput && x.place != Place::kArena) continue;
      const bool dies = x.place == Place::kArena && last_[root] == index;
      if (!is_view && (!dies || y.place == Place::kOutput)) continue;
      if (y.place == Place::kOutput) {
        x.place = Place::kOutput;
        x.offset = y.offset;
      }
      y.root = root;
      last_[root] = std::max(last_[root], last_[node->output]);
      node->shares = is_view;
      return;
    }
  }

  si_status place() {
    Buffer<Life> lives, placed;
    SI_TRY(lives.allocate(model_->nodes.size()));
    SI_TRY(placed.allocate(model_->nodes.size()));
    int64_t count = 0;
    for (const Node& node : model_->nodes) {
      const Value& y = model_->values[node.output];
      if (y.root != node.output || y.place != Place::kArena) continue;
      lives[count++] = {y.root, first_[y.root], last_[y.root], aligned(y.bytes), 0};
    }
    if (count == 0) return SI_OK;
    // No two are equal, so that every C library sorts them alike.
    std::qsort(lives.data(), static_cast<size_t>(count), sizeof(Life), [](const void* one, const void* other) {
      const Life &a = *static_cast<const Life*>(one), &b = *static_cast<const Life*>(other);
      if (a.bytes != b.bytes) return a.bytes > b.bytes ? -1 : 1;
      return a.root < b.root ? -1 : 1;
    });
    for (int64_t i = 0; i < count; ++i) {
      Life life = lives[i];
      // `placed` is in the order of offsets: the first gap between those that live at the same time.
      for (int64_t k = 0; k < i; ++k) {
        const Life& other = placed[k];
        if (other.last < life.first || life.last < other.first) continue;
        if (other.offset >= life.offset + life.bytes) break;
        life.offset = std::max(life.offset, other.offset + other.bytes);
      }
      const auto after = [](const Life& a, const Life& b) { return a.offset < b.offset; };
      Life* const at = std::upper_bound(placed.begin(), placed.begin() + i, life, after);
      std::move_backward(at, placed.begin() + i, placed.begin() + i + 1);
      *at = life;
      model_->values[life.root].offset = life.offset;
      model_->arena_bytes = std::max(model_->arena_bytes, life.offset + life.bytes);
    }
    return SI_OK;
  }

  si_model* const model_;
  Buffer<int32_t> first_,
      last_;  // the node that computes a tensor, and the last that reads it or what shares its bytes
};

}  // namespace

si_status plan_memory(si_model* model) { return Plan(model).run(); }

}  // namespace si
