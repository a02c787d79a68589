/* Lets a test supply the driver's register accesses. */
#include "systolith_driver.h"

void harness_set_io(uint32_t (*read)(uintptr_t), void (*write)(uintptr_t, uint32_t));

static uint32_t (*reader)(uintptr_t);
static void (*writer)(uintptr_t, uint32_t);

void harness_set_io(uint32_t (*read)(uintptr_t), void (*write)(uintptr_t, uint32_t)) {
  reader = read;
  writer = write;
}

uint32_t systolith_read32(uintptr_t address) {
  return reader(address);
}

void systolith_write32(uintptr_t address, uint32_t value) {
  writer(address, value);
}
