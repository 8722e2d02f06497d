"""A model file as an object to link with the library, and the header that says what it is."""

from __future__ import annotations

from sparseinfer.export.aligned import aligned_size
from sparseinfer.export.c.text import assembler_text, comment_text, written_by
from sparseinfer.export.facts import EngineFacts

__all__ = ["object_files"]

ALIGN = 64
"""Of the file in memory; the library asks for 16."""

POINTER = 8


def object_files(file: bytes, facts: EngineFacts, name: str) -> dict[str, bytes]:
    """The files of a model, by their names; `name` is what its symbols and files begin with."""
    symbol = f"{name}_sinf"
    return {
        f"{name}.sinf": file,
        f"{name}.S": assembler_text(symbol, f"{name}.sinf", ALIGN).encode(),
        f"{name}.h": _header(file, facts, name).encode(),
    }


def _header(file: bytes, facts: EngineFacts, name: str) -> str:
    upper = name.upper()
    # A context holds a pointer for each tensor; the rest of it is as large on every processor.
    pointers = len(facts.tensors)
    rest = facts.context_bytes - aligned_size(POINTER * pointers)
    context = f"({rest} + ({pointers} * sizeof(void*) + 63) / 64 * 64)"
    sizes = []
    for kind, tensors in (("INPUT", facts.inputs), ("OUTPUT", facts.outputs)):
        for at, tensor in enumerate(tensors):
            shape = "".join(f"[{size}]" for size in tensor.shape)
            told = f"/* {comment_text(tensor.name)}: {tensor.dtype} {shape} */"
            sizes.append(f"#define {upper}_{kind}{at}_BYTES {tensor.bytes} {told}")
    chosen = {"OPERATORS": facts.operators, "FORMATS": facts.formats, "TYPES": facts.types}
    wanted = "\n".join(
        f' *   -DSPARSEINFER_{option}="{";".join(names)}"' for option, names in chosen.items()
    )
    return f"""/* {name}: a model of {len(facts.nodes)} nodes. {written_by()}
 *
 *   si_model_open({name}_sinf, {upper}_SINF_BYTES, &model)
 *
 * What of the library it needs, as options of CMake:
 *
{wanted}
 */
#ifndef {upper}_SINF_H
#define {upper}_SINF_H

/* The model file, at a multiple of {ALIGN} bytes: link {name}.S. */
#define {upper}_SINF_BYTES {len(file)}
#ifdef __cplusplus
extern "C"
#else
extern
#endif
const unsigned char {name}_sinf[{upper}_SINF_BYTES];

/* A context with shared_scratch, of this version of the library and at the file's own batch. What
 * kernels copy and pack into is the processor's: si_context_bytes(model, threads) tells both. */
#define {upper}_CONTEXT_BYTES {context}

{chr(10).join(sizes)}

#endif
"""
