/* Answers HTTP requests on the listening socket that it finds open: one program that goes on. */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "answer.h"

enum { LISTENER = 3 };

/* Reads to the end of the headers; 1 where there is a request. */
static int read_request(int client, char *text, size_t room) {
    size_t length = 0;
    while (length < room - 1) {
        ssize_t got = read(client, text + length, room - 1 - length);
        if (got <= 0) return 0;
        text[length += got] = 0;
        if (strstr(text, "\r\n\r\n")) return 1;
    }
    return 0;
}

int main(void) {
    char request[8192], path[1024], body[1280];
    struct pollfd door = {LISTENER, POLLIN, 0};
    int client;
    /* The listener does not block. It fails once the program is to end. */
    while (poll(&door, 1, -1) == 1 && (client = accept(LISTENER, NULL, NULL)) >= 0) {
        if (read_request(client, request, sizeof request) && sscanf(request, "%*s %1023s", path) == 1) {
            int length = answer(body, sizeof body, path);
            dprintf(client, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", length, body);
        }
        close(client);
    }
}
