/* See systolith_driver.h. */
#include "systolith_driver.h"

#define PROGRAM_ALIGNMENT 32u
#define RESET_POLLS 100000u /* a reset takes some 16,384 cycles at most, and no read less than one */

#ifndef SYSTOLITH_CUSTOM_IO
static uint32_t systolith_read32(uintptr_t address) {
  return *(const volatile uint32_t *)address;
}

static void systolith_write32(uintptr_t address, uint32_t value) {
  *(volatile uint32_t *)address = value;
}
#endif

/* What was written to memory is visible before the register access that follows. */
#ifndef SYSTOLITH_BARRIER
#ifdef __GNUC__
#define SYSTOLITH_BARRIER() __sync_synchronize()
#else
#error "define SYSTOLITH_BARRIER() as this compiler's full memory barrier"
#endif
#endif

static uint32_t get(const struct systolith *device, uint32_t offset) {
  return systolith_read32(device->registers + offset);
}

static void set(struct systolith *device, uint32_t offset, uint32_t value) {
  systolith_write32(device->registers + offset, value);
}

static void clean(const struct systolith *device, const void *start, size_t bytes) {
  if (device->hooks != NULL && device->hooks->clean != NULL && bytes != 0) {
    device->hooks->clean(device->hooks->context, start, bytes);
  }
}

static void invalidate(const struct systolith *device, void *start, size_t bytes) {
  if (device->hooks != NULL && device->hooks->invalidate != NULL && bytes != 0) {
    device->hooks->invalidate(device->hooks->context, start, bytes);
  }
}

static void report_mark(struct systolith *device, uint32_t mark) {
  if (mark != device->last_mark) {
    device->last_mark = mark;
    if (device->hooks != NULL && device->hooks->mark != NULL) {
      device->hooks->mark(device->hooks->context, mark);
    }
  }
}

static systolith_status outcome(uint32_t status) {
  if ((status & SYSTOLITH_STATUS_BUSY) != 0) {
    return SYSTOLITH_BUSY;
  }
  if ((status & SYSTOLITH_STATUS_ERROR) != 0) {
    return SYSTOLITH_STOPPED;
  }
  return (status & SYSTOLITH_STATUS_DONE) != 0 ? SYSTOLITH_OK : SYSTOLITH_NOT_STARTED;
}

systolith_status systolith_open(struct systolith *device, uintptr_t registers,
                                const struct systolith_hooks *hooks) {
  uint32_t version;

  if (registers % sizeof(uint32_t) != 0) {
    return SYSTOLITH_BAD_ARGUMENT;
  }
  *device = (struct systolith){.registers = registers, .hooks = hooks};
  if (get(device, SYSTOLITH_REG_ID) != SYSTOLITH_ID) {
    return SYSTOLITH_NO_DEVICE;
  }
  version = get(device, SYSTOLITH_REG_VERSION);
  if (version >> 16 != SYSTOLITH_VERSION >> 16 || version < SYSTOLITH_VERSION) {
    return SYSTOLITH_WRONG_VERSION;
  }
  if (get(device, SYSTOLITH_REG_CONFIG_HASH) != SYSTOLITH_CONFIG_HASH) {
    return SYSTOLITH_WRONG_CONFIGURATION;
  }
  return SYSTOLITH_OK;
}

systolith_status systolith_reset(struct systolith *device) {
  uint32_t polls;

  set(device, SYSTOLITH_REG_CONTROL, SYSTOLITH_CONTROL_RESET);
  for (polls = 0; polls < RESET_POLLS; polls++) {
    if ((get(device, SYSTOLITH_REG_STATUS) & SYSTOLITH_STATUS_BUSY) == 0) {
      device->last_mark = 0;
      device->finished = true;
      return SYSTOLITH_OK;
    }
  }
  return SYSTOLITH_TIMEOUT;
}

