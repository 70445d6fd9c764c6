package main

import (
	"net/http/httptest"
	"testing"
)

func TestTheAnswerNamesThePath(t *testing.T) {
	out := httptest.NewRecorder()
	answer(out, httptest.NewRequest("GET", "/door", nil))
	if body := out.Body.String(); body != "hello from {{name}} at /door\n" {
		t.Fatal(body)
	}
}
