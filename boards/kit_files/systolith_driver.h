/* Driver of a systolith machine for software without an operating system. C99; of the library only
 * <stdint.h>, <stddef.h> and <stdbool.h>, which every freestanding compiler has.
 *
 *     static struct systolith device;
 *     systolith_open(&device, 0x43C00000, NULL);               ID, version, configuration
 *     systolith_load(&device, &program_model, memory);         image to memory, BASE
 *     systolith_start(&device);
 *     systolith_wait(&device, 0);                              SYSTOLITH_OK, or what went wrong
 *
 * Every function that can fail returns a systolith_status, SYSTOLITH_OK being 0. One device is used
 * by one thread of control; systolith_interrupt alone may interrupt the others.
 */
#ifndef SYSTOLITH_DRIVER_H
#define SYSTOLITH_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "systolith.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Registers are read and written as aligned 32-bit words at base + offset. Where they are reached in
 * another way, define SYSTOLITH_CUSTOM_IO for all files and supply these two functions. */
#ifdef SYSTOLITH_CUSTOM_IO
uint32_t systolith_read32(uintptr_t address);
void systolith_write32(uintptr_t address, uint32_t value);
#endif

typedef enum {
  SYSTOLITH_OK = 0,
  SYSTOLITH_NO_DEVICE,           /* the register ID holds something else */
  SYSTOLITH_WRONG_VERSION,       /* its registers are those of another major or an older minor version */
  SYSTOLITH_WRONG_CONFIGURATION, /* systolith.h or the program are of another configuration */
  SYSTOLITH_BAD_ARGUMENT,        /* misaligned, too small, beyond the end, or not set up for it */
  SYSTOLITH_BUSY,                /* a program is running */
  SYSTOLITH_TIMEOUT,             /* the program took longer than allowed; it was stopped by a reset */
  SYSTOLITH_STOPPED,             /* the program ended with an error: see systolith_get_error */
  SYSTOLITH_NOT_STARTED          /* no program ran since the last reset */
} systolith_status;

/* Causes of the interrupt, for systolith_enable_interrupts. */
#define SYSTOLITH_IRQ_DONE 0x1u
#define SYSTOLITH_IRQ_ERROR 0x2u
#define SYSTOLITH_IRQ_MARK 0x4u

/* What the driver asks of the system; any of them may be NULL.
 *
 * clean: bytes that the CPU wrote must be in memory when it returns (a write-back of the caches and
 *   a barrier), because the machine reads memory, not the CPU's caches.
 * invalidate: the CPU's caches must hold nothing of these bytes when it returns; what they may have
 *   to write back is written back. Needed, as clean is, where the machine's port is not coherent.
 * mark: the program has executed `mark` with this value. Called by systolith_poll, systolith_wait
 *   and, if the cause is enabled, by systolith_interrupt, thus perhaps in the interrupt's context.
 *   A mark is seen when its value differs from the one before (after a start: from 0), and one that
 *   follows another before it was seen replaces it. No program of the compiler repeats a value.
 * sleep: called by systolith_wait_interrupt while there is nothing to do, and may return at any
 *   time. It must not sleep through an interrupt that comes just before: lock interrupts, look at
 *   systolith_finished, wait for an interrupt (WFI wakes up with interrupts locked), unlock.
 *   A time-out is noticed when it returns: let a timer wake it up if time-outs are used. */
struct systolith_hooks {
  void *context;
  void (*clean)(void *context, const void *start, size_t bytes);
  void (*invalidate)(void *context, void *start, size_t bytes);
  void (*mark)(void *context, uint32_t value);
  void (*sleep)(void *context);
};

/* Memory for a program: `bytes` at `cpu` as the CPU sees them, at `bus` as the machine does. `bus`
 * is a multiple of 32; where there are caches, start and end should be those of cache lines. */
struct systolith_memory {
  void *cpu;
  uint32_t bus;
  size_t bytes;
};

/* A named region of a program's memory; elements are little-endian. */
struct systolith_symbol {
  const char *name;
  uint32_t offset;
  uint32_t bytes;
  uint32_t element_bytes;
};

