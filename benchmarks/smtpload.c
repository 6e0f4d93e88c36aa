/*
 * The load: clients that send mail by SMTP or LMTP to a Unix socket, and cost little themselves. One thread, epoll.
 *
 *     smtpload SOCKET lmtp=0|1 pipelining=0|1 messages=N seconds=S warmup=W size=B maildirs=D in_flight=N stream=0|1
 *
 * As many connections as there are in flight are opened first, and stay. Each sends one message after another, to
 * N@example.org for the maildir DIR/N, as an MTA does that keeps its connections: MAIL, RCPT and DATA in one segment if
 * the server announces PIPELINING (and pipelining=1), else one by one; the message after 354; then it waits for the
 * reply. Messages are those of workload.py, with CRLF; no line of theirs begins with a dot. A size is in bytes with LF,
 * and a multiple of 64.
 *
 * After the warm-up "warm" goes to standard output, and a line from standard input is waited for. In the end one JSON
 * object goes to standard output: see workload.Measurement. A reply that is not as it should be ends the program.
 * stream: there is no limit of time, and the messages of the warm-up have 2 MiB.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "workload.h"

#define WIRE_HEAD (HEAD + 3) /* three CRs */
#define LINE 64
#define WIRE_LINE (LINE + 1)
#define PERIOD_LINES (MIB / LINE)
#define TURN MIB /* bytes after which other connections have their turn */
#define FOREVER 1e9

static long in_flight = 1, lmtp = 0, pipelining = 1;

struct connection {
    int fd;
    enum { GREETING, HELLO, READY, MAIL, RCPT, DATA, SENDING, SENT } state;
    int pipelines, wants_out;
    long number;
    long long offset, total; /* of the message, on the wire */
    double began;
    char head[WIRE_HEAD + 1];
    char in[8192];
    size_t filled;
};

static struct connection * connections;
static int poller;
static char * pattern; /* the body on the wire: two periods */
static long next_number, limit, begun, finished, done, active;
static double start, end, time_limit, total_bytes;
static double * latencies;

/* Commands are short, and nothing else is under way when they are sent: they always fit. */
static void say(struct connection * c, const char * text)
{
    ssize_t length = strlen(text);

    if (send(c->fd, text, length, MSG_NOSIGNAL) != length)
        die("send");
}

static void want_out(struct connection * c, int wanted)
{
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};

    if (c->wants_out == wanted)
        return;
    c->wants_out = wanted;
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event))
        die("epoll_ctl");
}

static void mail(struct connection * c)
{
    char text[256], recipient[64];

    snprintf(recipient, sizeof(recipient), "RCPT TO:<%ld@example.org>\r\n", c->number % maildirs);
    if (c->state == READY) {
        snprintf(text, sizeof(text), "MAIL FROM:<a@example.org>\r\n%s%s", c->pipelines ? recipient : "",
            c->pipelines ? "DATA\r\n" : "");
        c->state = MAIL;
        say(c, text);
    } else {
        c->state = c->state == MAIL ? RCPT : DATA;
        if (!c->pipelines)
            say(c, c->state == RCPT ? recipient : "DATA\r\n");
    }
}

static void begin(struct connection * c)
{
    if (begun >= limit || now() - start >= time_limit) {
        active--;
        return;
    }
    begun++;
    c->number = next_number++;
    c->offset = 0;
    c->total = WIRE_HEAD + (size_of(c->number) - HEAD) / LINE * (long long)WIRE_LINE + 3;
    snprintf(c->head, sizeof(c->head), "Subject: benchmark message %010ld\r\nX-Padding: xxxxxxxxxxxxx\r\n\r\n", c->number);
    c->began = now();
    mail(c);
}

static void finish(struct connection * c)
{
    double moment = now();

    latencies[finished++] = (moment - c->began) * 1e3;
    if (moment - start <= time_limit || done == 0) { /* one that is done too late counts as a latency only */
        end = moment;
        done++;
        total_bytes += size_of(c->number);
    }
    c->state = READY;
    begin(c);
}

static void send_message(struct connection * c)
{
    static const char dot[] = ".\r\n";
    long long sent = 0;

    while (c->offset < c->total) {
        struct iovec parts[3];
        struct msghdr message = {.msg_iov = parts};
        long long body = c->offset < WIRE_HEAD ? 0 : c->offset - WIRE_HEAD, left = c->total - 3 - WIRE_HEAD - body;
        ssize_t taken;

        if (sent >= TURN) {
            want_out(c, 1);
            return;
        }
        if (c->offset < WIRE_HEAD)
            parts[message.msg_iovlen++] = (struct iovec){c->head + c->offset, WIRE_HEAD - c->offset};
        if (left > 0)
            parts[message.msg_iovlen++] =
                (struct iovec){pattern + body % (PERIOD_LINES * WIRE_LINE), left < MIB / 4 ? left : MIB / 4};
        if (left <= MIB / 4)
            parts[message.msg_iovlen++] =
                (struct iovec){(char *)dot + (left < 0 ? -left : 0), left < 0 ? sizeof(dot) - 1 + left : sizeof(dot) - 1};
        taken = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (taken < 0) {
            if (errno != EAGAIN && errno != EINTR)
                die("send");
            want_out(c, 1);
            return;
        }
        c->offset += taken;
        sent += taken;
    }
    c->state = SENT;
    want_out(c, 0);
}

