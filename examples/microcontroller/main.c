/* A pruned network on a microcontroller: no operating system, no heap, no C++, and no library but the C compiler's.
 *
 *   sparseinfer export model.sinf --format amalgamation -o net
 *   arm-none-eabi-gcc -mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16 -O2 -ffunction-sections -Inet main.c board.c \
 *     net/sparseinfer.c net/net.S -nostartfiles -T mps2.ld -Wl,--gc-sections -lm -o app.elf
 *   qemu-system-arm -M mps2-an386 -nographic -semihosting -kernel app.elf
 *
 * A board of your own has a board.c and a linker script of its own; what it has to give is in board.h. The model is
 * named after its folder, net. */
#include "board.h"
#include "sparseinfer.h"

/* All of the memory that the model takes beside flash, known before the program is linked. */
static net_context context;
static float x[NET_X_ELEMENTS], y[NET_Y_ELEMENTS];

static void print_number(int number) {
  char text[12];
  int at = sizeof text - 1;
  text[at] = '\0';
  do text[--at] = (char)('0' + number % 10);
  while ((number /= 10) != 0);
  board_print(text + at);
}

int main(void) {
  if (!board_read("input.bin", x, sizeof x)) {
    board_print("expected input.bin with the elements of the input\n");
    return 1;
  }
  net_run(&context, x, y);
  int best = 0;
  for (int i = 1; i < NET_Y_ELEMENTS; ++i)
    if (y[i] > y[best]) best = i;
  board_print("class ");
  print_number(best);
  board_print("\n");
  return !board_write("output.bin", y, sizeof y);
}