/* A program as `systolith kit --program` writes it. */
struct systolith_program {
  uint32_t configuration;    /* hash of the configuration that it was compiled for */
  const uint8_t *image;      /* the first image_bytes of its memory; the rest starts as zeros */
  uint32_t image_bytes;
  uint32_t memory_bytes;
  const struct systolith_symbol *symbols;
  size_t symbol_count;
};

/* A device. Zero-initialised, then systolith_open. Fields are the driver's own. */
struct systolith {
  uintptr_t registers;
  const struct systolith_hooks *hooks;
  struct systolith_memory memory;
  uint64_t last_cycles;
  volatile uint32_t last_mark;
  volatile bool finished;
};

struct systolith_error {
  uint32_t code; /* SYSTOLITH_ERROR_... */
  uint32_t pc;   /* index of the instruction that failed */
};

/* Looks whether the machine of systolith.h is at this address. Leaves a running program alone. The
 * hooks must live as long as the device; NULL: none. */
systolith_status systolith_open(struct systolith *device, uintptr_t registers,
                                const struct systolith_hooks *hooks);

/* Stops whatever runs and brings the machine to the state after power-up, but for its memories and
 * the registers that the host writes. The machine waits up to 16,384 cycles for its bus. */
systolith_status systolith_reset(struct systolith *device);

/* Puts a program's image into memory, zeros behind it, and its address into BASE. */
systolith_status systolith_load(struct systolith *device, const struct systolith_program *program,
                                struct systolith_memory memory);

/* The symbol of this name, or NULL. */
const struct systolith_symbol *systolith_find(const struct systolith_program *program,
                                              const char *name);

/* Copies to and from the memory of the loaded program, from byte `offset` on. While a program runs,
 * write only what it waits for, and give it cache lines of its own or uncached memory: a line is
 * written back whole. */
systolith_status systolith_write(struct systolith *device, uint32_t offset, const void *data,
                                 size_t bytes);
systolith_status systolith_write_word(struct systolith *device, uint32_t offset, uint32_t value);
systolith_status systolith_read(struct systolith *device, uint32_t offset, void *data,
                                size_t bytes);

/* Cycles without any movement after which the machine stops a program with an error; 0: never. */
void systolith_set_watchdog(struct systolith *device, uint32_t cycles);

/* Starts the program at BASE. Counters begin at 0. */
systolith_status systolith_start(struct systolith *device);

/* Reports a mark, if there is one, and says how things stand: SYSTOLITH_BUSY, SYSTOLITH_OK (done),
 * SYSTOLITH_STOPPED or SYSTOLITH_NOT_STARTED. */
systolith_status systolith_poll(struct systolith *device);

/* Polls until the program has ended. `max_cycles`: of the machine's clock, from the start on, after
 * which the machine is reset and SYSTOLITH_TIMEOUT is returned; 0: no limit. No timer is needed. */
systolith_status systolith_wait(struct systolith *device, uint64_t max_cycles);

/* Interrupts: causes that raise the machine's irq line. Then either systolith_wait_interrupt, which
 * is systolith_wait but sleeps (SYSTOLITH_BAD_ARGUMENT unless DONE and ERROR are enabled), or look
 * at systolith_finished and call systolith_poll for the outcome. */
void systolith_enable_interrupts(struct systolith *device, uint32_t causes);
systolith_status systolith_wait_interrupt(struct systolith *device, uint64_t max_cycles);
bool systolith_finished(const struct systolith *device);

/* The interrupt's handler: takes the line back, reports a mark, notes the end of a program. */
void systolith_interrupt(struct systolith *device);

/* Error of the last program; the code is SYSTOLITH_ERROR_NONE if there was none. */
struct systolith_error systolith_get_error(const struct systolith *device);

/* A 64-bit counter, by its offset (SYSTOLITH_REG_CYCLES, ...). The lower half is read first: that
 * latches the upper one. There is one latch, so do not read counters in an interrupt. */
uint64_t systolith_counter(const struct systolith *device, uint32_t offset);

/* A phrase for a systolith_status; the name of an error code. Never NULL. */
const char *systolith_status_text(systolith_status status);
const char *systolith_error_text(uint32_t code);

#ifdef __cplusplus
}
#endif

#endif
