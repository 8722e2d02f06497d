/* What the program asks of a board. */
#pragma once

#include <stddef.h>

/* Files of the computer that a debugger, or an emulator, connects to the board: here in place of a sensor. They return
 * 0 where not all of the bytes could be read or written. */
int board_read(const char* name, void* data, size_t bytes);
int board_write(const char* name, const void* data, size_t bytes);
void board_print(const char* text);
