/* A model server that costs next to nothing: answers every request with the bytes of a chat completion, or with 67 events, 10 ms apart.
   cc -O2 -o upstream upstream.c && ./upstream PORT */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define FDS 4096
#define EVENTS 67
#define BUFFER (256 * 1024)
static const char *EVENT = "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char *LAST = "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":65,\"total_tokens\":85}}\n\ndata: [DONE]\n\n";
static const char *BODY = "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello! How can I help you today?\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":9,\"total_tokens\":29}}";

struct conn { char *in; int used, left; };
static struct conn conns[FDS];
static char whole[2048], event[1024], last[1024];
static int whole_n, event_n, last_n;

static int chunk(char *to, const char *text) { return sprintf(to, "%zx\r\n%s\r\n", strlen(text), text); }
static void out(int fd, const char *data, int n) { if (write(fd, data, n) != n) { } }

static int request(struct conn *c, int fd) {
    char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
    if (!end) return 0;
    int head = end - c->in + 4, length = 0;
    *end = 0;
    char *header = strcasestr(c->in, "content-length:");
    if (header) length = atoi(header + 15);
    *end = '\r';
    if (c->used < head + length) return 0;
    if (memmem(c->in + head, length, "\"stream\":true", 13)) {
        static const char *HEAD = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        out(fd, HEAD, strlen(HEAD));
        c->left = EVENTS;
    } else {
        out(fd, whole, whole_n);
    }
    c->used -= head + length;
    memmove(c->in, c->in + head + length, c->used);
    return 1;
}

int main(int argc, char **argv) {
    int door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(door, (struct sockaddr *)&at, sizeof at) || listen(door, 4096)) return 1;
    whole_n = sprintf(whole, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nserver: uvicorn\r\ncontent-length: %zu\r\n\r\n%s", strlen(BODY), BODY);
    event_n = chunk(event, EVENT);
    last_n = chunk(last, LAST);
    last_n += sprintf(last + last_n, "0\r\n\r\n");
    int poll = epoll_create1(0), clock = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec every = {{0, 10000000}, {0, 10000000}};
    timerfd_settime(clock, 0, &every, NULL);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = door}, found[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, door, &e);
    e.data.fd = clock;
    epoll_ctl(poll, EPOLL_CTL_ADD, clock, &e);
    for (;;) {
        int n = epoll_wait(poll, found, 256, -1);
        for (int k = 0; k < n; k++) {
            int fd = found[k].data.fd;
            if (fd == clock) {
                unsigned long ticks;
                if (read(clock, &ticks, sizeof ticks) < 0) continue;
                for (int f = 0; f < FDS; f++)
                    if (conns[f].left) {
                        if (--conns[f].left) out(f, event, event_n);
                        else out(f, last, last_n);
                    }
                continue;
            }
            if (fd == door) {
                int client;
                while ((client = accept4(door, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (client >= FDS) { close(client); continue; }
                    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    conns[client].in = malloc(BUFFER);
                    conns[client].used = conns[client].left = 0;
                    e.events = EPOLLIN, e.data.fd = client;
                    epoll_ctl(poll, EPOLL_CTL_ADD, client, &e);
                }
                continue;
            }
            struct conn *c = &conns[fd];
            int got = read(fd, c->in + c->used, BUFFER - c->used);
            if (got <= 0) {
                if (got < 0 && errno == EAGAIN) continue;
                close(fd);
                free(c->in);
                memset(c, 0, sizeof *c);
                continue;
            }
            c->used += got;
            while (c->used > 0 && request(c, fd)) { }
        }
    }
}
