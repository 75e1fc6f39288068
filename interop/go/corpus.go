// One call to each of many targets, so that grpc-go asks for their resources and judges them.
//
// The targets stand in a file, one a line. Nobody listens behind them, so that a call that gets as far as a connection is as good as
// one that is answered. It prints how the calls ended, and ends when its standard input does.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds"
)

const (
	atOnce  = 32
	timeout = 20 * time.Second
)

// Messages travel as bytes, of which there are none: what is tested is the way there.
type nothing struct{}

func (nothing) Marshal(any) (mem.BufferSlice, error) { return nil, nil }
func (nothing) Unmarshal(mem.BufferSlice, any) error { return nil }
func (nothing) Name() string                         { return "nothing" }

// The channel stays open: what it refuses is looked up at the control plane, as long as it is there.
func call(target string) error {
	channel, err := grpc.NewClient("xds:///"+target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return channel.Invoke(ctx, "/corpus.Service/Call", nil, nil, grpc.ForceCodecV2(nothing{}))
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var told sync.Mutex
	var all sync.WaitGroup
	turns := make(chan struct{}, atOnce)
	for _, target := range strings.Fields(string(text)) {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			err := call(target)
			told.Lock()
			defer told.Unlock()
			said := map[string]string{"target": target, "status": status.Code(err).String(), "error": fmt.Sprint(err)}
			_ = json.NewEncoder(os.Stdout).Encode(said)
		})
	}
	all.Wait()
	fmt.Println("all asked")
	_, _ = io.Copy(io.Discard, os.Stdin)
}
