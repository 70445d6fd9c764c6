// What a C program for WASI preview 1 does: its heap, its files, its output, and the code that it ends with.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECES = 64, BYTES = 100000 };

int main(int argc, char **argv) {
    char *kept[PIECES];
    for (int i = 0; i < PIECES; i++) {
        kept[i] = malloc(BYTES);
        memset(kept[i], i, BYTES);
    }
    FILE *file = fopen("/data/note", "w");
    if (!file) return 10;
    fprintf(file, "written by C\n");
    fclose(file);
    struct stat of;
    if (stat("/data/note", &of) || of.st_size != 13) return 11;
    if (fopen("/data/../etc/passwd", "r")) return 12;
    for (int i = 0; i < PIECES; i++)
        for (int j = 0; j < BYTES; j++)
            if (kept[i][j] != i) return 13;
    printf("C: %d arguments, %s\n", argc, getenv("COLOR"));
    return argc > 1 ? atoi(argv[1]) : 0;
}
