// What a Go program for WASI preview 1 does: its heap, its files, its clock, its output, and the code that it ends with. With the
// argument `serve` it serves HTTP on the listening socket that it finds open.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		serve()
	}
	begun := time.Now()
	var kept [][]byte
	for i := 0; i < 1000; i++ {
		piece := make([]byte, 10000)
		for j := range piece {
			piece[j] = byte(i)
		}
		kept = append(kept, piece)
		if i%100 == 0 {
			runtime.GC()
			time.Sleep(time.Millisecond)
		}
	}
	for i, piece := range kept {
		for _, b := range piece {
			if b != byte(i) {
				fail("the heap is not what it was")
			}
		}
	}
	if time.Since(begun) < 10*time.Millisecond {
		fail("it did not sleep")
	}
	files()
	fmt.Println("Go:", len(os.Args), "arguments,", os.Getenv("COLOR"))
	code, _ := strconv.Atoi(os.Args[len(os.Args)-1])
	os.Exit(code)
}

func files() {
	if err := os.MkdirAll("/data/sub/deep", 0o755); err != nil {
		fail(err)
	}
	for i := 0; i < 100; i++ {
		if err := os.WriteFile(fmt.Sprintf("/data/sub/%03d", i), []byte("text"), 0o644); err != nil {
			fail(err)
		}
	}
	found, err := os.ReadDir("/data/sub")
	if err != nil || len(found) != 101 || found[99].Name() != "099" || !found[100].IsDir() {
		fail(found, err)
	}
	text, err := os.ReadFile("/data/sub/050")
	if err != nil || string(text) != "text" {
		fail(text, err)
	}
	if _, err := os.Stat("/data/none"); !os.IsNotExist(err) {
		fail(err)
	}
	if err := os.RemoveAll("/data/sub"); err != nil {
		fail(err)
	}
}

func serve() {
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		fail(err)
	}
	http.HandleFunc("/", func(out http.ResponseWriter, in *http.Request) {
		fmt.Fprintf(out, "Go serves %s, %s socket\n", in.URL.Path, os.Getenv("LISTEN_FDS"))
	})
	// It ends when the container is stopped.
	fmt.Println("served:", http.Serve(listener, nil) != nil)
	os.Exit(0)
}

func fail(why ...any) {
	fmt.Println(why...)
	os.Exit(99)
}
