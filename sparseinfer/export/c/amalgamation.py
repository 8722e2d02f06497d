"""A model as plain C that needs no library: `sparseinfer.c` and `.h`, and its constants."""

from __future__ import annotations

from sparseinfer.export.c.arena import Arena, plan_arena
from sparseinfer.export.c.lacks import check_model
from sparseinfer.export.c.nodes import Emitted, Emitter
from sparseinfer.export.c.pieces import join_pieces
from sparseinfer.export.c.records import COMPUTED, CONSTANT, Records, read_records
from sparseinfer.export.c.repack import plain_packed
from sparseinfer.export.c.text import assembler_text, comment_text, written_by
from sparseinfer.export.c.weights import ALIGN, Block

__all__ = ["amalgamate"]

C_TYPES = {"float32": "float", "uint8": "uint8_t"}


def amalgamate(file: bytes, name: str) -> dict[str, bytes]:
    """The files of a model, by their names; `name` is what its functions and files begin with.

    Raises:
        NotInC: the model needs what the plain C has not.
    """
    return _Amalgamation(read_records(file), name).files()


class _Amalgamation:
    def __init__(self, records: Records, name: str) -> None:
        self.records, self.name, self.upper = records, name, name.upper()
        self.packed = {
            number: plain_packed(tensor.data)
            for number, tensor in enumerate(records.tensors)
            if tensor.type == "packed"
        }
        check_model(records, self.packed)
        self.arena: Arena = plan_arena(records)
        self.block = Block(name)
        self.inputs = dict(zip(records.inputs, _numbered("x", len(records.inputs)), strict=True))
        self.outputs = _numbered("y", len(records.outputs))
        emitter = Emitter(records, self.packed, self.block, self._pointer, "scratch")
        self.nodes: list[tuple[str, Emitted]] = [
            (comment_text(node.name) or node.op, emitter.emit(node, f"node_{at}"))
            for at, node in enumerate(records.nodes)
            if at not in self.arena.shared
        ]
        self.scratch_bytes = max((node.scratch for _, node in self.nodes), default=0)

    @property
    def context_bytes(self) -> int:
        # A struct of no words would not be C.
        return max(8, self.arena.size + self.scratch_bytes)

    def files(self) -> dict[str, bytes]:
        weights = bytes(self.block.data)
        files = {"sparseinfer.h": self._header().encode(), "sparseinfer.c": self._source().encode()}
        if weights:
            symbol = f"{self.name}_weights"
            files[f"{self.name}.bin"] = weights
            files[f"{self.name}.S"] = assembler_text(symbol, f"{self.name}.bin", ALIGN).encode()
        return files

    def _pointer(self, number: int) -> str:
        """The expression for a tensor: a buffer of the caller's, a constant, or in the arena."""
        root = self.arena.roots[number]
        tensor = self.records.tensors[root]
        if tensor.kind == CONSTANT:
            return self.block.put(tensor.data, C_TYPES[tensor.type])
        if tensor.kind != COMPUTED:
            return self.inputs[root]
        if root in self.arena.outputs:
            return self.outputs[self.arena.outputs[root]]
        return f"({C_TYPES[tensor.type]}*)(arena + {self.arena.offsets[root]})"

    @property
    def _prototype(self) -> str:
        tensors = self.records.tensors
        given = [
            f"const {C_TYPES.get(tensors[number].type, 'void')}* {own}"
            for number, own in self.inputs.items()
        ]
        given += [f"float* {own}" for own in self.outputs]
        return f"void {self.name}_run({self.name}_context* context, {', '.join(given)})"

    def _header(self) -> str:
        upper, sizes = self.upper, []
        ends = [*self.inputs.items(), *zip(self.records.outputs, self.outputs, strict=True)]
        for number, own in ends:
            tensor = self.records.tensors[number]
            shape = "".join(f"[{size}]" for size in tensor.shape)
            told = f"/* {comment_text(tensor.name)} {shape} */"
            sizes.append(f"#define {upper}_{own.upper()}_ELEMENTS {tensor.elements} {told}")
        sources = f"sparseinfer.c {self.name}.S" if self.block.data else "sparseinfer.c"
        return f"""/* {self.name}: a model of {len(self.nodes)} nodes. {written_by()}
 *
 *   cc -O2 -I. main.c {sources} -lm
 */
#ifndef SPARSEINFER_{upper}_H
#define SPARSEINFER_{upper}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{chr(10).join(sizes)}
#define {upper}_WEIGHTS_BYTES {len(self.block.data)}
#define {upper}_CONTEXT_BYTES {self.context_bytes}

/* All that a run writes beside its outputs; nothing of it need be kept between runs. */
typedef struct {self.name}_context {{
  uint64_t words[{upper}_CONTEXT_BYTES / 8];
}} {self.name}_context;

/* Runs the model. No two of the buffers overlap. */
{self._prototype};

#ifdef __cplusplus
}}
#endif

#endif
"""

    def _source(self) -> str:
        pieces = join_pieces(dict.fromkeys(own for _, node in self.nodes for own in node.pieces))
        constants = "\n".join(node.constant for _, node in self.nodes if node.constant)
        calls = "\n".join(f"  /* {told} */\n  {node.call}" for told, node in self.nodes)
        text = " ".join(node.call for _, node in self.nodes)
        unused = [own for own in self.inputs.values() if own not in text.replace("(", " ")]
        begin = [f"  (void){own};" for own in unused]
        if self.arena.offsets:
            begin.append("  uint8_t* const arena = (uint8_t*)context->words;")
        if self.scratch_bytes:
            begin.append(f"  void* const scratch = (uint8_t*)context->words + {self.arena.size};")
        if not self.arena.offsets and not self.scratch_bytes:
            begin.append("  (void)context;")
        weights = ""
        if self.block.data:
            weights = (
                f"extern const uint8_t {self.name}_weights[];\n"
                f"#define {self.upper}_AT(type, offset) "
                f"((const type*)(const void*)({self.name}_weights + (offset)))\n\n"
            )
        return (
            f'/* {written_by()} */\n#include "sparseinfer.h"\n\n{pieces}\n'
            f"{weights}{constants}\n\n{self._prototype} {{\n"
            + "\n".join([*begin, calls]) + "\n}\n"
        )  # fmt: skip


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}{at}" for at in range(count)]
