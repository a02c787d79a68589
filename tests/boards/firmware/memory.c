/* The functions that a freestanding compiler may call. */
#include <stddef.h>

void *memcpy(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);

void *memcpy(void *to, const void *from, size_t bytes) {
  volatile char *target = to; /* volatile: or this loop would become a call of itself */
  const char *source = from;

  while (bytes-- > 0) {
    *target++ = *source++;
  }
  return to;
}

void *memset(void *to, int value, size_t bytes) {
  volatile char *target = to;

  while (bytes-- > 0) {
    *target++ = (char)value;
  }
  return to;
}
