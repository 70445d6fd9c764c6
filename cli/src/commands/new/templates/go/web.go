// Answers HTTP requests on the listening socket that it finds open: one program that goes on.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
)

func answer(out http.ResponseWriter, request *http.Request) {
	greeting := os.Getenv("GREETING")
	if greeting == "" {
		greeting = "hello"
	}
	fmt.Fprintf(out, "%s from {{name}} at %s\n", greeting, request.URL.Path)
}

func main() {
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		panic(err)
	}
	// It ends once the program is to end.
	fmt.Println(http.Serve(listener, http.HandlerFunc(answer)))
}
