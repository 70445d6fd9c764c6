#include <stdio.h>
#include <stdlib.h>

/* Writes what is answered at a path; how many bytes that is. */
static int answer(char *body, size_t room, const char *path) {
    const char *greeting = getenv("GREETING");
    return snprintf(body, room, "%.200s from {{name}} at %s\n", greeting ? greeting : "hello", path);
}