static void reply(struct connection * c, const char * line)
{
    static const char expected[] = { /* in other states, none */
        [GREETING] = '2', [HELLO] = '2', [MAIL] = '2', [RCPT] = '2', [DATA] = '3', [SENT] = '2'};
    int is_last = line[3] != '-';

    if (line[0] != expected[c->state]) {
        fprintf(stderr, "smtpload: the server said: %s\n", line);
        exit(1);
    }
    if (c->state == HELLO && !strcmp(line + 4, "PIPELINING"))
        c->pipelines = pipelining;
    if (!is_last)
        return;
    switch (c->state) {
    case GREETING:
        c->state = HELLO;
        say(c, lmtp ? "LHLO localhost\r\n" : "EHLO localhost\r\n");
        break;
    case HELLO:
        c->state = READY;
        active--;
        break;
    case MAIL:
    case RCPT:
        mail(c);
        break;
    case DATA:
        c->state = SENDING;
        send_message(c);
        break;
    default:
        finish(c);
    }
}

static void receive(struct connection * c)
{
    ssize_t got = recv(c->fd, c->in + c->filled, sizeof(c->in) - c->filled, MSG_DONTWAIT);
    char *line = c->in, *line_end;

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got < 0)
        die("recv");
    if (got == 0) {
        fprintf(stderr, "smtpload: the server closed a connection\n");
        exit(1);
    }
    c->filled += got;
    while ((line_end = memmem(line, c->in + c->filled - line, "\r\n", 2)) != NULL) {
        *line_end = 0;
        if (line_end - line < 3)
            line = "000 nothing of the kind";
        reply(c, line);
        line = line_end + 2;
    }
    c->filled -= line - c->in;
    memmove(c->in, line, c->filled);
    if (c->filled == sizeof(c->in)) {
        fprintf(stderr, "smtpload: the server does not end its line\n");
        exit(1);
    }
}

static void run(void)
{
    struct epoll_event events[64];

    while (active > 0) {
        int count = epoll_wait(poller, events, 64, -1);

        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct connection * c = events[i].data.ptr;

            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                receive(c);
            if (events[i].events & EPOLLOUT && c->state == SENDING)
                send_message(c);
        }
    }
}

static void phase(long count, double at_most)
{
    limit = count;
    time_limit = stream ? FOREVER : at_most;
    begun = finished = done = 0;
    total_bytes = 0;
    active = in_flight < count ? in_flight : count;
    start = end = now();
    for (long i = 0, workers = active; i < workers; i++)
        begin(&connections[i]);
    run();
}

static void connect_all(const char * path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
        die(path);
    }
    strcpy(address.sun_path, path);
    active = in_flight;
    for (long i = 0; i < in_flight; i++) {
        struct connection * c = &connections[i];
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};

        c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof(address)))
            die(path);
        if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event))
            die("epoll_ctl");
    }
    run();
}

int main(int argc, char ** argv)
{
    const struct number numbers[] = {{"in_flight", &in_flight}, {"lmtp", &lmtp}, {"pipelining", &pipelining}};
    double used;

    if (argc < 2)
        return 2;
    for (int i = 2; i < argc; i++)
        take(argv[i], numbers, sizeof(numbers) / sizeof(numbers[0]));
    if (size_each % LINE || (size_each && size_each <= HEAD) || in_flight < 1 || maildirs < 1 || messages < 1)
        return 2;
    pattern = malloc(2 * PERIOD_LINES * WIRE_LINE);
    latencies = malloc(sizeof(double) * (messages + warmup));
    connections = calloc(in_flight, sizeof(*connections));
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!pattern || !latencies || !connections || poller < 0)
        die("malloc");
    for (long line = 0; line < 2 * PERIOD_LINES; line++) {
        memset(pattern + line * WIRE_LINE, 'a' + line % PERIOD_LINES % 26, LINE - 1);
        memcpy(pattern + line * WIRE_LINE + LINE - 1, "\r\n", 2);
    }
    connect_all(argv[1]);
    phase(warmup, WARMUP_S);
    printf("warm\n");
    fflush(stdout);
    if (getchar() == EOF)
        return 1;
    used = cpu();
    phase(messages, seconds);
    used = cpu() - used;
    for (long i = 0; i < in_flight; i++)
        say(&connections[i], "QUIT\r\n");
    report(done, next_number, total_bytes, end - start, "load_cpu_s", used, latencies, finished);
    return 0;
}
