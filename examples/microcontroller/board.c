/* The MPS2 boards of Cortex-M3 and Cortex-M4 as qemu has them: what runs before main, and semihosting (Arm's
 * "Semihosting for AArch32 and AArch64"), by which a program asks the debugger for files. */
#include "board.h"

#include <stdint.h>
#include <string.h>

int main(void);
void reset(void);

/* Of the linker script. */
extern uint32_t stack_end[], data_begin[], data_end[], data_in_flash[], bss_begin[], bss_end[];

enum { kOpen = 0x01, kClose = 0x02, kPrint = 0x04, kWrite = 0x05, kRead = 0x06, kExit = 0x18 };
enum { kReadBinary = 1, kWriteBinary = 5 };
enum { kExited = 0x20026, kFailed = 0x20023 };

static intptr_t semihosting(int operation, const void* argument) {
  register intptr_t r0 __asm__("r0") = operation;
  register const void* r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

static int transfer(int operation, int mode, const char* name, const void* data, size_t bytes) {
  const uintptr_t file[] = {(uintptr_t)name, (uintptr_t)mode, strlen(name)};
  const intptr_t handle = semihosting(kOpen, file);
  if (handle < 0) return 0;
  const uintptr_t what[] = {(uintptr_t)handle, (uintptr_t)data, bytes};
  /* How many bytes are left. */
  const intptr_t left = semihosting(operation, what);
  semihosting(kClose, what);
  return left == 0;
}

int board_read(const char* name, void* data, size_t bytes) { return transfer(kRead, kReadBinary, name, data, bytes); }

int board_write(const char* name, const void* data, size_t bytes) {
  return transfer(kWrite, kWriteBinary, name, data, bytes);
}

void board_print(const char* text) { semihosting(kPrint, text); }

static void leave(int failed) {
  semihosting(kExit, (const void*)(uintptr_t)(failed ? kFailed : kExited));
  for (;;) continue;
}

static void fault(void) {
  board_print("fault\n");
  leave(1);
}

void reset(void) {
#ifdef __ARM_FP
  /* Access to the floating-point unit, before anything uses it. */
  volatile uint32_t* const coprocessors = (volatile uint32_t*)0xe000ed88;
  *coprocessors |= 0xfu << 20;
  __asm__ volatile("dsb\n\tisb");
#endif
  memcpy(data_begin, data_in_flash, (size_t)((uintptr_t)data_end - (uintptr_t)data_begin));
  memset(bss_begin, 0, (size_t)((uintptr_t)bss_end - (uintptr_t)bss_begin));
  leave(main());
}

/* What the processor reads first; interrupts are never enabled. */
__attribute__((section(".vectors"), used)) static const struct {
  uint32_t* stack;
  void (*at_reset)(void);
  void (*at_faults[5])(void);
} vectors = {stack_end, reset, {fault, fault, fault, fault, fault}};
