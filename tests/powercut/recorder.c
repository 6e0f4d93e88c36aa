/*
 * A disk that remembers: one file, "disk", passed through to another, with every write and flush kept in a log.
 *
 *     recorder BACKING-FILE LOG MOUNTPOINT SOCKET
 *
 * Who connects to SOCKET (a Unix socket of packets) has each of his packets put into the same log, and is answered
 * with one byte when it is there. The packet "END" closes the log; from then on nothing is recorded.
 *
 * A record is three 64-bit words - what, offset, length - and its bytes: 'W' a write, 'Z' zeros (no bytes follow),
 * 'F' a flush, 'M' a packet.
 *
 * No order is invented. A flush covers what was *answered* before it came, and a disk may forget all else; but what
 * lies in FUSE's queue together came in an order that says nothing. So requests are taken until the queue is empty,
 * and only then is any write or flush answered: all these were under way at once. Of them the flushes are logged
 * first, which is the order that makes the least durable. Packets come before either, for the same reason.
 */
#define FUSE_USE_VERSION 34
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { DISK = 2, UNDERWAY = 4096, CLIENTS = 16 };

struct request {
    fuse_req_t req;
    char what; /* W, Z or F */
    uint64_t offset, length;
    char * data;
};

static struct request underway[UNDERWAY];
static int count;
static int backing;
static FILE * trace;

static void must(int worked, const char * what)
{
    if (!worked) {
        perror(what);
        exit(1);
    }
}

static void record(char what, uint64_t offset, uint64_t length, const void * data)
{
    uint64_t head[3] = {(uint64_t)what, offset, length};

    if (!trace)
        return;
    must(fwrite(head, sizeof(head), 1, trace) == 1, "log");
    if (data && length)
        must(fwrite(data, length, 1, trace) == 1, "log");
}

/* The queue is empty: log what is under way, flushes first, and answer it. */
static void answer(void)
{
    for (int i = 0; i < count; i++)
        if (underway[i].what == 'F')
            record('F', 0, 0, NULL);
    for (int i = 0; i < count; i++)
        if (underway[i].what != 'F')
            record(underway[i].what, underway[i].offset, underway[i].length, underway[i].data);
    for (int i = 0; i < count; i++) {
        if (underway[i].what == 'W')
            fuse_reply_write(underway[i].req, underway[i].length);
        else
            fuse_reply_err(underway[i].req, 0);
        free(underway[i].data);
    }
    count = 0;
}

static void begin(fuse_req_t req, char what, uint64_t offset, uint64_t length, const char * data)
{
    struct request * it;

    if (count == UNDERWAY)
        answer();
    it = &underway[count++];
    *it = (struct request){req, what, offset, length, NULL};
    if (data) {
        must((it->data = malloc(length + 1)) != NULL, "memory");
        memcpy(it->data, data, length);
    }
}

static int attributes(fuse_ino_t ino, struct stat * st)
{
    memset(st, 0, sizeof(*st));
    if (ino == DISK) {
        must(!fstat(backing, st), "fstat");
    } else {
        st->st_mode = S_IFDIR | 0755;
        st->st_nlink = 2;
    }
    st->st_ino = ino;
    return ino == DISK || ino == FUSE_ROOT_ID;
}

static void disk_lookup(fuse_req_t req, fuse_ino_t parent, const char * name)
{
    struct fuse_entry_param entry = {.ino = DISK, .attr_timeout = 3600, .entry_timeout = 3600};

    if (parent != FUSE_ROOT_ID || strcmp(name, "disk")) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    attributes(DISK, &entry.attr);
    fuse_reply_entry(req, &entry);
}

static void disk_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info * fi)
{
    struct stat st;

    (void)fi;
    if (attributes(ino, &st))
        fuse_reply_attr(req, &st, 3600);
    else
        fuse_reply_err(req, ENOENT);
}

static void disk_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info * fi)
{
    if (ino == DISK)
        fuse_reply_open(req, fi);
    else
        fuse_reply_err(req, EISDIR);
}

