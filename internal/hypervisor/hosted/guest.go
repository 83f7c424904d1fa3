package hosted

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/banger-dev/banger/internal/agent"
)

const (
	agentPort = 1024
	// maxGreeting bounds the line by which a host says which port it wants.
	maxGreeting   = 32
	greetingLimit = 5 * time.Second
)

// Main is a machine's process: it reads its config on standard input, serves
// the agent on the socket that is descriptor 3, and gives the exit status.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := serve(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "hosted: %v\n", err)
		return 1
	}
	return 0
}

func serve(ctx context.Context) error {
	var c config
	if err := json.NewDecoder(io.LimitReader(os.Stdin, 1<<20)).Decode(&c); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := newSystem(c, cancel)
	if err != nil {
		return err
	}
	console := open(c.Console)
	defer console.Close()
	s.misbehave(ctx, c, console)
	fmt.Fprintf(console, "hosted guest %s is up\n", c.ID)
	l, err := net.FileListener(os.NewFile(3, "agent"))
	if err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		l.Close()
	}()
	srv := agent.NewServer(s, agent.Options{NoCgroup: true})
	defer srv.Close()
	err = srv.Serve(ctx, &greeter{Listener: l})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// misbehave does what the command line asks for.
func (s *system) misbehave(ctx context.Context, c config, console io.Writer) {
	for _, word := range strings.Fields(c.Cmdline) {
		switch word {
		case Hang:
			fmt.Fprintln(console, "hosted guest hangs")
			<-ctx.Done()
		case Die:
			fmt.Fprintln(console, "hosted guest: unable to mount root")
			os.Exit(3)
		case Flood:
			go flood(console)
		case Deaf:
			s.deaf = true
			signal.Ignore(syscall.SIGTERM)
		}
	}
}

// flood ends with the process, or with who reads the console.
func flood(c io.Writer) {
	line := []byte(strings.Repeat("flood ", 4000) + "\n")
	for {
		if _, err := c.Write(line); err != nil {
			return
		}
	}
}

// open connects to who keeps the console, for as long as the machine lives.
func open(socket string) io.WriteCloser {
	if socket != "" {
		if c, err := net.DialTimeout("unix", socket, time.Second); err == nil {
			return c
		}
	}
	return discard{io.Discard}
}

type discard struct{ io.Writer }

func (discard) Close() error { return nil }

// greeter speaks the hypervisor's side of a vsock socket: one line to say
// which port is meant, one line in answer, then the guest's bytes.
type greeter struct{ net.Listener }

// Accept gives the next connection that asked for the agent.
func (g *greeter) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if err := greet(c); err != nil {
			c.Close()
			continue
		}
		return c, nil
	}
}

func greet(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(greetingLimit)); err != nil {
		return err
	}
	// byte by byte: what follows the line is the guest's
	var line strings.Builder
	b := make([]byte, 1)
	for !strings.HasSuffix(line.String(), "\n") {
		if line.Len() >= maxGreeting {
			return bufio.ErrTooLong
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		line.Write(b)
	}
	if line.String() != fmt.Sprintf("CONNECT %d\n", agentPort) {
		return fmt.Errorf("no port %q", line.String())
	}
	if _, err := fmt.Fprintf(c, "OK %d\n", agentPort+1); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}
