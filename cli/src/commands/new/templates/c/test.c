#include <string.h>

#include "answer.h"

int main(void) {
    char body[128];
    answer(body, sizeof body, "/door");
    if (strcmp(body, "hello from {{name}} at /door\n")) {
        printf("not the answer: %s", body);
        return 1;
    }
    printf("ok\n");
}