static void disk_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info * fi)
{
    char * data = malloc(size + 1);
    ssize_t got;

    (void)ino, (void)fi;
    must(data != NULL, "memory");
    got = pread(backing, data, size, offset);
    if (got < 0)
        fuse_reply_err(req, errno);
    else
        fuse_reply_buf(req, data, got);
    free(data);
}

static void disk_write(
    fuse_req_t req, fuse_ino_t ino, const char * data, size_t size, off_t offset, struct fuse_file_info * fi)
{
    (void)ino, (void)fi;
    must(pwrite(backing, data, size, offset) == (ssize_t)size, "the backing file");
    begin(req, 'W', offset, size, data);
}

static void disk_fsync(fuse_req_t req, fuse_ino_t ino, int data_only, struct fuse_file_info * fi)
{
    (void)ino, (void)data_only, (void)fi;
    begin(req, 'F', 0, 0, NULL);
}

/* A loop device discards, and writes zeros, by this. */
static void disk_fallocate(
    fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length, struct fuse_file_info * fi)
{
    (void)ino, (void)fi;
    if (!(mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))) {
        fuse_reply_err(req, EOPNOTSUPP);
        return;
    }
    must(!fallocate(backing, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length), "the backing file");
    begin(req, 'Z', offset, length, NULL);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = disk_lookup,
    .getattr = disk_getattr,
    .open = disk_open,
    .read = disk_read,
    .write = disk_write,
    .fsync = disk_fsync,
    .fallocate = disk_fallocate,
};

/* Take one packet; return whether there will be more. */
static int take_packet(int client)
{
    static char packet[65536];
    ssize_t size = recv(client, packet, sizeof(packet), 0);

    if (size <= 0)
        return 0;
    if (size == 3 && !memcmp(packet, "END", 3)) {
        if (trace)
            must(!fclose(trace), "log");
        trace = NULL;
    } else {
        record('M', 0, size, packet);
    }
    return send(client, "k", 1, MSG_NOSIGNAL) == 1;
}

static void serve(struct fuse_session * session, int listener)
{
    struct pollfd polled[2 + CLIENTS] = {
        {.fd = fuse_session_fd(session), .events = POLLIN}, {.fd = listener, .events = POLLIN}};
    struct fuse_buf buf = {.mem = NULL};
    int clients = 0;

    while (!fuse_session_exited(session)) {
        int ready = poll(polled, 2 + clients, count ? 0 : -1);

        if (ready < 0 && errno == EINTR)
            continue;
        must(ready >= 0, "poll");
        if (!ready) {
            answer();
            continue;
        }
        for (int i = 2; i < 2 + clients; i++)
            if (polled[i].revents && !take_packet(polled[i].fd)) {
                close(polled[i].fd);
                polled[i--] = polled[1 + clients--];
            }
        if (polled[1].revents && clients < CLIENTS) {
            int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

            if (client >= 0)
                polled[2 + clients++] = (struct pollfd){.fd = client, .events = POLLIN};
        }
        if (polled[0].revents) {
            int got = fuse_session_receive_buf(session, &buf);

            if (got > 0)
                fuse_session_process_buf(session, &buf);
            else if (got != -EINTR)
                break; /* 0: it is unmounted */
        }
    }
    free(buf.mem);
}

int main(int argc, char ** argv)
{
    char * arguments[] = {argv[0], "-o", "fsname=powercut"};
    struct fuse_args args = FUSE_ARGS_INIT(3, arguments);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct fuse_session * session;
    int listener;

    if (argc != 5 || strlen(argv[4]) >= sizeof(address.sun_path))
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* nothing is left behind by a rig that is killed */
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0); /* memory for a write is not to be had by waiting for that write */
    must((backing = open(argv[1], O_RDWR | O_CLOEXEC)) >= 0, argv[1]);
    must((trace = fopen(argv[2], "we")) != NULL, argv[2]);
    must((session = fuse_session_new(&args, &operations, sizeof(operations), NULL)) != NULL, "fuse");
    must(!fuse_session_mount(session, argv[3]), argv[3]);
    strcpy(address.sun_path, argv[4]);
    must((listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) >= 0, "socket");
    must(!bind(listener, (struct sockaddr *)&address, sizeof(address)) && !listen(listener, CLIENTS), argv[4]);
    serve(session, listener);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return 0;
}
