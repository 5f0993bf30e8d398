// Preloaded into a program: its wall clock is ahead of the host's by the milliseconds in the file named by
// QFERRY_OWN_CLOCK. The monotonic clock is the host's.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*of_host)(clockid_t, struct timespec *);

__attribute__((constructor)) static void find(void)
{
    of_host = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
}

static long ahead(void)
{
    const char *path = getenv("QFERRY_OWN_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    char digits[24] = "";
    long ms = 0;
    if (file < 0)
        return 0;
    if (read(file, digits, sizeof digits - 1) > 0)
        ms = atol(digits);
    close(file);
    return ms;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    int failed;
    if (!of_host)
        find();
    failed = of_host(clock, time);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long ms = ahead();
        time->tv_sec += ms / 1000;
        time->tv_nsec += ms % 1000 * 1000000;
        if (time->tv_nsec < 0) {
            time->tv_nsec += 1000000000;
            time->tv_sec -= 1;
        } else if (time->tv_nsec >= 1000000000) {
            time->tv_nsec -= 1000000000;
            time->tv_sec += 1;
        }
    }
    return failed;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *place)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place)
        *place = now.tv_sec;
    return now.tv_sec;
}
