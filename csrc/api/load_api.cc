// The C API of model files that are opened by their names.
#include <sparseinfer.h>

#include "core/error.h"
#include "runtime/model.h"

si_status si_model_load(const char* path, si_load how, si_model** out) {
  SI_REQUIRE(path != nullptr && out != nullptr, SI_ERR_ARGUMENT, "si_model_load: null pointer");
  SI_REQUIRE(how == SI_LOAD_READ || how == SI_LOAD_MAP, SI_ERR_ARGUMENT,
             "si_model_load: expected SI_LOAD_READ or SI_LOAD_MAP, got ", how);
  si::FileBytes bytes;
  SI_TRY(bytes.load(path, how));
  SI_TRY(si_model_open(bytes.data(), bytes.size(), out));
  (*out)->loaded.take(&bytes);
  return SI_OK;
}