systolith_status systolith_load(struct systolith *device, const struct systolith_program *program,
                                struct systolith_memory memory) {
  uint8_t *bytes = memory.cpu;
  uint32_t i;

  if (program->configuration != SYSTOLITH_CONFIG_HASH) {
    return SYSTOLITH_WRONG_CONFIGURATION;
  }
  if (memory.cpu == NULL || memory.bus % PROGRAM_ALIGNMENT != 0 ||
      memory.bytes < program->memory_bytes ||
      program->memory_bytes - 1u > UINT32_MAX - memory.bus) {
    return SYSTOLITH_BAD_ARGUMENT;
  }
  if ((get(device, SYSTOLITH_REG_STATUS) & SYSTOLITH_STATUS_BUSY) != 0) {
    return SYSTOLITH_BUSY;
  }
  for (i = 0; i < program->image_bytes; i++) {
    bytes[i] = program->image[i];
  }
  for (; i < program->memory_bytes; i++) {
    bytes[i] = 0;
  }
  clean(device, memory.cpu, program->memory_bytes);
  device->memory = memory;
  device->memory.bytes = program->memory_bytes;
  set(device, SYSTOLITH_REG_BASE, memory.bus);
  return SYSTOLITH_OK;
}

const struct systolith_symbol *systolith_find(const struct systolith_program *program,
                                              const char *name) {
  size_t i, k;

  for (i = 0; i < program->symbol_count; i++) {
    const char *other = program->symbols[i].name;
    for (k = 0; name[k] == other[k]; k++) {
      if (name[k] == '\0') {
        return &program->symbols[i];
      }
    }
  }
  return NULL;
}

static bool inside(const struct systolith *device, uint32_t offset, size_t bytes) {
  return device->memory.cpu != NULL && offset <= device->memory.bytes &&
         bytes <= device->memory.bytes - offset;
}

systolith_status systolith_write(struct systolith *device, uint32_t offset, const void *data,
                                 size_t bytes) {
  const uint8_t *from = data;
  uint8_t *to;
  size_t i;

  if (!inside(device, offset, bytes)) {
    return SYSTOLITH_BAD_ARGUMENT;
  }
  to = (uint8_t *)device->memory.cpu + offset;
  /* Neighbours in the first and the last cache line go back to memory as the machine left them. */
  invalidate(device, to, bytes);
  for (i = 0; i < bytes; i++) {
    to[i] = from[i];
  }
  clean(device, to, bytes);
  return SYSTOLITH_OK;
}

systolith_status systolith_write_word(struct systolith *device, uint32_t offset, uint32_t value) {
  uint8_t bytes[4];
  size_t i;

  for (i = 0; i < sizeof bytes; i++) {
    bytes[i] = (uint8_t)(value >> (8 * i));
  }
  return systolith_write(device, offset, bytes, sizeof bytes);
}

systolith_status systolith_read(struct systolith *device, uint32_t offset, void *data,
                                size_t bytes) {
  uint8_t *from;
  uint8_t *to = data;
  size_t i;

  if (!inside(device, offset, bytes)) {
    return SYSTOLITH_BAD_ARGUMENT;
  }
  from = (uint8_t *)device->memory.cpu + offset;
  SYSTOLITH_BARRIER();
  invalidate(device, from, bytes);
  for (i = 0; i < bytes; i++) {
    to[i] = from[i];
  }
  return SYSTOLITH_OK;
}

void systolith_set_watchdog(struct systolith *device, uint32_t cycles) {
  set(device, SYSTOLITH_REG_WATCHDOG, cycles);
}

systolith_status systolith_start(struct systolith *device) {
  systolith_status status;

  if ((get(device, SYSTOLITH_REG_STATUS) & SYSTOLITH_STATUS_BUSY) != 0) {
    return SYSTOLITH_BUSY;
  }
  /* A start alone would leave the last program's MARK readable until the new one begins. */
  status = systolith_reset(device);
  if (status != SYSTOLITH_OK) {
    return status;
  }
  device->last_cycles = systolith_counter(device, SYSTOLITH_REG_CYCLES);
  device->finished = false;
  SYSTOLITH_BARRIER();
  set(device, SYSTOLITH_REG_CONTROL, SYSTOLITH_CONTROL_START);
  return SYSTOLITH_OK;
}

systolith_status systolith_poll(struct systolith *device) {
  /* In this order: the mark of a program that has ended is its last one. */
  uint32_t status = get(device, SYSTOLITH_REG_STATUS);
  uint32_t mark = get(device, SYSTOLITH_REG_MARK);

  report_mark(device, mark);
  return outcome(status);
}

/* Cycles since the last call. CYCLES counts the time before a start, too, and then begins again. */
static uint64_t passed(struct systolith *device) {
  uint64_t now = systolith_counter(device, SYSTOLITH_REG_CYCLES);
  uint64_t since = now >= device->last_cycles ? now - device->last_cycles : now;

  device->last_cycles = now;
  return since;
}

