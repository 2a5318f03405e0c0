/* A wall clock that a test sets: preloaded into a node, it adds to CLOCK_REALTIME what the file named by LAB_CLOCK holds, which may change at
   any time: two numbers of 64 bits, the offset in milliseconds, and the time at which the clock stands still (0: it runs). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *lab;

__attribute__((constructor)) static void open_clock(void) {
  const char *path = getenv("LAB_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *map = mmap(0, 16, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (map != MAP_FAILED) lab = map;
}

int clock_gettime(clockid_t which, struct timespec *time) {
  int failed = syscall(SYS_clock_gettime, which, time);
  if (failed || which != CLOCK_REALTIME || !lab) return failed;
  int64_t offset = lab[0], frozen = lab[1];
  int64_t ms = frozen ? frozen : time->tv_sec * 1000 + time->tv_nsec / 1000000 + offset;
  if (ms < 0) ms = 0;
  time->tv_sec = ms / 1000;
  time->tv_nsec = ms % 1000 * 1000000 + (frozen ? 0 : time->tv_nsec % 1000000);
  return 0;
}
