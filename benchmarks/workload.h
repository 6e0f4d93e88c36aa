/* What the C programs here have in common: the sizes of messages (workload.py), clocks, options, latencies. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define MIB (1 << 20)
#define HEAD 64
#define WARMUP_STREAM (2 * MIB)
#define WARMUP_S 0.3

static const int mix[] = {1, 2, 4, 4, 8, 13, 32, 64}; /* KiB: workload.MIX */

static long messages = 1000, warmup = 0, size_each = 4096, maildirs = 1, stream = 0;
static double seconds = 1.0;

static void die(const char * what)
{
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1e9;
}

static double cpu(void)
{
    struct rusage ru;

    getrusage(RUSAGE_SELF, &ru);
    return ru.ru_utime.tv_sec + ru.ru_stime.tv_sec + (ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6;
}

static long size_of(long number)
{
    if (stream && number < warmup)
        return WARMUP_STREAM;
    return size_each ? size_each : mix[number % 8] * 1024L;
}

struct number {
    const char * name;
    long * where;
};

/* Take NAME=VALUE: one of the common options, or of those in more; return the value. */
static const char * take(const char * argument, const struct number * more, size_t count)
{
    const struct number common[] = {
        {"messages", &messages}, {"warmup", &warmup}, {"size", &size_each}, {"maildirs", &maildirs}, {"stream", &stream}};
    const size_t all = sizeof(common) / sizeof(common[0]) + count;
    const char * value = strchr(argument, '=');
    size_t length;

    if (value == NULL)
        exit(2);
    length = value++ - argument;
    for (size_t i = 0; i < all; i++) {
        const struct number * number = i < count ? &more[i] : &common[i - count];

        if (strlen(number->name) == length && !strncmp(argument, number->name, length))
            *number->where = atol(value);
    }
    if (!strncmp(argument, "seconds=", 8))
        seconds = atof(value);
    return value;
}

static int compare(const void * a, const void * b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Write a workload.Measurement, in which the CPU time is called as it is by whoever starts this. */
static void report(long done, long delivered, double bytes, double took, const char * whose_cpu, double used,
    double * latencies, long count)
{
    qsort(latencies, count, sizeof(double), compare);
    printf("{\"messages\": %ld, \"delivered\": %ld, \"bytes\": %.0f, \"seconds\": %.6f, \"%s\": %.6f, "
           "\"latency_ms\": {\"p50\": %.4f, \"p90\": %.4f, \"p99\": %.4f, \"max\": %.4f}}\n",
        done, delivered, bytes, took, whose_cpu, used, latencies[(count - 1) * 50 / 100], latencies[(count - 1) * 90 / 100],
        latencies[(count - 1) * 99 / 100], latencies[count - 1]);
}

#endif
