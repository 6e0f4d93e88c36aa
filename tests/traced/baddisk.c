/*
 * A disk with bad sectors: one file, "disk", passed through to another, but for what is told to fail.
 *
 *     baddisk BACKING-FILE MOUNTPOINT CONTROL-FILE
 *
 * The control file holds a text. A write that has this text in it fails with EIO, and so changes nothing; the text
 * "ALL" stands for every write and every flush, and an empty file for none. A loop device on it, with a file system on
 * that, meets errors where a real disk has them: below the journal, and below the kernel's asynchronous syncs.
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
static const char * control;

/* Whether a write of *data*, or with none a flush, is to fail. */
static int is_bad(const char * data, size_t size)
{
    char text[64];
    ssize_t length;
    int fd = open(control, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return 0;
    length = read(fd, text, sizeof(text));
    close(fd);
    if (length <= 0)
        return 0;
    if (length == 3 && !memcmp(text, "ALL", 3))
        return 1;
    return data && memmem(data, size, text, (size_t)length) != NULL;
}

static int bad_getattr(const char * path, struct stat * st, struct fuse_file_info * fi)
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

static int bad_open(const char * path, struct fuse_file_info * fi)
{
    if (strcmp(path, "/disk"))
        return -ENOENT;
    fi->direct_io = 1; /* what the loop device writes is seen here as it is written, and its error there */
    return 0;
}

static int bad_read(const char * path, char * data, size_t size, off_t offset, struct fuse_file_info * fi)
{
    ssize_t done = pread(backing, data, size, offset);

    (void)path, (void)fi;
    return done < 0 ? -errno : (int)done;
}

static int bad_write(const char * path, const char * data, size_t size, off_t offset, struct fuse_file_info * fi)
{
    ssize_t done;

    (void)path, (void)fi;
    if (is_bad(data, size))
        return -EIO;
    done = pwrite(backing, data, size, offset);
    return done < 0 ? -errno : (int)done;
}

static int bad_fsync(const char * path, int data_only, struct fuse_file_info * fi)
{
    (void)path, (void)data_only, (void)fi;
    if (is_bad(NULL, 0))
        return -EIO;
    return fdatasync(backing) ? -errno : 0;
}

static const struct fuse_operations operations = {
    .getattr = bad_getattr,
    .open = bad_open,
    .read = bad_read,
    .write = bad_write,
    .fsync = bad_fsync,
};

int main(int argc, char ** argv)
{
    char * arguments[] = {argv[0], "-f", "-o", "fsname=baddisk", NULL, NULL};

    if (argc != 4)
        return 2;
    if ((backing = open(argv[1], O_RDWR | O_CLOEXEC)) < 0) {
        perror(argv[1]);
        return 1;
    }
    control = argv[3];
    arguments[4] = argv[2];
    return fuse_main(5, arguments, &operations, NULL);
}
