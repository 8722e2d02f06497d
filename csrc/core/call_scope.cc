#include "core/call_scope.h"

namespace si {

namespace {

thread_local const CallScope* t_scope = nullptr;

}  // namespace

CallScope::CallScope(si_parallel_for call, void* data, CallScratch* memory, int number)
    : run(call), user(data), scratch(memory), seat(number), before_(t_scope) {
  t_scope = this;
}

CallScope::~CallScope() { t_scope = before_; }

const CallScope* call_scope() { return t_scope; }

}  // namespace si
