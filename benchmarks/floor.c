/*
 * The floor: what delivery costs with no Python around it.
 *
 * The system calls of one message, as maildir_async makes them: open in tmp/ (O_EXCL), write, posix_fadvise (which
 * starts writeback), fsync, close, renameat2 (RENAME_NOREPLACE) into new/, and one fsync of new/ for a batch.
 *
 *     floor DIR messages=N seconds=S warmup=W size=B maildirs=D batch=N threads=N sync=full|file|none|syncfs
 *         stream=0|1 writeback=0|1
 *
 * The maildirs are DIR/0, DIR/1, ... and exist. One JSON object goes to standard output: see workload.Measurement.
 * batch:   messages that share one sync of new/; 1 is "one at a time".
 * threads: how many fsyncs of one batch run side by side.
 * writeback: whether posix_fadvise is called; without it the fsyncs of a batch take about a fifth longer.
 * sync:    full = every file, then new/. file = every file. none = nothing. syncfs = one syncfs, then new/.
 * stream:  write each message in chunks of 1 MiB, `batch` of them in turns, with no writeback before the fsync.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "workload.h"

#define MAX_BATCH 1024

static long batch = 1, threads = 1, writeback = 1;
static enum { FULL, FILE_ONLY, NONE, SYNCFS } policy = FULL;

static char * pattern; /* the body: two periods of 1 MiB */
static int fds[MAX_BATCH];
static char names[MAX_BATCH][96];
static int * tmpdirs, * newdirs;
static long touched[MAX_BATCH], touches;

static void write_all(int fd, const char * data, size_t size)
{
    while (size > 0) {
        ssize_t done = write(fd, data, size);

        if (done < 0)
            die("write");
        data += done;
        size -= done;
    }
}

/* The helpers: each batch is offered to them once, as a count of things to sync, and each takes the next. */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static long generation, busy, offered;
static const int * offered_fds;
static atomic_long next_one;

static void sync_some(void)
{
    long i;

    while ((i = atomic_fetch_add(&next_one, 1)) < offered)
        if (fsync(offered_fds[i]))
            die("fsync");
}

static void * helper(void * unused)
{
    long seen = 0;

    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (generation == seen)
            pthread_cond_wait(&work, &lock);
        seen = generation;
        pthread_mutex_unlock(&lock);
        sync_some();
        pthread_mutex_lock(&lock);
        if (--busy == 0)
            pthread_cond_signal(&finished);
    }
    return NULL;
}

static void sync_each(const int * which, long count)
{
    if (threads <= 1 || count <= 1) {
        for (long i = 0; i < count; i++)
            if (fsync(which[i]))
                die("fsync");
        return;
    }
    pthread_mutex_lock(&lock);
    offered_fds = which;
    offered = count;
    atomic_store(&next_one, 0);
    busy = threads - 1;
    generation++;
    pthread_cond_broadcast(&work);
    pthread_mutex_unlock(&lock);
    sync_some();
    pthread_mutex_lock(&lock);
    while (busy > 0)
        pthread_cond_wait(&finished, &lock);
    pthread_mutex_unlock(&lock);
}

/* One batch: messages first .. first + count - 1. */

static void write_message(long i, long number)
{
    static char * buffer;
    long size = size_of(number);

    if (buffer == NULL && (buffer = malloc(MIB + HEAD)) == NULL)
        die("malloc");
    if (size > MIB)
        size = MIB;
    snprintf(buffer, HEAD + 1, "Subject: benchmark message %010ld\nX-Padding: xxxxxxxxxxxxx\n\n", number);
    memcpy(buffer + HEAD, pattern, size - HEAD);
    write_all(fds[i], buffer, size);
}