static systolith_status give_up(struct systolith *device) {
  (void)systolith_reset(device);
  return SYSTOLITH_TIMEOUT;
}

systolith_status systolith_wait(struct systolith *device, uint64_t max_cycles) {
  uint64_t cycles = 0;
  systolith_status status;

  while ((status = systolith_poll(device)) == SYSTOLITH_BUSY) {
    if (max_cycles != 0) {
      cycles += passed(device);
      if (cycles > max_cycles) {
        return give_up(device);
      }
    }
  }
  return status;
}

void systolith_enable_interrupts(struct systolith *device, uint32_t causes) {
  set(device, SYSTOLITH_REG_IRQ_ENABLE, causes);
}

bool systolith_finished(const struct systolith *device) {
  return device->finished;
}

void systolith_interrupt(struct systolith *device) {
  uint32_t status, mark;

  /* First: what comes after it raises the line again. */
  set(device, SYSTOLITH_REG_CONTROL, SYSTOLITH_CONTROL_IRQ_CLEAR);
  status = get(device, SYSTOLITH_REG_STATUS);
  mark = get(device, SYSTOLITH_REG_MARK);
  report_mark(device, mark);
  if ((status & SYSTOLITH_STATUS_BUSY) == 0) {
    device->finished = true;
  }
}

systolith_status systolith_wait_interrupt(struct systolith *device, uint64_t max_cycles) {
  const uint32_t needed = SYSTOLITH_IRQ_DONE | SYSTOLITH_IRQ_ERROR;
  uint64_t cycles = 0;

  if ((get(device, SYSTOLITH_REG_IRQ_ENABLE) & needed) != needed) {
    return SYSTOLITH_BAD_ARGUMENT;
  }
  /* An interrupt from before the start may have come late: the flag alone is no proof. */
  while (!device->finished || outcome(get(device, SYSTOLITH_REG_STATUS)) == SYSTOLITH_BUSY) {
    if (max_cycles != 0) {
      cycles += passed(device);
      if (cycles > max_cycles) {
        return give_up(device);
      }
    }
    if (device->hooks != NULL && device->hooks->sleep != NULL) {
      device->hooks->sleep(device->hooks->context);
    }
  }
  return outcome(get(device, SYSTOLITH_REG_STATUS));
}

struct systolith_error systolith_get_error(const struct systolith *device) {
  struct systolith_error error;

  error.code = get(device, SYSTOLITH_REG_ERROR);
  error.pc = get(device, SYSTOLITH_REG_ERROR_PC);
  return error;
}

uint64_t systolith_counter(const struct systolith *device, uint32_t offset) {
  uint64_t low = get(device, offset);

  return low | (uint64_t)get(device, offset + 4u) << 32;
}

const char *systolith_status_text(systolith_status status) {
  switch (status) {
    case SYSTOLITH_OK: return "all is well";
    case SYSTOLITH_NO_DEVICE: return "there is no systolith machine at this address";
    case SYSTOLITH_WRONG_VERSION: return "the machine's registers are of another version";
    case SYSTOLITH_WRONG_CONFIGURATION: return "machine, systolith.h and program do not match";
    case SYSTOLITH_BAD_ARGUMENT: return "an argument is misaligned or out of range";
    case SYSTOLITH_BUSY: return "a program is running";
    case SYSTOLITH_TIMEOUT: return "the machine took longer than allowed and was reset";
    case SYSTOLITH_STOPPED: return "the program stopped with an error";
    case SYSTOLITH_NOT_STARTED: return "no program has run since the last reset";
  }
  return "unknown status";
}

const char *systolith_error_text(uint32_t code) {
  switch (code) {
    case SYSTOLITH_ERROR_NONE: return "NONE";
    case SYSTOLITH_ERROR_ILLEGAL_OPCODE: return "ILLEGAL_OPCODE";
    case SYSTOLITH_ERROR_MISALIGNED: return "MISALIGNED";
    case SYSTOLITH_ERROR_BUS_READ: return "BUS_READ";
    case SYSTOLITH_ERROR_BUS_WRITE: return "BUS_WRITE";
    case SYSTOLITH_ERROR_WATCHDOG: return "WATCHDOG";
    case SYSTOLITH_ERROR_SEMAPHORE: return "SEMAPHORE";
    default: return "UNKNOWN";
  }
}
