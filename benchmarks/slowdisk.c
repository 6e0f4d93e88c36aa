/*
 * A disk whose every flush is slow: one file, "disk", passed through to another, with a pause before each fsync.
 *
 *     slowdisk BACKING-FILE MOUNTPOINT MICROSECONDS
 *
 * A loop device on it, with a file system on that, stands in for network volumes and consumer SSDs: reads and writes
 * are about as fast as below, a flush is not.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int backing;
static long pause_us;

static int slow_getattr(const char * path, struct stat * st, struct fuse_file_info * fi)
{
    (void)fi;
    memset(st, 0, sizeof(*st));
    if (!strcmp(path, "/")) {
        st->st_mode = S_IFDIR | 0755;
        st->st_nlink = 2;
        return 0;
    }
    if (strcmp(path, "/disk"))
        return -ENOENT;
    return fstat(backing, st) ? -errno : 0;
}

static int slow_open(const char * path, struct fuse_file_info * fi)
{
    (void)fi;
    return strcmp(path, "/disk") ? -ENOENT : 0;
}

static int slow_read(const char * path, char * data, size_t size, off_t offset, struct fuse_file_info * fi)
{
    ssize_t done = pread(backing, data, size, offset);

    (void)path, (void)fi;
    return done < 0 ? -errno : (int)done;
}

static int slow_write(const char * path, const char * data, size_t size, off_t offset, struct fuse_file_info * fi)
{
    ssize_t done = pwrite(backing, data, size, offset);

    (void)path, (void)fi;
    return done < 0 ? -errno : (int)done;
}

static int slow_fsync(const char * path, int data_only, struct fuse_file_info * fi)
{
    (void)path, (void)data_only, (void)fi;
    usleep(pause_us);
    return fdatasync(backing) ? -errno : 0;
}

static int slow_fallocate(const char * path, int mode, off_t offset, off_t length, struct fuse_file_info * fi)
{
    (void)path, (void)fi;
    return fallocate(backing, mode, offset, length) ? -errno : 0;
}

static const struct fuse_operations operations = {
    .getattr = slow_getattr,
    .open = slow_open,
    .read = slow_read,
    .write = slow_write,
    .fsync = slow_fsync,
    .fallocate = slow_fallocate,
};

int main(int argc, char ** argv)
{
    char * arguments[] = {argv[0], "-f", "-o", "fsname=slowdisk", NULL, NULL};

    if (argc != 4)
        return 2;
    if ((backing = open(argv[1], O_RDWR | O_CLOEXEC)) < 0) {
        perror(argv[1]);
        return 1;
    }
    pause_us = atol(argv[3]);
    arguments[4] = argv[2];
    return fuse_main(5, arguments, &operations, NULL);
}