static void deliver(long first, long count)
{
    struct timespec ts;
    int dirs[MAX_BATCH];

    for (long i = 0; i < count; i++) {
        long number = first + i, dir = number % maildirs;

        clock_gettime(CLOCK_REALTIME, &ts);
        snprintf(names[i], sizeof(names[i]), "%lld.M%06ldP%dQ%ld.floor", (long long)ts.tv_sec, ts.tv_nsec / 1000,
            (int)getpid(), number);
        fds[i] = openat(tmpdirs[dir], names[i], O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fds[i] < 0)
            die("open");
        write_message(i, number);
        if (writeback && !stream && (policy == FULL || policy == FILE_ONLY) && count > 1)
            posix_fadvise(fds[i], 0, 0, POSIX_FADV_DONTNEED); /* a lone file's fsync starts it as soon */
    }
    if (stream) {
        int more = 1;

        for (long offset = MIB; more; offset += MIB) {
            more = 0;
            for (long i = 0; i < count; i++) {
                long left = size_of(first + i) - offset;

                if (left > 0) {
                    write_all(fds[i], pattern + MIB - HEAD, left < MIB ? left : MIB);
                    more = 1;
                }
            }
        }
    }
    if (policy == SYNCFS) {
        if (syncfs(fds[0]))
            die("syncfs");
    } else if (policy != NONE) {
        sync_each(fds, count);
    }
    touches = 0;
    for (long i = 0; i < count; i++) {
        long dir = (first + i) % maildirs, seen = 0;

        if (close(fds[i]))
            die("close");
        if (renameat2(tmpdirs[dir], names[i], newdirs[dir], names[i], RENAME_NOREPLACE))
            die("renameat2");
        while (seen < touches && touched[seen] != dir)
            seen++;
        if (seen == touches)
            touched[touches++] = dir;
    }
    if (policy == FULL || policy == SYNCFS) {
        for (long i = 0; i < touches; i++)
            dirs[i] = newdirs[touched[i]];
        sync_each(dirs, touches);
    }
}

static void option(const char * argument)
{
    const struct number numbers[] = {{"batch", &batch}, {"threads", &threads}, {"writeback", &writeback}};
    const char * value = take(argument, numbers, sizeof(numbers) / sizeof(numbers[0]));

    if (!strncmp(argument, "sync=", 5))
        policy = !strcmp(value, "full") ? FULL : !strcmp(value, "file") ? FILE_ONLY : !strcmp(value, "none") ? NONE : SYNCFS;
}

int main(int argc, char ** argv)
{
    char path[4096];
    double * latencies, start, end, used, total_bytes = 0;
    long done = 0, number = 0;

    if (argc < 2)
        return 2;
    for (int i = 2; i < argc; i++)
        option(argv[i]);
    if (batch > MAX_BATCH)
        batch = MAX_BATCH;
    pattern = malloc(2 * MIB);
    latencies = malloc(sizeof(double) * (messages + MAX_BATCH));
    tmpdirs = malloc(sizeof(int) * maildirs);
    newdirs = malloc(sizeof(int) * maildirs);
    if (!pattern || !latencies || !tmpdirs || !newdirs)
        die("malloc");
    for (long i = 0; i < 2 * MIB; i++)
        pattern[i] = i % 64 == 63 ? '\n' : 'a' + i % MIB / 64 % 26;
    for (long i = 0; i < maildirs; i++) {
        snprintf(path, sizeof(path), "%s/%ld/tmp", argv[1], i);
        tmpdirs[i] = open(path, O_RDONLY | O_DIRECTORY);
        snprintf(path, sizeof(path), "%s/%ld/new", argv[1], i);
        newdirs[i] = open(path, O_RDONLY | O_DIRECTORY);
        if (tmpdirs[i] < 0 || newdirs[i] < 0)
            die(path);
    }
    for (long i = 0; i < threads - 1; i++) {
        pthread_t thread;

        if ((errno = pthread_create(&thread, NULL, helper, NULL)))
            die("pthread_create");
    }

    start = now();
    while (number < warmup && (stream || now() - start < WARMUP_S)) {
        long count = batch < warmup - number ? batch : warmup - number;

        deliver(number, count);
        number += count;
    }
    used = cpu();
    start = end = now();
    while (done < messages && (stream || end - start < seconds)) {
        long count = batch < messages - done ? batch : messages - done;
        double began = end;

        deliver(number, count);
        end = now();
        for (long i = 0; i < count; i++) {
            latencies[done++] = (end - began) * 1e3;
            total_bytes += size_of(number++);
        }
    }
    used = cpu() - used;
    report(done, number, total_bytes, end - start, "cpu_s", used, latencies, done);
    return 0;
}
