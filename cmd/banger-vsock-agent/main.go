// Command banger-vsock-agent is banger inside the guest: the first process of
// the initramfs, which brings the image up (internal/agent/boot), and the
// long-lived agent that it starts and that answers the host. It links only
// the agent's side of the house.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/mdlayher/vsock"

	"github.com/banger-dev/banger/internal/agent"
	"github.com/banger-dev/banger/internal/agent/boot"
	"github.com/banger-dev/banger/internal/agent/system"
	"github.com/banger-dev/banger/internal/buildinfo"
	"github.com/banger-dev/banger/internal/guest/link"
	"github.com/banger-dev/banger/internal/guest/wire"
)

func main() {
	ctx := context.Background()
	switch {
	case boot.IsAgent(os.Args):
		if err := serve(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "banger: agent:", err)
			os.Exit(1)
		}
	case os.Getpid() == 1:
		err := boot.Init(ctx)
		fmt.Fprintf(os.Stderr, "banger: %v: stopping the machine\n", err)
		boot.Halt(false)
	default:
		fmt.Println("banger-vsock-agent", buildinfo.Get().Version)
		fmt.Println("This program runs inside banger's VMs; start one with: banger vm run")
	}
}

// serve is the agent: it answers until the channel fails.
func serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	settleIn()
	control, err := boot.TakeControl()
	if err != nil {
		return err
	}
	version := sync.OnceValue(func() string { return buildinfo.Get().Version })
	server := agent.NewServer(system.New(ctx, control, version), agent.Options{})

	port, err := link.OpenPort(wire.SerialName)
	if err == nil {
		defer port.Close()
		return server.ServePort(ctx, port)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, verr := vsock.Listen(wire.VsockPort, nil)
	if verr != nil {
		return fmt.Errorf("no channel to the host: %w; %w", err, verr)
	}
	defer listener.Close()
	return server.Serve(ctx, listener)
}

// settleIn makes this process one that survives: the kernel takes others
// first when memory runs out, and signals meant for everybody pass it by.
// (They are caught and not ignored: what is ignored, commands inherit.)
func settleIn() {
	_ = os.WriteFile("/proc/self/comm", []byte("banger-agent"), 0)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0)
	deaf := make(chan os.Signal, 1)
	signal.Notify(deaf, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
}
